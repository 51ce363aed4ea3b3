"""The program `apdm`: chooses the command, turns what a job raises into an exit code, and ends the process."""

from __future__ import annotations

import atexit
import difflib
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

from apdm.cli.commands import BAD_INPUT, COMMANDS, DONE
from apdm.config.help import command_help, usage
from apdm.core.errors import Interrupted, JobEnded, OtherProcessCrashed, UserError, UserErrors
from apdm.core.launcher import is_launched, worked_with_others
from apdm.core.libraries import library_messages
from apdm.core.logging import EVERY_PROCESS, get_logger, messages_on_stderr
from apdm.core.quick_imports import allow_quick_imports
from apdm.core.terminal import Style, open_closed_streams, say, show_progress, summaries_in, use_utf8
from apdm.core.versions import VERSION

logger = get_logger(__name__)

# More exit codes. INTERRUPTED: there is work to go on from. CRASHED is not the code 1 with which Python ends after an
# exception, because a script would take that for "not protected". STOPPED: interrupted without work to go on from; as
# shells do, the number of the signal is added.
INTERRUPTED, CRASHED, STOPPED = 3, 4, 128
VERBOSE, QUIET, JSON = "--verbose", "--quiet", "--json"
SWITCHES = (VERBOSE, QUIET, JSON)  # of every command
HELP, HELP_ALL = {"-h", "--help"}, {"--help-all", "--help_all"}
PATIENCE = 15.0  # seconds that a process waits for the one that reports an error; the launcher ends it before


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command.

    Args:
        argv: the words after `apdm`; by default those of this process.

    Returns:
        The exit code: 0 done, 1 not protected or a problem found, 2 bad input or usage, 3 interrupted with work to go
        on from, 4 another process of the run has crashed, 128 + the number of the signal if interrupted without. If
        this process crashes, the exception is raised.
    """
    argv, switches = _take_switches(sys.argv[1:] if argv is None else argv)
    quiet = QUIET in switches
    level = logging.ERROR if quiet else logging.DEBUG if VERBOSE in switches else logging.INFO
    style: Style = "json" if JSON in switches else "quiet" if quiet else "full"
    shown = library_messages(shown=VERBOSE in switches)
    with messages_on_stderr(level), show_progress(not quiet), shown, summaries_in(style):
        try:
            _require_summary(argv, switches)
            return _dispatch(argv)
        except UserError as error:
            _report(error, "error: %s")
            if style == "json" and not error.reported_by_other_process:
                say(json.dumps({"error": str(error), "exit_code": BAD_INPUT}))
            return BAD_INPUT
        except KeyboardInterrupt:  # before the job began to handle signals
            logger.error("interrupted")
            return STOPPED + signal.SIGINT
        except Interrupted as stop:
            if not str(stop):  # the signal came before the job could say what is kept
                logger.error("interrupted")
            elif not stop.reported_by_other_process:
                logger.error("interrupted: %s", stop, extra=EVERY_PROCESS)
            return INTERRUPTED if stop.resumable else STOPPED + (stop.number or signal.SIGTERM)
        except OtherProcessCrashed as crash:
            _report(crash, "error: another process of this run has crashed: %s")
            return CRASHED


def _require_summary(argv: Sequence[str], switches: set[str]) -> None:
    """Raise UserError if the command has no summary that `--json` could print."""
    if JSON in switches and argv and argv[0] in COMMANDS and not COMMANDS[argv[0]].summarizes:
        able = ", ".join(name for name, command in COMMANDS.items() if command.summarizes)
        raise UserError(f"apdm {argv[0]} prints no {JSON}; {able} do")


def _report(error: JobEnded, message: str) -> None:
    """Print an error, or leave that to the process that reports it.

    A launcher ends all processes as soon as one of them has ended. So one that does not report must not end first.
    """
    if not error.reported_by_other_process:
        for one in error.errors if isinstance(error, UserErrors) else [error]:
            logger.error(message, one, extra=EVERY_PROCESS)
    elif is_launched():
        time.sleep(PATIENCE)


def leave(code: int) -> NoReturn:
    """End this process with an exit code; in a distributed run without Python's own clean-up.

    gloo's threads outlive the process groups that DeepSpeed's objects still hold. If such a thread releases memory of
    its last exchange while Python is being taken down, the process aborts (exit code -6) although all its work is done.
    """
    if worked_with_others():
        atexit._run_exitfuncs()  # trackers send what they still hold
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def console(argv: Sequence[str] | None = None) -> NoReturn:
    """Run `apdm` as a program: `main`, then the end of the process.

    An exception that `main` does not handle is a fault of the program. Its traceback is printed, and the exit code is
    CRASHED. The same holds if a library asks Python to exit.

    Args:
        argv: the words after `apdm`; by default those of this process.
    """
    open_closed_streams()
    use_utf8()
    allow_quick_imports()
    try:
        code = main(argv)
    except BaseException:
        traceback.print_exc()
        print(f"apdm: crashed with exit code {CRASHED}; the lines above say where", file=sys.stderr)
        code = CRASHED
    leave(code)


def _take_switches(argv: Sequence[str]) -> tuple[list[str], set[str]]:
    """Take the switches of every command, each of which may be followed by true or false, out of a command line.

    They are no options of a job, because they change nothing but what is shown.

    Returns:
        The other words, and the switches that are on.
    """
    joined = tuple(f"{switch}=" for switch in SWITCHES)
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith(joined) else [word])]
    found: set[str] = set()
    for switch in SWITCHES:
        while switch in words:
            place = words.index(switch)
            del words[place]
            given = words.pop(place) if words[place : place + 1] in (["true"], ["false"]) else "true"
            (found.add if given == "true" else found.discard)(switch)
    return words, found


def _dispatch(argv: list[str]) -> int:
    if not argv:
        print(_program_help(), file=sys.stderr)
        return BAD_INPUT
    name, *rest = argv
    if name in HELP | HELP_ALL:
        say(_program_help())
        return DONE
    if name == "--version":
        say(f"apdm {VERSION}")
        return DONE
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(COMMANDS)}"
        raise UserError(f'unknown command "{name}"; {hint}')
    command = COMMANDS[name]
    if (HELP | HELP_ALL) & set(rest):
        say(*command_help(name, command.codes, everything=bool(HELP_ALL & set(rest))))
        return DONE
    return command.run(rest)


def _program_help() -> str:
    return usage({name: command.summary for name, command in COMMANDS.items()})
