"""`tgdpo score` under limits of its address space: it is done, or ends with a line; it never waits for ever."""

import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from scoring import Scoring, Tried

LIMITS = int(os.environ.get("TGDPO_MEMORY_LIMITS", "2"))
SECONDS = 900
"""Much more than a run takes; a hang is found here."""
ENDS = {0, 1, 127, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGKILL}
"""Libraries in C and Rust end the process themselves where they get no memory, and say so."""

PEAK = "import re, sys; print(re.search(r'VmPeak:\\s+(\\d+)', open('/proc/self/status').read())[1], file=sys.stderr)"


def run(words: list[str], limit: int | None) -> tuple[int, str]:
    """Exit code and what was written to standard error, of a run with so many bytes of address space."""

    def set_limit() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    program = f"import atexit; atexit.register(lambda: exec({PEAK!r})); from tgdpo.cli import main; main()"
    with tempfile.TemporaryFile("w+") as errors:
        # Files, since a pipe would be read by a thread, and the child has to get its limit.
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
            stdout=subprocess.DEVNULL, stderr=errors, timeout=SECONDS, preexec_fn=set_limit,
        )  # fmt: skip
        errors.seek(0)
        return done.returncode, errors.read()


@pytest.mark.skipif(sys.platform != "linux", reason="address spaces are limited on Linux")
def test_limits_of_memory(small_scoring: Scoring, tmp_path: Path, chance: random.Random, tried: Tried) -> None:
    words = [*map(str, small_scoring.words), "--output"]
    code, errors = run([*words, str(tmp_path / "free")], None)
    assert code == 0, errors
    peak = 1024 * int(errors.split()[-1])
    ends = []
    for number in range(LIMITS):
        output = tmp_path / str(number)
        code, errors = run([*words, str(output)], int(peak * chance.uniform(0.3, 0.56)))
        assert code in ENDS, errors
        if code == 1:
            lines = [line for line in errors.splitlines() if line.startswith("tgdpo: ")]
            assert len(lines) == 1, errors
        ends.append(code)
        code, errors = run([*words, str(output)], None)
        assert code == 0, errors  # what was left is continued
        small_scoring.require_whole(output)
    tried("tgdpo score with too little memory", sum(code != 0 for code in ends))
