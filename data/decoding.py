"""Whether a shard, which may be anybody's, can be decoded without harm."""

import pyarrow.parquet as pq

from .manifest import Shard
from .schema import SAMPLES_SCHEMA


def decoding_problem(file: pq.ParquetFile, shard: Shard, samples: int = 0) -> str | None:
    """Why a shard must not be decoded, or None: a few hundred bytes of Parquet may stand for gigabytes.

    What this package writes has no dictionaries, by which a page refers to one value any number of times, and no more
    values than the manifest says.
    """
    tokens = shard.prompt_tokens + shard.chosen_tokens + shard.rejected_tokens
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        for column in map(group.column, range(group.num_columns)):
            if column.has_dictionary_page or any("DICTIONARY" in encoding for encoding in column.encodings):
                return f"{shard.name} holds dictionaries, which no shard of this format does"
            times = samples if column.path_in_schema.partition(".")[0] in SAMPLES_SCHEMA.names else 1
            # A list without values counts as one.
            if column.num_values > times * tokens + group.num_rows:
                return f"{shard.name} holds more values than the manifest says"
    return None
