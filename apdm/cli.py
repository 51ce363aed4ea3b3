"""The `apdm` command: one table of sub-commands, each a function of its own arguments."""

from __future__ import annotations

import atexit
import difflib
import importlib
import importlib.metadata
import logging
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from apdm import __version__
from apdm.config import AuditJobConfig, HardenConfig, PerturbConfig, VerifyConfig, help_text
from apdm.core.errors import Interrupted, UserError
from apdm.core.logging import EVERY_PROCESS, get_logger, messages_on_stderr
from apdm.core.terminal import say

logger = get_logger(__name__)

DONE, BAD_INPUT, INTERRUPTED = 0, 2, 3
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
PACKAGES = (
    *("torch", "diffusers", "transformers", "accelerate", "peft", "datasets", "safetensors"),
    *("numpy", "scipy", "pillow", "deepspeed", "bitsandbytes", "insightface", "onnxruntime"),
)


@dataclass(frozen=True)
class Command:
    """A sub-command: what it does, how it runs, and the options that `--help` prints."""

    summary: str
    run: Callable[[Sequence[str]], int | None]
    config: type | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command and return the exit code: 0 done, 1 not protected, 2 bad input or usage, 3 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    # Before the libraries are imported: their loading bars and hints would bury ours.
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells everybody of a kernel that nobody asked for
    with messages_on_stderr():
        try:
            return _dispatch(list(argv))
        except UserError as error:
            if not error.reported_by_other_process:
                logger.error("error: %s", error, extra=EVERY_PROCESS)
            return BAD_INPUT
        except (Interrupted, KeyboardInterrupt) as stop:
            if not getattr(stop, "reported_by_other_process", False):
                logger.error("interrupted %s", stop, extra=EVERY_PROCESS)
            return INTERRUPTED


def leave(code: int | None) -> NoReturn:
    """End this process with `code`, which `main` returned; a launched one without taking Python apart.

    gloo's threads outlive the process groups that DeepSpeed's objects still hold, and one that releases what the last
    exchange held while Python is taken apart aborts the process (exit -6) after all its work is done.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit._run_exitfuncs()  # trackers send what they still hold
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or DONE)
    sys.exit(code)


def console() -> NoReturn:
    """The program `apdm`."""
    leave(main())


def _dispatch(argv: list[str]) -> int:
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("-h", "--help"):
        if not argv:
            print(_usage(), file=sys.stderr)
            return BAD_INPUT
        say(_usage())
        return DONE
    if name == "--version":
        say(f"apdm {__version__}")
        return DONE
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(COMMANDS)}"
        raise UserError(f'unknown command "{name}"; {hint}')
    command = COMMANDS[name]
    # Help is printed here, before the command imports torch.
    if command.config is not None and {"-h", "--help"} & set(rest):
        say(f"usage: apdm {name} [--config FILE] [--key value ...]\n\n{help_text(command.config)}")
        return DONE
    return command.run(rest) or DONE


def _usage() -> str:
    rows = [f"  {name:<10} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: apdm COMMAND [--config FILE] [--key value ...]",
            "",
            *rows,
            "",
            "apdm COMMAND --help lists its options; apdm --version prints the version.",
            "Exit codes: 0 done, 1 not protected, 2 bad input, 3 interrupted with a checkpoint.",
        ]
    )


def _module(name: str) -> Callable[[Sequence[str]], int | None]:
    """`name`.main, imported only when it runs: most commands need torch."""

    def run(argv: Sequence[str]) -> int | None:
        code: int | None = importlib.import_module(name).main(list(argv))
        return code

    return run


def _environment(argv: Sequence[str]) -> None:
    """Print the versions and devices that a bug report needs."""
    if argv:
        raise UserError("apdm env takes no options")
    import torch

    rows = {"apdm": __version__, "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        try:
            rows[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            rows[package] = "not installed"
    rows["cpu"] = f"{torch.get_num_threads()} threads"
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        for index in range(torch.accelerator.device_count()):
            name = getattr(torch.get_device_module(kind), "get_device_name", lambda i: "")(index)
            rows[f"{kind}:{index}"] = name
    else:
        rows["accelerator"] = "none"
    say(*(f"{name:<14} {value}" for name, value in rows.items()))


COMMANDS = {
    "harden": Command("harden a pipeline against personalisation", _module("apdm.jobs.harden"), HardenConfig),
    "perturb": Command(
        "protect photos against fine-tuning and zero-shot adapters", _module("apdm.jobs.perturb"), PerturbConfig
    ),
    "audit": Command(
        "attack base and hardened model, and say whether they are protected", _module("apdm.jobs.audit"), AuditJobConfig
    ),
    "verify": Command(
        "check a folder that a run wrote, and that nothing of a subject is in it",
        _module("apdm.jobs.verify"),
        VerifyConfig,
    ),
    "env": Command("print versions and devices", _environment),
}
