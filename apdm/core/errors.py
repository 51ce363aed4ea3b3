"""The two ways a command ends early, each with its exit code."""


class Ending(BaseException):
    """A command's early end, told in one line. elsewhere: by another of the run's processes, so not by this one."""

    reported_by_other_process = False


class UserError(Ending, Exception):
    """Bad input or usage: one line that says what is wrong, where, and how to mend it. Exit code 2."""


class Interrupted(Ending):
    """Stopped from outside with what is needed to go on. Exit code 3.

    No `Exception`, like KeyboardInterrupt: it may come at any moment, and whoever guards against a damaged file or a
    failing attack must not take it for one.
    """
