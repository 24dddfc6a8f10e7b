"""A scoring run to be disturbed, and what it must end in."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from processes import Launch, launch
from support import published

from tgdpo.data.cache import RewardCache
from tgdpo.data.verify import verify

Tried = Callable[[str, int], None]
"""Notes how often something was tried."""


@dataclass(frozen=True)
class Scoring:
    """A scoring run of four shards, with two rows that are set aside, and what it makes of them undisturbed."""

    words: tuple[object, ...]
    log: Path
    whole: Path
    """The finished cache, not to be changed."""
    seconds: float
    """How long a run takes."""

    def start(self, output: Path | str, *options: object, environment: dict[str, str] | None = None) -> Launch:
        """Starts the command with this --output."""
        return launch(*self.words, "--output", output, *options, log=self.log, environment=environment)

    def finish(self, output: Path) -> None:
        """Runs it to its end; the cache must be the undisturbed run's, byte for byte."""
        done = self.start(output)
        assert done.wait() == [0], done.output
        self.require_whole(output)

    def require_whole(self, output: Path) -> None:
        """Compares a finished cache with the undisturbed one."""
        assert published(output) == published(self.whole)
        assert verify(RewardCache(output)) == []
