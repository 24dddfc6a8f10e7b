"""The errors that a user may meet. Each says what was set, why it cannot work and what to do, in one line."""

import errno

_NO_MEMORY = (
    *("can't start new thread", "not enough memory", "can't allocate memory", "Cannot allocate memory"),
    *("std::bad_alloc", "failed to map segment from shared object"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this machine's memory, or the limit of it, has ended: each library has an error of its own for that."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError | OSError | ImportError) and any(text in str(error) for text in _NO_MEMORY)


class TgdpoError(Exception):
    """Base of all expected errors; the command line prints it as one line and exits with `exit_code`.

    `problem` says what was set and why it cannot work, `fix` what to do about it.
    """

    exit_code = 1

    def __init__(self, problem: str, *, fix: str) -> None:
        self.problem = problem
        self.fix = fix
        super().__init__(f"{problem}: {fix}")

    def __reduce__(self) -> tuple[object, ...]:
        # Errors of other processes and machines arrive pickled, and pickle knows no keyword arguments.
        return _rebuild, (type(self), self.problem, self.fix)


def _rebuild(kind: type[TgdpoError], problem: str, fix: str) -> TgdpoError:
    return kind(problem, fix=fix)


class UsageError(TgdpoError):
    """The call is wrong: an option, a configuration file, a missing package."""

    exit_code = 2


class DataError(TgdpoError):
    """The preference set cannot be used as it is."""


class ModelError(TgdpoError):
    """A model or tokenizer is missing, broken, or does not fit the others."""


class CacheError(TgdpoError):
    """The reward cache is missing, unfinished, changed, or made with other settings."""


class StorageError(TgdpoError):
    """An object store does not take or give a file; what is finished stays there."""


class TrainingError(TgdpoError):
    """Training cannot go on: a loss that is not finite, a run folder of another configuration."""


class HubError(TgdpoError):
    """The Hugging Face hub did not take what was pushed; it lies where it was."""
