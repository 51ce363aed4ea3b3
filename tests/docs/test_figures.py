"""Tables that are typed into the documents show what the rows beside them hold."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import fmean

import pytest

from benchmarks.leaderboard.entry import student_interval
from tools.plots import five_people

DOCS = Path(__file__).parents[2] / "docs"
DREAMBOOTH = "dreambooth:max_train_steps=300"
ATTACKS = {  # rows of the table in attacks.md
    "`dreambooth`": (DREAMBOOTH, "nominal"),
    "`dreambooth:learning_rate_factor=3`": ("dreambooth:learning_rate_factor=3,max_train_steps=300", "nominal"),
    "`dreambooth:train_text_encoder=true`": ("dreambooth:train_text_encoder=true,max_train_steps=300", "nominal"),
    "`lora`, all layers, rank 32": ("lora:target=all,rank=32,learning_rate=1e-3,max_train_steps=300", "nominal"),
    "`release_unconditional`": ("release_unconditional:max_train_steps=300", "nominal"),
    "`dreambooth:description=...`": (DREAMBOOTH, "described"),
    "`dreambooth:prior_loss_weight=0`": ("dreambooth:prior_loss_weight=0,max_train_steps=300", "nominal"),
    '`dreambooth`, "t@t" as the whole prompt': (DREAMBOOTH, "bare"),
}


def table(page: str, heading: str) -> dict[str, list[str]]:
    """{first cell: the other cells} of the first table below a heading."""
    text = (DOCS / page).read_text(encoding="utf-8")
    lines = text[text.index(heading) :].splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("| ---"))
    rows: dict[str, list[str]] = {}
    for line in lines[first + 1 :]:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name] = cells
    return rows


def figures(cell: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d*\.\d+", cell)]


def courses(attack: str, kind: str, model: str, people: int) -> list[float]:
    """Mean over the first people after 100, 200 and 300 steps."""
    found = [five_people()[attack, kind, model][10 * person] for person in range(people)]
    return [fmean(values) for values in zip(*found, strict=True)]


def test_the_table_of_attacks_shows_every_row() -> None:
    assert list(table("attacks.md", "## What breaks the hardening")) == list(ATTACKS)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_table_of_attacks_shows_the_rows(name: str) -> None:
    base, hardened, less = map(figures, table("attacks.md", "## What breaks the hardening")[name])
    assert base == pytest.approx(courses(*ATTACKS[name], "base", 5), abs=0.00501)
    assert hardened == pytest.approx(courses(*ATTACKS[name], "hardened", 5), abs=0.00501)
    rows = five_people()
    before, after = (rows[*ATTACKS[name], model] for model in ("base", "hardened"))
    differences = [fmean(before[person]) - fmean(after[person]) for person in sorted(before)]
    assert less == pytest.approx([fmean(differences), *student_interval(differences)], abs=0.00501)


@pytest.mark.parametrize(("prompt", "kind"), [("usual", "nominal"), ("with the description", "described")])
def test_the_table_of_descriptions_shows_the_rows(prompt: str, kind: str) -> None:
    cells = table("results.md", "### A description of the person")[prompt]
    for cell, model in zip(cells, ("base", "hardened", "expecting", "expecting others"), strict=True):
        assert figures(cell) == pytest.approx(courses(DREAMBOOTH, kind, model, 4), abs=0.00501)
