"""The reference texts of the options: the short and the complete help of a command, and the options page.

python -m apdm.config.reference docs/reference/options.md               writes the page of the options
python -m apdm.config.reference docs/reference/diffusers-options.md     writes the page of diffusers' names
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args, get_origin

from apdm.config import diffusers_names
from apdm.config.audit_job import AuditJobConfig
from apdm.config.compare import CompareConfig
from apdm.config.env import EnvConfig
from apdm.config.harden import HardenConfig
from apdm.config.options import HEADINGS, Option, options_by_path
from apdm.config.perturb import PerturbConfig
from apdm.config.report import ReportConfig
from apdm.config.types import without_none
from apdm.config.verify import VerifyConfig
from apdm.core.files import write_text

WIDTH = 100  # of the explanations, in characters
MANY = 40  # a command with more options has a short help
SHORT_WIDTH = 120  # of the lines of the short help
UNSET = ("null", "[]", '""')  # defaults that stand for nothing given
COMMANDS = {
    "harden": HardenConfig,
    "perturb": PerturbConfig,
    "audit": AuditJobConfig,
    "verify": VerifyConfig,
    "report": ReportConfig,
    "compare": CompareConfig,
    "env": EnvConfig,
}


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
    ]
    group = ""
    for option in options_by_path(cls).values():
        if option.group != group:
            group = option.group
            lines += ["", f"{group}: {summary(option.owner)}"]
        lines.append(f"--{option.path}  {option.wanted}; {_default(option)}")
        lines += textwrap.wrap(option.help, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def options_page() -> str:
    """Return the options of all commands as one page of Markdown: a section per command, its groups as subsections."""
    lines = [
        "# Options",
        "",
        "<!-- Written by `python -m apdm.config.reference docs/reference/options.md`; edit the help texts in",
        "     apdm/config/ instead. -->",
        "",
        *_wrapped(
            "The command line takes `--name value` and, for an option in a group, `--group.name value`. A YAML file "
            "(`--config FILE`) and the Python API take the same names, with groups nested. The command line wins over "
            "the file. Every command also takes `--verbose`, which shows the messages of the libraries too. "
            "`apdm COMMAND --help` shows the options that are marked common, `--help-all` shows all."
        ),
    ]
    for command, cls in COMMANDS.items():
        lines += ["", f"## apdm {command}", "", *_wrapped(_escaped(summary(cls)))]
        group = ""
        for option in options_by_path(cls).values():
            if option.group != group:
                group = option.group
                lines += ["", f"### {command}: {group}", "", *_wrapped(_escaped(summary(option.owner)))]
            lines += ["", *_paragraph(option, common=option.heading(command) is not None)]
    return "\n".join(lines) + "\n"


def summary(cls: type) -> str:
    """Return the first paragraph of a class's docstring on one line."""
    return " ".join((cls.__doc__ or cls.__name__).strip().split("\n\n")[0].split())


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


def _default(option: Option) -> str:
    return "required" if option.required else f"default {option.default}"


def _paragraph(option: Option, *, common: bool) -> list[str]:
    """One option as a paragraph of Markdown: its name, type and default on the first line, then the explanation."""
    default = "required" if option.required else f"default `{option.default}`"
    mark = "; common" if common else ""
    first = _wrapped(f"**`{option.path}`**: {_escaped(option.wanted)}; {default}{mark}.<br>")
    return [*first, *_wrapped(_escaped(option.help))]


def _escaped(text: str) -> str:
    """Escape a plain text, so that Markdown shows it unchanged."""
    return text.replace("<", "&lt;").replace("*", "\\*")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False, break_long_words=False)


PAGES = {"options.md": options_page, "diffusers-options.md": diffusers_names.page}


def main(argv: Sequence[str]) -> None:
    """Write the pages whose paths are in `argv`."""
    for path in map(Path, argv):
        write_text(path, PAGES[path.name]())


if __name__ == "__main__":
    main(sys.argv[1:])
