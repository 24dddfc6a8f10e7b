"""`tgdpo inspect` on large caches: `python benchmarks/inspect_cache.py [--pairs 100000 1000000]`.

    summary   the statistics and one pair in the terminal
    full      the same from all pairs
    page      --html

Seconds from the command to its end, processor seconds (on a busy machine only they say something), peak resident
memory, and the size of the page. Each figure is of a process of its own, one thread. The caches are those of
`loader.py`: a shard of 8,192 random pairs under many names.
"""

import argparse
import tempfile
from pathlib import Path

from common import machine, run_tgdpo, table
from loader import make_cache, make_policy


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--full", action="store_true", help="also read all pairs")
    options = parser.parse_args()
    rows = [["pairs", "command", "seconds", "processor seconds", "peak memory, MB", "page, MB"]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = make_policy(folder / "policy")
        for pairs in options.pairs:
            cache, page = folder / str(pairs), folder / "page.html"
            make_cache(cache, pairs, tokenizer)
            calls: dict[str, tuple[object, ...]] = {"summary": (), "page": ("--html", page)}
            if options.full:
                calls |= {"full": ("--full",), "page, full": ("--full", "--html", page)}
            for call, arguments in calls.items():
                found = run_tgdpo("inspect", cache, "--tokenizer", folder / "policy", *arguments)
                size = f"{page.stat().st_size / 1e6:.2f}" if "--html" in arguments else ""
                rows.append(
                    [
                        f"{pairs:,}",
                        call,
                        f"{found['seconds']:.2f}",
                        f"{found['cpu']:.2f}",
                        f"{found['peak_mb']:.0f}",
                        size,
                    ]
                )
    print(machine())
    print(table(rows))


if __name__ == "__main__":
    main()
