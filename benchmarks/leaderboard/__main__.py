"""Checks every entry of the leaderboard, and prints the table. README.md explains the columns.

python -m benchmarks.leaderboard
python -m benchmarks.leaderboard --attack lora:target=all,rank=32,learning_rate=1e-3,max_train_steps=1000
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, median

from apdm.core.errors import UserError
from benchmarks.leaderboard.entry import BASE, REACHED, Entry, Figures, figures, without_partner
from benchmarks.protection import DREAMBOOTH

FOLDER = Path(__file__).parent
HEAD = (
    "entry",
    "people x seeds",
    "class distance",
    "drift",
    "others",
    "likeness",
    "less than the base, 95 %",
    f"cost to the base's {REACHED} steps",
    "by the rules",
)


def table(entries: Sequence[Entry], attack: str) -> Iterator[str]:
    """Yield the lines of the table in Markdown, the entry that takes most likeness away first."""
    base = next(entry for entry in entries if entry.name == BASE)
    found = [(entry.name, figures(entry, base, attack)) for entry in entries]
    yield _line(HEAD)
    yield _line(["---"] * len(HEAD))
    for name, row in sorted(
        ((name, row) for name, row in found if row is not None), key=lambda found: -fmean(found[1].less)
    ):
        yield _line([name, *_cells(name, row)])


def left_out(entries: Sequence[Entry], attack: str) -> Iterator[str]:
    """Yield a line for each entry whose attacks have no partner on the base: the table does not count them."""
    base = next(entry for entry in entries if entry.name == BASE)
    for entry in entries:
        if missing := without_partner(entry, base, attack):
            yield (
                f"{entry.name}: {missing} attacks are not counted, because {BASE} has none with the same seed, person "
                "and attack seed; run the base with them too"
            )


def _cells(name: str, row: Figures) -> list[str]:
    runs = f"{row.people} x {row.attack_seeds}"
    if name == BASE:
        return [runs, "", "", "", f"{row.mean:.2f}", "", "", ""]
    less = f"{fmean(row.less):.2f}"
    if row.interval is not None:
        less += f" ({row.interval[0]:.2f} to {row.interval[1]:.2f})"
    cost = median(row.cost)
    lacks = [word for word, there in (("runs", row.complete), ("utility", row.useful)) if not there]
    return [
        runs,
        f"{row.class_distance:.2f}",
        f"{row.drift:.2f}",
        "" if row.others is None else f"{row.others:.2f}",
        f"{row.mean:.2f}",
        less,
        "not reached" if math.isinf(cost) else f"{cost:.1f} times",
        f"lacks {' and '.join(lacks)}" if lacks else "yes",
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def read_all(folder: Path = FOLDER) -> list[Entry]:
    """Read all entries of a folder. Raises UserError if one of them cannot be read, or if there is no base."""
    entries = [Entry.read(path) for path in sorted(folder.glob("*.json"))]
    if BASE not in [entry.name for entry in entries]:
        raise UserError(f"{folder} has no {BASE}.json, with which all entries are compared")
    return entries


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--attack", default=DREAMBOOTH, help="as the entries name it")
    options = parser.parse_args(arguments)
    try:
        entries = read_all(options.folder)
        print("\n".join(table(entries, options.attack)))
        for line in left_out(entries, options.attack):
            print(line, file=sys.stderr)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
