"""The two ways a command ends early, each with its exit code."""


class Ending(Exception):
    """A command's early end, told in one line. elsewhere: by another of the run's processes, so not by this one."""

    elsewhere = False


class UserError(Ending):
    """Bad input or usage: one line that says what is wrong, where, and how to mend it. Exit code 2."""


class Interrupted(Ending):
    """Stopped from outside with a checkpoint to resume from. Exit code 3."""
