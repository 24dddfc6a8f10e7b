"""Many shards over many Ray workers that die now and then: `python benchmarks/scale_simulation.py`.

`tgdpo score --launcher ray` with an engine that sleeps for as long as a shard takes, on a local Ray. Random workers are
killed (-9) while it runs. Prints what the coordination costs (the time between two shards of a worker: handing out,
reading, writing, publishing) and what the deaths cost, and checks that every shard is there once.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from common import machine, table

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support import make_model, make_tokenizer

TESTS = Path(__file__).parents[1] / "tests"


class Event(NamedTuple):
    """Something that an engine noted."""

    process: int
    what: str
    model: str
    time: float


def read_log(path: Path) -> list[Event]:
    """All events so far; a line that is being written is left out."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    fields = [line.split() for line in lines]
    return [Event(int(f[0]), f[1], f[2], float(f[3])) for f in fields if len(f) == 4]


def run(folder: Path, options: argparse.Namespace) -> tuple[float, int, list[Event]]:
    """The whole of `tgdpo score`.

    Returns:
        Seconds from call to end, the number of workers that were killed, and what the engines noted.
    """
    model = make_model(folder / "model", make_tokenizer(chat=False), seed=0)
    rows = [{"prompt": f"{n}:", "chosen": f" yes {n}", "rejected": f" no {n}"} for n in range(options.shards)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    log = folder / "log"
    (folder / "settings.json").write_text(json.dumps({"seconds": options.seconds, "log": str(log)}), encoding="utf-8")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
        "SLOW_ENGINE_SETTINGS": str(folder / "settings.json"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tgdpo", "score", "--dataset", folder / "rows.jsonl", "--reference", model,
               "--output", folder / "cache", "--engine", "slow_engine.SlowEngine", "--pairs-per-shard", 1,
               "--launcher", "ray", "--address", "local", "--workers", options.workers]  # fmt: skip
    start = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.DEVNULL)
    killed = kill_now_and_then(process, log, options)
    if process.returncode:
        sys.exit("tgdpo score failed")
    return time.perf_counter() - start, killed, read_log(log)


def kill_now_and_then(process: "subprocess.Popen[bytes]", log: Path, options: argparse.Namespace) -> int:
    """Kills a worker in the middle of a shard after every so many shards, until the run ends."""
    draw = random.Random(0)
    at = sorted(draw.sample(range(options.shards // 20, options.shards * 9 // 10), options.deaths))
    killed = 0
    while process.poll() is None:
        time.sleep(0.2)
        events = read_log(log)
        if killed < len(at) and sum(event.what == "scored" for event in events) >= at[killed]:
            last = {event.process: event for event in events}
            busy = [event.process for event in last.values() if event.what == "score" and _lives(event.process)]
            if busy:
                os.kill(draw.choice(busy), signal.SIGKILL)
                killed += 1
    return killed


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def report(folder: Path, seconds: float, killed: int, events: list[Event], options: argparse.Namespace) -> str:
    """A table of what was seen."""
    by_process: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        by_process[event.process].append(event)
    gaps = [b.time - a.time for own in by_process.values() for a, b in pairwise(own) if a.what == "scored"]
    working = [b.time - a.time for own in by_process.values() for a, b in pairwise(own) if b.what == "scored"]
    lost = [own[-1] for own in by_process.values() if own[-1].what == "score"]
    first, last = min(e.time for e in events if e.what == "score"), max(e.time for e in events)
    shards = sorted(path.name for path in (folder / "cache").glob("part-*"))
    wanted = [f"part-{n:05d}-of-{options.shards:05d}.parquet" for n in range(options.shards)]
    manifest = json.loads((folder / "cache" / "_manifest.json").read_bytes())
    rows = [
        ["what", "seen"],
        ["shards there", f"{len(set(shards) & set(wanted))} of {options.shards}, {manifest['counts']['scored']} pairs"],
        ["shards scored", f"{len(working)}, {len(lost)} more cut off by {killed} kills"],
        ["a worker's time on a shard, mean", f"{sum(working) / len(working):.3f} s"],
        ["between two of its shards, mean", f"{1000 * sum(gaps) / len(gaps):.1f} ms"],
        ["coordination, of the working time", f"{sum(gaps) / sum(working):.2%}"],
        [
            "first to last shard",
            f"{last - first:.1f} s, {sum(working) / options.workers:.1f} s if nothing cost anything",
        ],
        ["whole call", f"{seconds:.1f} s"],
    ]
    if shards != wanted or manifest["counts"]["scored"] != options.shards:
        sys.exit("shards are lost or doubled:\n" + table(rows))
    return table(rows)


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0, help="what a shard takes")
    parser.add_argument("--deaths", type=int, default=5, help="workers that are killed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = report(folder, *run(folder, options), options)
    print(f"{machine()}, {options.workers} workers, {options.seconds} s a shard\n\n{result}")


if __name__ == "__main__":
    main()
