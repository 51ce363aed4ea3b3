"""The exceptions that end a job early. The command line turns each into an exit code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class JobEnded(BaseException):
    """Base class of the exceptions that end a job early. The message is one line for the user.

    Attributes:
        reported_by_other_process: another process of the run already printed this error, so this one stays silent.
    """

    reported_by_other_process = False


class UserError(JobEnded, Exception):
    """The input or the usage is wrong. The message says what is wrong, where, and how to mend it. Exit code 2.

    Attributes:
        path: the file or folder that is missing; None if the error is about something else.
    """

    path: str | None = None


class OtherProcessCrashed(JobEnded, Exception):
    """Another process of the run met an exception that is a fault of the program. Exit code 4."""


class Interrupted(JobEnded):
    """The job was asked to stop. Exit code 3 if it can be continued, otherwise 128 + the number of the signal.

    Like KeyboardInterrupt, this is not a subclass of `Exception`. It can be raised at any moment, and code that catches
    the exceptions of a damaged file or a failed attack must not catch it.

    Attributes:
        number: the signal that asked the job to stop; None if that is not known.
        resumable: whether a checkpoint or finished work was kept, so that the job can be continued.
    """

    def __init__(
        self, *message: str, number: int | None = None, resumable: bool = False, reported_by_other_process: bool = False
    ) -> None:
        super().__init__(*message)
        self.number, self.resumable, self.reported_by_other_process = number, resumable, reported_by_other_process


def first_line(error: BaseException) -> str:
    """The first line of an exception's message that is not empty, or the name of its class.

    diffusers' advice to programmers on weights of another size is left out.
    """
    message = str(error).partition(" If you want to instead")[0]
    return next((line.strip(" .") for line in message.splitlines() if line.strip(" .")), type(error).__name__)


def loading_mend(error: Exception, otherwise: str) -> str:
    """How to mend what a library raised while it loaded a file: a package may be missing; `otherwise` if none is."""
    return "install that package" if isinstance(error, ImportError) else otherwise


def one_line(error: BaseException, length: int | None = None) -> str:
    """An exception's whole message on one line, cut after `length` characters."""
    return " ".join(str(error).split())[:length]


def absent(path: str, message: str) -> UserError:
    """Return an error about a file or folder that is missing or of the wrong kind."""
    error = UserError(message)
    error.path = path
    return error


class UserErrors(UserError):
    """Several mistakes at once. Each is a message of its own.

    Args:
        errors: the mistakes, at least one.
    """

    def __init__(self, errors: Sequence[UserError]) -> None:
        super().__init__(list(errors))
        self.errors = list(errors)

    def __str__(self) -> str:
        return "\n".join(map(str, self.errors))


class Faults:
    """Runs checks that do not depend on one another, so that the user hears of all mistakes and not of the first alone.

    with Faults() as faults:
        photos = faults.of(lambda: load_photos(folder))
        judges = faults.of(lambda: load_judges(names))

    At its end the block raises what was found. Behind it, all values can be used.
    """

    def __init__(self) -> None:
        self.found: list[UserError] = []

    def of(self, check: Callable[[], Result]) -> Result:
        """Return what `check()` returns. If it raises UserError, keep the error and return None, against the type."""
        try:
            return check()
        except UserError as error:
            self.add(error)
            return None  # type: ignore[return-value]

    def add(self, error: UserError) -> None:
        """Keep an error, unless it speaks of a path that is already said to be missing.

        Of errors that say the same and mend it otherwise the last one is kept, because later checks know more.
        """
        for one in error.errors if isinstance(error, UserErrors) else [error]:
            if any(known.path and known.path in str(one) for known in self.found):
                continue
            same = [number for number, known in enumerate(self.found) if _fault(known) == _fault(one)]
            if same:
                self.found[same[0]] = one
            else:
                self.found.append(one)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, UserError):
            self.add(error)
        elif error is not None:
            return
        if len(self.found) == 1:
            raise self.found[0] from None
        if self.found:
            raise UserErrors(self.found) from None


def _fault(error: UserError) -> str:
    """What is wrong, without how to mend it, which stands behind the last semicolon."""
    message = str(error)
    return message.rpartition("; ")[0] or message


def each(items: Iterable[Item], read: Callable[[Item], Result]) -> list[Result]:
    """Return what `read` returns for each item, in their order. If it fails for some, all errors are raised at once."""
    with Faults() as faults:
        found = [faults.of(partial(read, item)) for item in items]
    return found
