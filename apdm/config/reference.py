"""The pages of the options in the documents.

python -m apdm.config.reference docs/reference/options.md               writes the page of the options
python -m apdm.config.reference docs/reference/diffusers-options.md     writes the page of diffusers' names
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

from apdm.config import diffusers_names
from apdm.config.help import COMMANDS, WIDTH, summary
from apdm.config.options import Option, options_by_path
from apdm.core.files import write_text


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
            "the file. Every command also takes `--verbose`, which shows the messages of the libraries too, and "
            "`--quiet`, which shows errors and one line about how it ended. demo, harden, perturb, audit, attack, "
            "verify and push take `--json`, which prints one JSON object on standard output. "
            "`apdm COMMAND --help` shows the options that are marked common, `--help-all` shows all."
        ),
    ]
    for command, cls in COMMANDS.items():
        lines += ["", f"## apdm {command}", "", *_wrapped(_escaped(summary(cls)))]
        parent = next((name for name, one in COMMANDS.items() if one is not cls and issubclass(cls, one)), None)
        if parent is not None:
            lines += ["", *_wrapped(f"It takes the options of [apdm {parent}](#apdm-{parent}) too.")]
        group = ""
        for option in options_by_path(cls).values():
            if parent is not None and option.path not in vars(cls)["__annotations__"]:
                continue
            if option.group != group:
                group = option.group
                lines += ["", f"### {command}: {group}", "", *_wrapped(_escaped(summary(option.owner)))]
            lines += ["", *_paragraph(option, common=option.heading(command) is not None)]
    return "\n".join(lines) + "\n"


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


def main(argv: Sequence[str] | None = None) -> None:
    """Write the pages whose paths the command line names."""
    parser = argparse.ArgumentParser(description="Write the reference pages of the documents.")
    parser.add_argument("paths", nargs="+", type=Path, help=f"files to write, named {' or '.join(PAGES)}")
    for path in parser.parse_args(argv).paths:
        if path.name not in PAGES:
            parser.error(f"no page is named {path.name}: choose {' or '.join(PAGES)}")
        write_text(path, PAGES[path.name]())


if __name__ == "__main__":
    main()
