"""An item in a process of its own: whatever it does, what comes back is an outcome.

Children are forked from a process that has imported everything and never touched CUDA, which saves some ten seconds
each; where that does not work (see `start_method`), they are started afresh.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

from .item import Context, Figures, Item, ItemError, SkippedError

Method = Literal["fork", "spawn"]
DETAIL = 1500
"""Characters kept of a traceback, or of what a killed process printed."""


def run_item(item: Item, context: Context, limit: float, method: Method) -> Figures:
    """`status`, `seconds`, and `reason` or figures.

    Args:
        limit: seconds after which the process and all that it started are killed.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"gpu-check-{item.name}-"))
    start = time.monotonic()
    try:
        outcome = _outcome(item, context.inside(folder), limit, method)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome | {"seconds": round(time.monotonic() - start, 1)}


def start_method(context: Context) -> Method:
    """fork, unless a library has touched CUDA at its import, which a forked child cannot outlive."""
    first = Item("start", _use_device, 120, "")
    return "fork" if run_item(first, context, first.seconds, "fork")["status"] == "ok" else "spawn"


def _use_device(_: Context) -> Figures:
    import torch

    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")
    return {}


def _outcome(item: Item, context: Context, limit: float, method: Method) -> Figures:
    output = context.folder / "output.txt"
    processes = multiprocessing.get_context(method)
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=_work, args=(item, context, sender, output))  # type: ignore[attr-defined]
    process.start()
    sender.close()
    has_ended = bool(wait([receiver, process.sentinel], timeout=limit))
    outcome: Figures | None = None
    try:
        outcome = receiver.recv() if receiver.poll() else None
    except EOFError:
        outcome = None
    if has_ended and outcome is None:
        process.join(10)  # its end of the pipe closes before it has an exit code
    _kill(process)
    if outcome is not None:
        return outcome
    printed = output.read_text(encoding="utf-8", errors="replace")[-DETAIL:] if output.is_file() else ""
    if has_ended:
        code = process.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return {"status": "failed", "reason": how, "detail": printed}
    return {"status": "timeout", "reason": f"killed after {limit:.0f} s", "detail": printed}


def _kill(process: Any) -> None:
    """Ends it and all that it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
    process.join()


def _work(item: Item, context: Context, sender: Connection, output: Path) -> None:
    os.setsid()
    with output.open("a", buffering=1, encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        sys.stdout = sys.stderr = stream
        sender.send(_tried(item, context))


def _tried(item: Item, context: Context) -> Figures:
    try:
        return {"status": "ok"} | item.work(context)
    except SkippedError as reason:
        return {"status": "skipped", "reason": str(reason)}
    except ItemError as error:
        return {"status": "failed", "reason": str(error)} | error.figures
    except BaseException as error:
        first = str(error).strip().split("\n", 1)[0]
        detail = traceback.format_exc()[-DETAIL:]
        return {"status": "failed", "reason": f"{type(error).__name__}: {first}", "detail": detail}
