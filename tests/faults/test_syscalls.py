"""`tgdpo score` whose n-th system call of a kind fails, or ends the process: injected by strace.

strace counts in every thread by itself, and preparation and each pass write in threads of their own. So the same
fault is injected again into the restarts, up to three times: it meets the next thread once the earlier ones' files are
there.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from processes import HELD_BY
from scoring import Scoring, Tried

STRACE = shutil.which("strace")
CALLS = {
    # kind: its system calls, the error that is injected, and calls of one thread in a run, rounded up
    "write": ("write,pwrite64,writev", "ENOSPC", 120),
    "fsync": ("fsync,fdatasync", "EIO", 12),
    "link": ("?link,linkat", "EIO", 5),
    "rename": ("?rename,?renameat,renameat2", "EIO", 5),
    "unlink": ("?unlink,unlinkat", "EIO", 20),
}
STEP = int(os.environ.get("TGDPO_SYSCALL_STEP", "0"))
"""Every so many n are tried; 0 tries two of a kind."""


def numbers(most: int) -> list[int]:
    """The n to be tried."""
    return list(range(1, most + 1, STEP)) if STEP else [2, most // 3 + 1]


@pytest.fixture(scope="module", autouse=True)
def injection_works() -> None:
    """Skips where there is no strace, or where it may not trace."""
    command = [STRACE or "strace", "-e", "inject=write:error=EIO", "/bin/echo", "text"]
    if STRACE is None or subprocess.run(command, capture_output=True).stdout:
        pytest.skip("strace is not installed, or may not trace here")


def run_with(fault: str, calls: str, scoring: Scoring, output: Path) -> tuple[int, int]:
    """Exit code of a run with the fault, and how often it was injected."""
    held = output.with_name(f"{output.name}-held")
    trace = output.with_name(f"{output.name}-trace")
    held.touch()
    scoring.log.write_text("")
    started = scoring.start(output, environment={HELD_BY: str(held)})
    (process,) = started.processes
    options = ["-f", "-qq", "-o", str(trace), "-e", f"trace={calls}", "-e", f"inject={calls}:{fault}"]
    tracer = subprocess.Popen([str(STRACE), *options, "-p", str(process.pid)], stderr=subprocess.DEVNULL)
    while process.is_alive() and "TracerPid:\t0\n" in Path(f"/proc/{process.pid}/status").read_text():
        time.sleep(0.002)
    held.unlink()
    (code,) = started.wait()
    tracer.wait()
    injected = sum("(INJECTED)" in line or "killed by SIGKILL" in line for line in trace.read_text().splitlines())
    return code, injected


@pytest.mark.parametrize("effect", ["fails", "kills"])
@pytest.mark.parametrize("kind", CALLS)
def test_the_nth_call(kind: str, effect: str, small_scoring: Scoring, tmp_path: Path, tried: Tried) -> None:
    calls, error, most = CALLS[kind]
    count, scoring = 0, small_scoring
    for n in numbers(most):
        output = tmp_path / str(n)
        fault = f"error={error}:when={n}" if effect == "fails" else f"signal=KILL:when={n}"
        for _ in range(3):
            code, injected = run_with(fault, calls, scoring, output)
            count += bool(injected)
            assert "Traceback" not in scoring.log.read_text()
            if effect == "kills":
                assert code == (-9 if injected else 0)
            elif code:
                # The line itself may be what was not written.
                assert code == 1
                assert "and run the same command again, it goes on" in scoring.log.read_text() or kind == "write"
            if not injected:
                break
        scoring.finish(output)
        assert not list(output.rglob("*.tmp"))
        shutil.rmtree(output)
    tried(f"times that a {kind} {effect}", count)
