r"""Makes entries of the rows that `benchmarks.protection` leaves.

    python -m benchmarks.leaderboard.add --rows outputs/protection/rows.jsonl --courses outputs/protection \
        --recipe default --title "pool of simulated attackers" --source docs/how-it-works.md

`--courses` is the folder with <recipe>-<seed>/facts.json, or a file that holds them all by that name.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.attacks import ENCODERS, read
from benchmarks.leaderboard.__main__ import FOLDER
from benchmarks.leaderboard.entry import BASE, Attack, Entry, Hardening
from benchmarks.protection import OTHER, bearable

COMMAND = "python -m benchmarks.protection --output_dir outputs/protection --recipes {}"


def hardening(seed: int, facts: Mapping[str, Any]) -> Hardening | None:
    """What a recipe's course says of the state that was attacked. None if no state was within the audit's bounds."""
    look = next(filter(bearable, reversed(facts["walk"])), None)
    if look is None:
        return None
    return Hardening(
        seed=seed,
        people=facts["people"],
        outer_steps=look["outer_steps"],
        cpu_minutes=round(look["cpu_seconds"] / 60, 1),
        class_distance=look["class_distance"],
        drift=look["drift"],
    )


def attack(row: Mapping[str, Any]) -> Attack:
    """An attack of `benchmarks.protection`'s rows. Its seed is that of hardening, people, attack and pictures."""
    return Attack(
        attack=row["attack"],
        seed=row["seed"],
        person=row["person"],
        protected=row["person"] != OTHER,
        attack_seed=row.get("attack_seed", row["seed"]),
        likeness={
            step: round(fmean(point[judge]["mean"] for judge in ENCODERS), 4) for step, point in row["curve"].items()
        },
    )


def courses(source: Path, recipe: str) -> dict[int, Mapping[str, Any]]:
    """{seed: facts} of a recipe's hardenings, from a folder or from one file."""
    if source.is_file():
        found = json.loads(source.read_text())
    else:
        found = {path.parent.name: json.loads(path.read_text()) for path in sorted(source.glob("*/facts.json"))}
    named = {name.rpartition("-"): facts for name, facts in found.items()}
    return {int(seed): facts for (name, _, seed), facts in named.items() if name == recipe}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--courses", type=Path, required=True)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--title", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--notes", default="")
    parser.add_argument("--chosen_on", type=int, nargs="*", default=[], help="seeds whose people were looked at before")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args(arguments)
    kept = {seed: hardening(seed, facts) for seed, facts in courses(options.courses, options.recipe).items()}
    entry = Entry(
        name=options.recipe,
        title=options.title,
        source=options.source,
        commands=[COMMAND.format(options.recipe)],
        hardenings=[one for _, one in sorted(kept.items()) if one is not None],
        attacks=[
            attack(row)
            for row in read(options.rows)
            if row["recipe"] == options.recipe and (options.recipe == BASE or kept.get(row["seed"]))
        ],
        notes=options.notes,
        chosen_on=options.chosen_on,
    )
    print(entry.write(options.folder))


if __name__ == "__main__":
    main()
