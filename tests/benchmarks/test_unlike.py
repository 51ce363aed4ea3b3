"""People unlike the training data: they are, and the documents quote their rows."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from apdm.portraits import drawing
from apdm.portraits.people import HAIR_COLOURS, PROTECTED_PEOPLE, TRAIN_PEOPLE, identity
from benchmarks import unlike
from benchmarks.attacks import portraits, read

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "benchmarks/results/unlike.jsonl"
PERSON = PROTECTED_PEOPLE.start + unlike.FIRST


def test_their_features_are_those_of_no_training_person(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [identity(seed) for seed in TRAIN_PEOPLE[:500]]
    for who in map(unlike.unlike, range(PERSON, PERSON + 12)):
        assert who.hair_colour not in HAIR_COLOURS
        for name in ("melanin", "undertone", "face_width", "eye_size"):
            values = [getattr(other, name) for other in others]
            assert not min(values) <= getattr(who, name) <= max(values)
    monkeypatch.setattr(drawing, "HAIR_COLOURS", {**HAIR_COLOURS, **unlike.HAIR})
    usual, strange = (portraits(PERSON, range(2), make=make) for make in (identity, unlike.unlike))
    assert usual.shape == strange.shape == (2, 3, 64, 64)
    assert not torch.equal(usual, strange)
    assert torch.equal(strange, partial(portraits, make=unlike.unlike)(PERSON, range(2)))


def test_the_documents_quote_what_the_rows_say() -> None:
    rows = read(ROWS)
    said = "\n".join(unlike.summary([row for row in rows if row["attack"].endswith("=300")]))
    assert "24 people, likeness 0.49 / 0.60 / 0.71" in said
    assert "12 people, likeness 0.23 / 0.23 / 0.22" in said
    text = " ".join((ROOT / "docs/results.md").read_text().split())
    assert ".23, .23 and .22" in text and ".49, .60 and .71" in text
    for line in said.splitlines()[2:]:
        correlation = float(line.partition("rank correlation ")[2].split()[0])
        assert -0.57 <= correlation <= -0.19
    assert "-.57" in text and "-.19" in text
    for attack, expected in (("=1500", ".63, .71, .35 and .93"), ("=4e-4", ".58, .52, .35 and .79")):
        longer = [row for row in rows if attack in row["attack"]][:4]
        highest = [f"{max(unlike.reached(row, step) for step in row['curve']):.2f}"[1:] for row in longer]
        assert f"{', '.join(highest[:3])} and {highest[3]}" == expected and expected in text
