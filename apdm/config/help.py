"""The help on the terminal: of the program, and the short and the complete help of each command."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from typing import Literal, get_args, get_origin

from apdm.config.commands.app import AppConfig
from apdm.config.commands.attack import AttackConfig
from apdm.config.commands.audit import AuditJobConfig
from apdm.config.commands.compare import CompareConfig
from apdm.config.commands.demo import DemoConfig
from apdm.config.commands.env import EnvConfig
from apdm.config.commands.harden import HardenConfig
from apdm.config.commands.init import InitConfig
from apdm.config.commands.perturb import PerturbConfig
from apdm.config.commands.push import PushConfig
from apdm.config.commands.report import ReportConfig
from apdm.config.commands.reproduce import ReproduceConfig
from apdm.config.commands.verify import VerifyConfig
from apdm.config.options import HEADINGS, Option, options_by_path
from apdm.config.types import without_none

WIDTH = 100  # of the explanations, in characters
MANY = 20  # a command with more options has a short help
SHORT_WIDTH = 120  # of the lines of the short help
UNSET = ("null", "[]", '""')  # defaults that stand for nothing given
OTHER_CODES = (
    "2 bad input, 3 interrupted with work to go on from, 4 a fault of the program or of a library, "
    "128 + n interrupted by signal n with nothing to go on from."
)
COMMANDS = {
    "demo": DemoConfig,
    "init": InitConfig,
    "harden": HardenConfig,
    "perturb": PerturbConfig,
    "audit": AuditJobConfig,
    "attack": AttackConfig,
    "verify": VerifyConfig,
    "push": PushConfig,
    "report": ReportConfig,
    "compare": CompareConfig,
    "app": AppConfig,
    "reproduce": ReproduceConfig,
    "env": EnvConfig,
}


def usage(summaries: Mapping[str, str]) -> str:
    """Return what `apdm --help` prints.

    Args:
        summaries: {command: what it does}, in the order in which they are shown.
    """
    rows = [f"  {name:<10} {summary}" for name, summary in summaries.items()]
    return "\n".join(
        [
            "usage: apdm COMMAND [--config FILE] [--key value ...]",
            "",
            *rows,
            "",
            "apdm COMMAND --help lists its common options, --help-all lists all; apdm --version prints the version.",
            "apdm COMMAND --verbose also shows the messages of the libraries; --quiet shows errors, and one line about",
            "how it ended; --json prints the summary as one JSON object (commands that end with one).",
            exit_codes("0 done, 1 not protected or a problem found"),
        ]
    )


def exit_codes(first: str) -> str:
    """Return the lines on exit codes; `first` says what 0 and 1 mean."""
    return textwrap.fill(f"Exit codes: {first}, {OTHER_CODES}", SHORT_WIDTH, subsequent_indent="  ")


def command_help(command: str, codes: str, *, everything: bool) -> list[str]:
    """Return the lines of the help of one command.

    Args:
        codes: what its exit codes 0 and 1 mean.
        everything: all options. Without it, a command of many options shows those that people often set.
    """
    cls = COMMANDS[command]
    options = options_by_path(cls)
    everything = everything or len(options) <= MANY
    lines = [
        f"usage: apdm {command} [--config FILE] [--key value ...]",
        "",
        help_text(cls) if everything else short_help(command),
        "",
        exit_codes(codes),
    ]
    if not everything:
        lines.append(f"`apdm {command} --help-all` shows all {len(options)} options, and explains them.")
    return lines


def common_options(command: str) -> dict[str, list[Option]]:
    """Return {heading: the options that many people set} of a command.

    Required options come first, then those of the command itself, those that it shares, and those of groups.
    """
    cls = COMMANDS[command]
    owners = {name: place for place, base in reversed([*enumerate(cls.__mro__)]) for name in _annotations(base)}
    found: dict[str, list[Option]] = {heading: [] for heading in HEADINGS}
    order = sorted(options_by_path(cls).values(), key=lambda one: (not one.required, owners.get(one.path, len(owners))))
    for option in order:
        if (heading := option.heading(command)) is not None:
            found[heading].append(option)
    return {heading: options for heading, options in found.items() if options}


def short_help(command: str) -> str:
    """Return what `--help` prints: the options that many people set, one in each line, under plain headings."""
    groups = common_options(command)
    names = [option.path for options in groups.values() for option in options]
    column = max(map(len, names), default=0) + len("  --") + 2
    lines = [summary(COMMANDS[command])]
    for heading, options in groups.items():
        lines += ["", f"{heading}:"]
        for option in options:
            tail = f" [{_choice(option)}]"
            lines.append(
                f"  --{option.path}".ljust(column) + brief(option.help, SHORT_WIDTH - column - len(tail)) + tail
            )
    return "\n".join(lines)


def brief(text: str, width: int) -> str:
    """Return the beginning of a text: the first sentence, or as much of it as ends at a mark and fits into `width`."""
    sentence = re.split(r"(?<=[\w)\"`])\.(?= |$)", " ".join(text.split()))[0]
    for marks in ("$", ":(?= )", r"[,;](?= )| \("):
        ends = [mark.start() for mark in re.finditer(marks, sentence) if mark.start() <= width]
        if ends:
            return sentence[: ends[-1]]
    return textwrap.shorten(sentence, width, placeholder=" ...")


def help_text(cls: type) -> str:
    """Return what `--help-all` prints: every option of `cls` with its type, default and explanation."""
    lines = [
        summary(cls),
        "",
        "--config FILE",
        "    YAML with any of these options; the command line wins",
        "--verbose",
        "    also show the messages of the libraries, and the progress bars of files",
        "--quiet",
        "    show errors, and one line about how it ended",
        "--json",
        "    print the summary as one JSON object on standard output, if the command ends with a summary",
    ]
    group = ""
    for option in options_by_path(cls).values():
        if option.group != group:
            group = option.group
            lines += ["", f"{group}: {summary(option.owner)}"]
        lines.append(f"--{option.path}  {option.wanted}; {_default(option)}")
        lines += textwrap.wrap(option.help, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def summary(cls: type) -> str:
    """Return the first paragraph of a class's docstring on one line."""
    return " ".join((cls.__doc__ or cls.__name__).strip().split("\n\n")[0].split())


def _default(option: Option) -> str:
    return "required" if option.required else f"default {option.default}"


def _annotations(cls: type) -> list[str]:
    """The names of the fields that a class itself declares."""
    return list(vars(cls).get("__annotations__", {}))


def _choice(option: Option) -> str:
    """The default of an option, and what else may be chosen if there are only a few possibilities."""
    kind = without_none(option.kind)
    words = list(map(str, get_args(kind))) if get_origin(kind) is Literal else []
    default = "required" if option.required else "not set" if option.default in UNSET else option.default
    if default.startswith('"') and " " not in default:
        default = json.loads(default)
    others = [word for word in words if word != default]
    return f"{default}; or {', '.join(others)}" if others else default
