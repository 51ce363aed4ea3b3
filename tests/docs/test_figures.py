"""Tables that are typed into the documents show what the rows beside them hold."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from benchmarks.attacks import ENCODERS, course
from benchmarks.leaderboard.entry import student_interval
from tools.plots import five_people, read_rows

DOCS = Path(__file__).parents[2] / "docs"
DREAMBOOTH = "dreambooth:max_train_steps=300"
STEPS = ("100", "200", "300")
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


CAPTIONS = {  # rows of the table of captions in results.md
    "how the person looks": "looks",
    "what differs from photo to photo": "scene",
    "both": "both",
    "both, and the usual prompt is drawn": "both,draw_captions=false",
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_the_table_of_captions_shows_the_rows(name: str) -> None:
    cells = table("results.md", "### A caption for each photo")[name]
    rows = [row for row in read_rows("attacks-captions.jsonl") if row["attack"].endswith(f"column={CAPTIONS[name]}")]
    for cell, model in zip(cells, ("base", "hardened", "expecting"), strict=True):
        found = [row["curve"] for row in rows if row["model"] == model]
        shown = [fmean(one[step][e]["mean"] for one in found for e in ENCODERS) for step in STEPS] if cell else []
        assert figures(cell) == pytest.approx(shown, abs=0.00501) and len(found) == (4 if cell else 0)


def test_the_text_on_captions_has_the_means_of_the_rows() -> None:
    """(model, attack, people) -> mean; the first two people are those of the hardening that expects captions."""
    rows = [*read_rows("attacks-captions.jsonl"), *read_rows("attacks-five-people.jsonl")]

    def mean(model: str, options: str, people: int) -> float:
        found = [
            row["curve"]
            for row in rows
            if (row["model"], row["attack"]) == (model, DREAMBOOTH + options)
            and row["person"] < 10 * people
            and "instance_prompt" not in row
        ]
        assert len(found) == people
        return fmean(one[step][encoder]["mean"] for one in found for step in STEPS for encoder in ENCODERS)

    text = (DOCS / "results.md").read_text(encoding="utf-8")
    said = [
        float(number)
        for number in re.findall(r" \(?(\.\d\d)\b", text[text.index("* **How the person looks**") :].split("\n\n")[0])
    ]
    looks, scene, both = (f",caption_column={column}" for column in ("looks", "scene", "both"))
    four = [
        ("hardened", looks),
        ("base", looks),
        ("hardened", both),
        ("base", both),
        ("hardened", scene),
        ("base", scene),
    ]
    four += [("hardened", ""), ("base", ""), ("expecting", both), ("hardened", both), ("expecting", scene)]
    two = [(model, options) for options in (both, scene, "") for model in ("expecting captions", "hardened")]
    expected = [mean(*one, 4) for one in four] + [mean(*one, 2) for one in two]
    assert said == pytest.approx(expected, abs=0.00501)


def test_the_figures_of_ten_described_people_are_those_of_the_rows() -> None:
    means: dict[str, dict[int, float]] = {"hardened": {}, "expecting others": {}}
    for model, found in means.items():
        found |= {person: fmean(values) for person, values in five_people()[DREAMBOOTH, "described", model].items()}
    for row in read_rows("descriptions.jsonl"):
        means[row["model"]][row["person"]] = fmean(course(row))
    less = [means["hardened"][person] - value for person, value in means["expecting others"].items()]
    assert len(less) == 10 and sum(each > 0.15 for each in less) == 4 and min(less) > -0.06
    shown = [fmean(means["expecting others"].values()), fmean(means["hardened"].values()), fmean(less)]
    assert [*shown, *student_interval(less)] == pytest.approx([0.56, 0.64, 0.08, -0.01, 0.16], abs=0.00501)
    text = " ".join((DOCS / "results.md").read_text(encoding="utf-8").split())
    assert ".56, the default .64. That is .08 less (95 % over people: -.01 to .16)" in text


DAMAGED = {
    "base": "base",
    "40, the default": "default-400",
    "10": "anchor-10",
    "2.5": "anchor-2.5",
    "0.6": "anchor-0.6",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_the_table_of_damaged_classes_shows_the_rows(name: str) -> None:
    rows = [row for row in read_rows("class-damage.jsonl") if (row["recipe"], row["person"]) == (DAMAGED[name], 0)]
    (long, short) = ([row for row in rows if ("1000" in row["curve"]) is nominal] for nominal in (True, False))
    assert {row["seed"] for row in long} == {row["seed"] for row in short} == {0, 1}

    def means(some: list[dict[str, Any]], *steps: str) -> list[float]:
        return [fmean(row["curve"][step][encoder]["mean"] for row in some for encoder in ENCODERS) for step in steps]

    distance, faces, *cells = map(figures, table("results.md", "### More harm to the class does not help")[name])
    mean = fmean(value for row in long for value in course(row))
    expected = [*means(long, "100", "300", "500", "700"), mean, *means(short, "100", "200", "300")]
    assert [value for cell in cells for value in cell] == pytest.approx(expected, abs=0.00501)
    looks = [row["class"] for row in long if name != "base"]
    assert distance == pytest.approx([fmean(one["class_distance"] for one in looks)] if looks else [], abs=0.00501)
    assert faces == pytest.approx([fmean(one["face_rate"] for one in looks)] if looks else [], abs=0.00501)


def test_the_figures_of_others_in_damaged_classes_are_those_of_the_rows() -> None:
    rows = {row["recipe"]: row for row in read_rows("class-damage.jsonl") if row["person"] == 40}
    text = " ".join((DOCS / "results.md").read_text(encoding="utf-8").split())
    after = text[text.index("**Others pay as well**") :]
    found = figures(after[: after.index("(one person")])
    assert found == pytest.approx(
        [fmean(course(rows[name])) for name in ("base", *list(DAMAGED.values())[2:])], abs=0.00501
    )
