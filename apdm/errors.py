"""The two ways a command ends early, each with its exit code."""


class UserError(Exception):
    """Bad input or usage: one line that says what is wrong, where, and how to mend it. Exit code 2."""


class Interrupted(Exception):
    """Stopped from outside with a checkpoint to resume from. Exit code 3."""
