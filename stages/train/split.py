"""A global batch divided among processes and into passes: computed alike on every process, without a word between them.

Pairs go to processes by tokens, the longest first to whoever has least; a process's pairs form passes under the token
budget. All processes make equally many passes, because FSDP and DeepSpeed communicate in each: who has fewer halves
its largest, or runs a pair that does not count.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ...data.packing import Layout, batches
from ...data.tokenization import PairIds


class Pass(NamedTuple):
    """Pairs of one forward and backward pass, by their places in the global batch."""

    pairs: list[int]
    counts: bool
    """False for a pass that only keeps step with the other processes."""


def split(pairs: Sequence[PairIds], *, processes: int, batch_tokens: int, layout: Layout) -> list[list[Pass]]:
    """The passes of every process; each pair is in exactly one that counts, and all have equally many.

    Args:
        pairs: the global batch, not empty.
        batch_tokens: tokens of one pass; a longer pair makes one of its own.
    """
    sizes = [len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in pairs]
    grouped = []
    for share in _shares(sizes, processes):
        found = batches([pairs[i] for i in share], lambda: batch_tokens, layout)
        grouped.append([[share[i] for i in indices] for indices in found])
    wanted = max(map(len, grouped))
    shortest = min(range(len(pairs)), key=lambda i: sizes[i])
    return [_with_passes(groups, wanted, shortest) for groups in grouped]


def _shares(sizes: Sequence[int], processes: int) -> list[list[int]]:
    """Indices per process, in their order, tokens about equal."""
    shares: list[list[int]] = [[] for _ in range(processes)]
    tokens = [0] * processes
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        least = min(range(processes), key=lambda process: tokens[process])
        shares[least].append(i)
        tokens[least] += sizes[i]
    return [sorted(share) for share in shares]


def _with_passes(groups: list[list[int]], wanted: int, shortest: int) -> list[Pass]:
    while len(groups) < wanted and (largest := max(groups, key=len, default=[])) and len(largest) > 1:
        place, middle = groups.index(largest), len(largest) // 2
        groups[place : place + 1] = [largest[:middle], largest[middle:]]
    passes = [Pass(group, True) for group in groups]
    return passes + [Pass([shortest], False)] * (wanted - len(passes))
