"""The leaderboard: its entries, the figures that are computed from them, and the file format."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from apdm.core.errors import UserError
from benchmarks.leaderboard import add
from benchmarks.leaderboard.__main__ import FOLDER, left_out, main, read_all, table
from benchmarks.leaderboard.entry import BASE, Attack, Entry, Hardening, figures
from benchmarks.protection import DREAMBOOTH, OTHER

ENTRY = Entry("mine", "a title", "a source", ["a command"], [Hardening(0, 1, 10, 1.0, 1.2, 0.1)], [])


def course(values: str, **given: object) -> Attack:
    """An attack with the likeness `values`, such as "0:0 100:.5"."""
    likeness = {step: float(value) for step, value in (point.split(":") for point in values.split())}
    fields = {"attack": "a", "seed": 0, "person": 0, "protected": True, "attack_seed": 0, "likeness": likeness}
    return Attack(**(fields | given))


@pytest.mark.parametrize(
    ("likeness", "steps"), [(0.0, 0), (0.2, 50), (0.4, 100), (0.6, 200), (0.7, 300 + 100 * 2 / 3), (0.9, math.inf)]
)
def test_steps_to_a_likeness_lie_on_straight_lines_between_measurements(likeness: float, steps: float) -> None:
    assert course("0:0 100:.4 200:.6 300:.5 400:.8").steps_to(likeness) == pytest.approx(steps)


def test_figures_are_means_over_people_in_pairs_with_the_base() -> None:
    flat = "0:0 100:{0} 300:{0}"
    base = replace(
        ENTRY,
        name=BASE,
        attacks=[
            course(flat.format(0.8)),
            course(flat.format(0.6), attack_seed=1),
            course(flat.format(0.9), person=1),
            course(flat.format(0.5), person=9, protected=False),
        ],
    )
    mine = replace(
        ENTRY,
        attacks=[
            course(flat.format(0.4)),
            course(flat.format(0.4), attack_seed=1),
            course(flat.format(0.8), person=1),
            course(flat.format(0.4), person=9, protected=False),
            course(flat.format(0.1), person=5),  # without a partner
        ],
    )
    seen = figures(mine, base, "a")
    assert seen is not None
    assert (seen.people, seen.attack_seeds, seen.complete) == (2, 1, False)
    assert seen.mean == pytest.approx(0.6)
    assert list(seen.less) == pytest.approx([0.3, 0.1])  # .7 - .4, and .9 - .8
    assert seen.others == pytest.approx(0.8) and not seen.useful
    assert seen.interval == pytest.approx((0.2 - 12.706 * 0.1, 0.2 + 12.706 * 0.1), abs=1e-3)
    assert list(seen.cost) == [math.inf, math.inf]
    assert figures(mine, base, "another attack") is None


def test_cost_is_the_ratio_of_steps_to_the_likeness_that_the_base_has_after_300() -> None:
    base = replace(ENTRY, name=BASE, attacks=[course("0:0 100:.3 300:.6 500:.9")])
    mine = replace(ENTRY, attacks=[course("0:0 100:.1 300:.2 900:.8 1000:.9")])
    seen = figures(mine, base, "a")
    assert seen is not None and list(seen.cost) == pytest.approx([700 / 300])


@pytest.mark.parametrize(("mine", "cost"), [("0:.7 100:.7 300:.7", 1.0), ("0:.1 100:.2 300:.8", math.inf)])
def test_the_cost_of_what_the_base_draws_without_an_attack_divides_by_nothing(mine: str, cost: float) -> None:
    base = replace(ENTRY, name=BASE, attacks=[course("0:.7 100:.5 300:.6")])
    seen = figures(replace(ENTRY, attacks=[course(mine)]), base, "a")
    assert seen is not None and list(seen.cost) == [cost]


def test_others_whom_the_attack_does_not_draw_on_the_base_count_for_nothing() -> None:
    nothing = course("0:0 100:0 300:0", person=9, protected=False)
    attacks = [course("0:0 100:.5 300:.5"), nothing]
    seen = figures(replace(ENTRY, attacks=attacks), replace(ENTRY, name=BASE, attacks=attacks), "a")
    assert seen is not None and seen.others is None


def test_a_base_that_was_not_measured_early_enough_is_told() -> None:
    attacks = [course("500:.5")]
    with pytest.raises(UserError, match="not measured at a step up to 300"):
        figures(replace(ENTRY, attacks=attacks), replace(ENTRY, name=BASE, attacks=attacks), "a")


def test_attacks_without_a_partner_on_the_base_are_told() -> None:
    base = replace(ENTRY, name=BASE, attacks=[course("0:0 300:.5")])
    mine = replace(ENTRY, attacks=[course("0:0 300:.5", person=5), course("0:0 300:.5", attack_seed=2)])
    (line,) = left_out([base, mine], "a")
    assert line.startswith("mine: 2 attacks are not counted") and list(left_out([base, mine], "b")) == []


def test_an_entry_is_complete_with_three_people_three_seeds_and_others_and_useful_within_the_bounds() -> None:
    attacks = [course("0:0 300:.5", person=p, attack_seed=s) for p in range(3) for s in range(3)]
    other = course("0:0 300:.5", person=9, protected=False)
    base = replace(ENTRY, name=BASE, attacks=[*attacks, other])
    for changed, expected in (
        (ENTRY, (True, True)),
        (replace(ENTRY, hardenings=[Hardening(0, 3, 10, 1.0, 1.6, 0.1)]), (True, False)),
        (replace(ENTRY, hardenings=[Hardening(0, 3, 10, 1.0, 1.5, 0.21)]), (True, False)),
    ):
        seen = figures(replace(changed, attacks=[*attacks, other]), base, "a")
        assert seen is not None and (seen.complete, seen.useful) == expected
    without = figures(replace(ENTRY, attacks=attacks), base, "a")
    assert without is not None and not without.complete
    for seed, unseen in ((0, 0), (1, 3)):  # all these people are of seed 0
        known = figures(replace(ENTRY, attacks=[*attacks, other], chosen_on=[seed]), base, "a")
        assert known is not None and (known.unseen, known.complete) == (unseen, bool(unseen))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "needs schema 1"),
        ({"colour": "red"}, "a field colour"),
        ({"name": "yours"}, "give the file the same name"),
        ({"hardenings": [{"seed": 0}]}, "people"),
        ({"hardenings": None}, "hardenings must be a list"),
        ({"attacks": [3]}, r"attacks\[0\] must be an object with the fields of Attack"),
        ({"attacks": [{**course("0:0 100:.5").__dict__, "seed": 3}]}, "not listed"),
        ({"attacks": [{**course("0:0 100:.5").__dict__, "likeness": {"100": 0.5, "0": 0.1}}]}, "must rise"),
        ({"attacks": [{**course("0:0 100:.5").__dict__, "likeness": {"100": 5}}]}, "between -1 and 1"),
    ],
)
def test_a_wrong_entry_is_refused_with_its_file_and_field(tmp_path: Path, change: dict, message: str) -> None:
    path = ENTRY.write(tmp_path)
    assert Entry.read(path) == ENTRY
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message) as caught:
        Entry.read(path)
    assert str(path) in str(caught.value)


def test_committed_entries_are_sound_and_sorted_by_what_they_take_away(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    lines = capsys.readouterr().out.splitlines()
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]]
    assert {entry.name for entry in read_all()} >= {"base", "default", "algorithm-1", "imma", "naive"}
    assert names.index("default") < names.index("naive") < names.index("imma") < names.index(BASE)
    assert list(table(read_all(FOLDER), DREAMBOOTH)) == lines


def test_a_recipes_rows_become_an_entry(tmp_path: Path) -> None:
    judged = {"portrait-a": {"mean": 0.2}, "portrait-b": {"mean": 0.4}}
    rows = [
        {"recipe": "mine", "attack": "a", "person": person, "seed": seed, "curve": {"0": judged, "100": judged}}
        for person, seed in ((0, 0), (OTHER, 0), (0, 1))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    look = {"outer_steps": 50, "cpu_seconds": 90, "class_distance": 1.2, "drift": 0.1}
    spoilt = look | {"class_distance": 9.0}
    facts = {0: {"people": 1, "walk": [look, spoilt]}, 1: {"people": 1, "walk": [spoilt]}}
    for seed, course_of in facts.items():
        (tmp_path / f"mine-{seed}").mkdir()
        (tmp_path / f"mine-{seed}/facts.json").write_text(json.dumps(course_of))
    add.main(
        ["--rows", str(tmp_path / "rows.jsonl"), "--courses", str(tmp_path), "--recipe", "mine"]
        + ["--title", "a title", "--source", "a source", "--folder", str(tmp_path)]
    )
    entry = Entry.read(tmp_path / "mine.json")
    assert entry.hardenings == [Hardening(0, 1, 50, 1.5, 1.2, 0.1)]  # the second was never within the bounds
    assert [(one.person, one.protected) for one in entry.attacks] == [(0, True), (OTHER, False)]
    assert entry.attacks[0].likeness == {"0": 0.3, "100": 0.3}
