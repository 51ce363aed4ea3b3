"""The exceptions that end a job early. The command line turns each into an exit code."""


class JobEnded(BaseException):
    """Base class of the exceptions that end a job early. The message is one line for the user.

    Attributes:
        reported_by_other_process: another process of the run already printed this error, so this one stays silent.
    """

    reported_by_other_process = False


class UserError(JobEnded, Exception):
    """The input or the usage is wrong. The message says what is wrong, where, and how to mend it. Exit code 2."""


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

    def __init__(self, *message: str, number: int | None = None, resumable: bool = False) -> None:
        super().__init__(*message)
        self.number, self.resumable = number, resumable
