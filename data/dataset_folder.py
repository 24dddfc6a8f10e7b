"""Which files of a folder are a preference set: those that `datasets.load_dataset(folder)` would read.

Folders below it that tgdpo wrote (caches, runs …) are no data, and of several formats one is read.
"""

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError, UsageError
from .row_files import SUFFIXES, bare_suffix

MARKS = {
    "_manifest.json": ("format_version", "a finished output of tgdpo"),
    "_work/settings.json": ("dtype", "an unfinished cache"),
    "run.json": ("identity", "a training run"),
}
"""Files by which a folder that tgdpo wrote is known: a key that such a file has, and what the folder is."""

READ_PARAMETERS = {"data_files", "data_dir", "default", "description", "version", "features"}
"""What a README may say of a configuration without changing how its files are read here."""


class FolderFiles(NamedTuple):
    """The files of one split, in the order in which they are read, and what people should know about the choice."""

    files: list[Path]
    configuration: str | None
    left_out: list[str]


def find_files(folder: Path, split: str, config_name: str | None) -> FolderFiles:
    """The files of a split of a folder.

    Args:
        folder: the folder.
        split: its split.
        config_name: a configuration that its README.md names, None for the default one.

    Raises:
        UsageError: no such split or configuration, or one has to be chosen.
        DataError: the folder has no files that can be read, is an output of tgdpo, or its README.md names none.
    """
    what = _what_tgdpo_wrote(folder)
    if what:
        raise DataError(
            f"--dataset {folder} is {what}, not a preference set",
            fix="name the data that it was made from, or a cache with --reuse",
        )
    search = _Search(folder)
    configurations = _configurations(folder)
    chosen = _choose(folder, configurations, config_name)
    by_split = search.of_configuration(configurations[chosen]) if chosen else search.of_names()
    if not by_split:
        holds = f"no {', '.join(SUFFIXES)} file" + (f" beside {', '.join(search.skipped)}" if search.skipped else "")
        raise DataError(f"--dataset {folder}: the folder holds {holds}", fix="name the file or its folder")
    require_split(str(folder), split, list(by_split))
    files, others = _of_one_format(by_split[split])
    return FolderFiles(files, chosen, [*search.skipped, *others])


def require_split(name: str, split: str, found: list[str]) -> None:
    """Raises UsageError where the set `name` has no such split."""
    if split not in found:
        hint = "use --limit for the first rows; " if "[" in split else ""
        raise UsageError(f"--split {split}: {name} has {', '.join(found)}", fix=f"{hint}choose one of these")


def absolute(folder: Path) -> Path:
    """The path from the root, links kept."""
    return Path(os.path.abspath(folder))


class _Search:
    """Files by pattern in a folder: with suffixes that can be read, and not in a folder that tgdpo wrote."""

    def __init__(self, folder: Path) -> None:
        self._folder = absolute(folder)  # as datasets names what it finds
        self._written: dict[Path, str | None] = {}

    @property
    def skipped(self) -> list[str]:
        """The folders that tgdpo wrote, of those that were looked at."""
        written = sorted((os.path.relpath(path, self._folder), what) for path, what in self._written.items() if what)
        return [f"{path} ({what})" for path, what in written]

    def of_names(self, below: str = "") -> dict[str, list[Path]]:
        """By split, as datasets tells splits by the names of files and folders."""
        from datasets.data_files import _get_data_files_patterns

        base = self._folder / below

        def resolve(pattern: str) -> list[str]:
            found = self._files(pattern, base)
            if not found:
                raise FileNotFoundError(pattern)
            return [str(path) for path in found]

        # The private form of get_data_patterns: the public one sees tgdpo's own files as well.
        with suppress(FileNotFoundError):
            patterns = _get_data_files_patterns(resolve)
            return {str(split): sorted(self._all(some, base)) for split, some in patterns.items()}
        return {}

    def of_configuration(self, parameters: dict[str, Any]) -> dict[str, list[Path]]:
        """By split, as the README's configuration names them."""
        from datasets.data_files import sanitize_patterns

        base = self._folder / (parameters.get("data_dir") or "")
        if parameters.get("data_files") is None:
            return self.of_names(parameters.get("data_dir") or "")
        by_split = {}
        for split, patterns in sanitize_patterns(parameters["data_files"]).items():
            for pattern in patterns:
                if "://" in pattern or (not glob.has_magic(pattern) and not (base / pattern).exists()):
                    raise DataError(
                        f"--dataset {self._folder}: its README.md names {pattern}, which is not there",
                        fix="fetch the file, or name another --dataset-config",
                    )
            by_split[str(split)] = self._all(patterns, base)
        return {split: files for split, files in by_split.items() if files}

    def _all(self, patterns: Iterable[str], base: Path) -> list[Path]:
        """Each file once, also where two patterns fit."""
        return list(dict.fromkeys(path for pattern in patterns for path in self._files(pattern, base)))

    def _files(self, pattern: str, base: Path) -> list[Path]:
        from datasets.data_files import resolve_pattern

        try:
            found = resolve_pattern(pattern, base_path=glob.escape(str(base)))
        except FileNotFoundError:
            return []
        paths = (Path(path) for path in found if bare_suffix(Path(path)) in SUFFIXES)
        return [path for path in paths if not self._is_written(path.parent)]

    def _is_written(self, folder: Path) -> bool:
        """Whether the folder, or one between it and the set's, is one that tgdpo wrote."""
        if folder == self._folder or self._folder not in folder.parents:
            return False
        if folder not in self._written:
            self._written[folder] = _what_tgdpo_wrote(folder)
        return self._written[folder] is not None or self._is_written(folder.parent)


