"""`tgdpo inspect` on large caches: `python benchmarks/inspect_cache.py [--pairs 100000 1000000]`.

    summary   the statistics and one pair in the terminal
    full      the same from all pairs
    page      --html

Seconds from the command to its end, processor seconds (on a busy machine only they say something), peak resident
memory, and the size of the page. Each figure is of a process of its own, one thread. The caches are those of
`loader.py`: a shard of 8,192 random pairs under many names.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import machine, table
from loader import make_cache, make_policy

_CALL = """
import json, resource, sys, time
start = time.perf_counter()
from tgdpo import cli
sys.argv = ["tgdpo", *sys.argv[1:]]
try:
    cli.main()
except SystemExit as exit_:
    assert exit_.code == 0, exit_.code
used = resource.getrusage(resource.RUSAGE_SELF)
# ru_maxrss begins with what the process that started this one had; VmHWM is this program's own.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
found = {
    "seconds": time.perf_counter() - start,
    "cpu": used.ru_utime + used.ru_stime,
    "peak_mb": int(peak.split()[1]) / 1024,
}
print(json.dumps(found), file=sys.stderr)
"""


def measure(*arguments: object) -> dict[str, float]:
    """Runs the command line in a process of its own."""
    command = [sys.executable, "-c", _CALL, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    result: dict[str, float] = json.loads(done.stderr.splitlines()[-1])
    return result


def main() -> None:
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
                found = measure("inspect", cache, "--tokenizer", folder / "policy", *arguments)
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
