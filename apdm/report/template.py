"""Writes a page from a template of this folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from apdm.core.files import write_text
from apdm.report.axes import AXES
from apdm.report.curves import LINE_COLOURS
from apdm.report.numbers import number, percent, plain

KIND = "protection audit"  # in the title of every page
TITLE_BYTES = 2048  # at the beginning of a page, within which its title stands


def write_page(template: str, output: str | Path, content: Mapping[str, Any]) -> None:
    """Write the page that a template of this folder gives. `content` is {name in the template: value}."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals |= {"kind": KIND, "axes": AXES, "line_colours": LINE_COLOURS}
    environment.filters |= {"num": number, "percent": percent, "plain": plain}
    environment.filters["light"] = in_light
    write_text(output, environment.get_template(template).render(**content))


def in_light(style: str) -> str:
    """A style with the light colours themselves in place of their names, for programs that know no names."""
    whole = Path(__file__).with_name("style.css.j2").read_text(encoding="utf-8")
    light = dict(re.findall(r"--([a-z]+): (#\w+);", whole[: whole.index("}")]))
    return re.sub(r"var\(--([a-z]+)\)", lambda found: light[found[1]], style)


def is_report(path: Path) -> bool:
    """Whether a file is a page that this program wrote, now or in an older version."""
    try:
        with path.open("rb") as file:
            head = file.read(TITLE_BYTES)
    except OSError:
        return False
    return head.startswith(b"<!doctype html>") and f"{KIND}</title>".encode() in head