def _what_tgdpo_wrote(folder: Path) -> str | None:
    for name, (key, what) in MARKS.items():
        with suppress(OSError, ValueError, RecursionError):
            if key in _mapping(json.loads((folder / name).read_bytes())):
                return what
    return None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _of_one_format(files: list[Path]) -> tuple[list[Path], list[str]]:
    """The files of the most frequent suffix, as datasets chooses, and what is said of the others."""
    counts = Counter(map(bare_suffix, files))
    favorites = (".csv", ".json", ".jsonl", ".parquet")
    best = max(counts, key=lambda suffix: (counts[suffix], favorites.index(suffix) if suffix in favorites else -1))
    # JSON Lines have three names, which are one format.
    one_format = {".json", ".jsonl", ".ndjson"} if best in (".json", ".jsonl", ".ndjson") else {best}
    kept = [path for path in files if bare_suffix(path) in one_format]
    others = [
        f"{count} {suffix} file{'s' * (count > 1)}" for suffix, count in counts.items() if suffix not in one_format
    ]
    return kept, others


# Configurations of a README.md


def _configurations(folder: Path) -> dict[str, dict[str, Any]]:
    """What README.md and .huggingface.yaml say of the folder's configurations, by name; empty without any."""
    import yaml
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData, metadata_load

    readme, extra = folder / "README.md", folder / ".huggingface.yaml"
    try:
        data = _mapping(metadata_load(readme)) if readme.is_file() else {}
        if extra.is_file():
            data |= _mapping(yaml.safe_load(extra.read_text(encoding="utf-8")))
        return dict(MetadataConfigs.from_dataset_card_data(DatasetCardData(**data)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        line = re.sub(r"\s+", " ", str(error))[:200]
        raise DataError(
            f"--dataset {folder}: what its README.md says of configurations cannot be read ({line})",
            fix="correct it, or name the data's own files or folder",
        ) from error


def _choose(folder: Path, configurations: dict[str, dict[str, Any]], name: str | None) -> str | None:
    """The configuration to read, None where the folder has none."""
    if not configurations:
        if name not in (None, "default"):
            raise UsageError(
                f"--dataset-config {name}: {folder} has no README.md that names configurations", fix="leave it out"
            )
        return None
    defaults = [each for each, its in configurations.items() if each == "default" or its.get("default")]
    if name is None and (len(configurations) == 1 or len(defaults) == 1):
        name = defaults[0] if defaults else next(iter(configurations))
    if name not in configurations:
        raise UsageError(
            f"--dataset-config{f' {name}' if name else ''}: {folder} has {', '.join(configurations)}",
            fix="choose one of these" if name else "choose one of these with --dataset-config",
        )
    if further := sorted(configurations[name].keys() - READ_PARAMETERS):
        raise DataError(
            f"--dataset {folder}: its README.md sets {', '.join(further)} for configuration {name}, which is not read",
            fix="save the set as JSON Lines or Parquet (datasets.load_dataset, then to_parquet)",
        )
    return name
