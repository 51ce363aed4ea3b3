"""The reference texts of the options: what `apdm COMMAND --help` prints, and the options page of the documents.

python -m apdm.config.reference docs/reference/options.md     writes the page
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from apdm.config.audit_job import AuditJobConfig
from apdm.config.env import EnvConfig
from apdm.config.harden import HardenConfig
from apdm.config.options import Option, options_by_path
from apdm.config.perturb import PerturbConfig
from apdm.config.verify import VerifyConfig
from apdm.core.files import write_text

WIDTH = 100  # of the explanations, in characters
COMMANDS = {
    "harden": HardenConfig,
    "perturb": PerturbConfig,
    "audit": AuditJobConfig,
    "verify": VerifyConfig,
    "env": EnvConfig,
}


def help_text(cls: type) -> str:
    """Return what `--help` prints: every option of `cls` with its type, default and explanation."""
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
            "the file. Every command also takes `--verbose`, which shows the messages of the libraries too."
        ),
    ]
    for command, cls in COMMANDS.items():
        lines += ["", f"## apdm {command}", "", *_wrapped(_escaped(summary(cls)))]
        group = ""
        for option in options_by_path(cls).values():
            if option.group != group:
                group = option.group
                lines += ["", f"### {command}: {group}", "", *_wrapped(_escaped(summary(option.owner)))]
            lines += ["", *_paragraph(option)]
    return "\n".join(lines) + "\n"


def summary(cls: type) -> str:
    """Return the first paragraph of a class's docstring on one line."""
    return " ".join((cls.__doc__ or cls.__name__).strip().split("\n\n")[0].split())


def _default(option: Option) -> str:
    return "required" if option.required else f"default {option.default}"


def _paragraph(option: Option) -> list[str]:
    """One option as a paragraph of Markdown: its name, type and default on the first line, then the explanation."""
    default = "required" if option.required else f"default `{option.default}`"
    first = _wrapped(f"**`{option.path}`**: {_escaped(option.wanted)}; {default}.<br>")
    return [*first, *_wrapped(_escaped(option.help))]


def _escaped(text: str) -> str:
    """Escape a plain text, so that Markdown shows it unchanged."""
    return text.replace("<", "&lt;").replace("*", "\\*")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False, break_long_words=False)


def main(argv: Sequence[str]) -> None:
    """Write the options page to the path in `argv`."""
    (path,) = argv
    write_text(Path(path), options_page())


if __name__ == "__main__":
    main(sys.argv[1:])
