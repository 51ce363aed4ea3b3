"""Are people learnt later whom the base never saw the like of? The rows behind docs/results.md.

    python -m benchmarks.unlike --output rows.jsonl --people 24 --unlike 12
    python -m benchmarks.unlike --output rows.jsonl --summary

The nominal attack on the bundled base, on people as they are drawn everywhere else, and on people whose hair, skin and
proportions lie outside of everything that the base was trained on. Each row also says how many of the base's training
people are similar, and how alike the person's own photos are, which is the most that pictures can reach.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn.functional import normalize

from apdm.core.pictures import as_images
from apdm.families import load_family
from apdm.portraits import PIPELINE, drawing
from apdm.portraits.drawing import render_person
from apdm.portraits.people import HAIR_COLOURS, PROTECTED_PEOPLE, RGB, Identity, circumstance, identity
from apdm.portraits.subjects import ATTACK, HOLDOUT
from benchmarks.attacks import ENCODERS, DrawPhotos, Study, portraits, read

HAIR: dict[str, RGB] = {"purple": (0.45, 0.15, 0.60), "green": (0.15, 0.60, 0.25), "blue": (0.12, 0.25, 0.85)}
STYLES = ("short", "spiky", "curly", "long", "bun", "parted")
FIRST = 100  # number of the first protected person
CROWD = range(3000)  # of the training people
STEPS = (100, 200, 300)


def unlike(seed: int) -> Identity:
    """The person of a seed, with features that no training person has."""
    r = np.random.default_rng([seed, 99])
    return replace(
        identity(seed),
        hair_colour=str(r.choice(list(HAIR))),
        hair_style=str(r.choice(STYLES)),
        melanin=float(r.choice([-0.35, 1.35])),
        undertone=float(r.choice([-6, 6])),
        face_width=float(r.choice([0.15, 0.30])),
        eye_size=0.075,
        beard="none",
    )


def embeddings(study: Study, pixels: Tensor) -> dict[str, Tensor]:
    """{encoder: `[N, D]`, of length 1} of pictures `[N, 3, 64, 64]` in [0, 1]."""
    return {
        judge.name: torch.cat([normalize(judge.embed(some), dim=-1) for some in pixels.split(64)])
        for judge in study.judges
    }


def similar(study: Study, person: int, draw: DrawPhotos, crowd: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """{encoder: figures}: the likeness of the person's own photos, and of the 1 and 20 nearest training people."""
    found = {}
    photos, held = (embeddings(study, draw(PROTECTED_PEOPLE.start + person, n)) for n in (ATTACK, HOLDOUT))
    for name in ENCODERS:
        centre = normalize(held[name].mean(0), dim=0)
        near = (crowd[name] @ centre).sort(descending=True).values
        found[name] = {
            "own": (photos[name] @ held[name].T).mean().item(),
            "nearest": near[0].item(),
            "nearest_20": near[:20].mean().item(),
        }
    return found


def reached(row: dict[str, Any], step: int) -> float:
    """Likeness after a step, the mean of both encoders."""
    return fmean(row["curve"][str(step)][name]["mean"] for name in ENCODERS)


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield mean likeness per kind of people, and how it goes with the number of similar training people."""
    for kind in ("usual", "unlike"):
        some = [row for row in rows if row["kind"] == kind]
        steps = " / ".join(f"{fmean(reached(row, step) for row in some):.2f}" for step in STEPS)
        own = " / ".join(f"{fmean(row['similar'][name]['own'] for row in some):.2f}" for name in ENCODERS)
        yield f"{kind}: {len(some)} people, likeness {steps} after {STEPS} steps; of their own photos {own}"
    usual = [row for row in rows if row["kind"] == "usual"]
    for name in ENCODERS:
        for figure in ("nearest", "nearest_20"):
            near = [row["similar"][name][figure] for row in usual]
            learnt = [fmean(reached(row, step) for step in STEPS) / row["similar"][name]["own"] for row in usual]
            result = stats.spearmanr(near, learnt)
            yield f"usual, {name}, {figure}: rank correlation {result.statistic:.2f} (p = {result.pvalue:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="file of rows, one JSON object per line")
    parser.add_argument("--summary", action="store_true", help="print what the rows in the file say, and stop")
    parser.add_argument("--people", type=int, default=24, help="people of the usual kind")
    parser.add_argument("--unlike", type=int, default=12, help="people unlike anybody in the training data")
    parser.add_argument("--attack", default=f"dreambooth:max_train_steps={STEPS[-1]}")
    options = parser.parse_args()
    if options.summary:
        print("\n".join(summary([row for row in read(options.output) if row["attack"] == options.attack])))
        return
    torch.set_num_threads(1)
    study = Study({"base": load_family(PIPELINE)}, "base")
    crowd = embeddings(
        study, as_images(np.stack([np.asarray(render_person(identity(n), circumstance(n, 0))) for n in CROWD]))
    )
    done = {(row["kind"], row["person"], row["attack"]) for row in read(options.output)}
    drawing.HAIR_COLOURS = {**HAIR_COLOURS, **HAIR}  # only drawing knows them: nobody is given one at random
    for kind, make, count in (("usual", identity, options.people), ("unlike", unlike, options.unlike)):
        draw = partial(portraits, make=make)
        for person in range(FIRST, FIRST + count):
            if (kind, person, options.attack) in done:
                continue
            row = {"kind": kind, "person": person, "attack": options.attack}
            row["similar"] = similar(study, person, draw, crowd)
            row |= study.run(options.attack, person, 0, len(ATTACK), draw_photos=draw)
            with options.output.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(kind, person, " / ".join(f"{reached(row, step):.2f}" for step in STEPS), flush=True)


if __name__ == "__main__":
    main()
