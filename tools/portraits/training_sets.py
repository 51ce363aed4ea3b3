"""Training sets of drawn pictures with captions and labels. They are drawn once and kept in a work folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apdm.portraits.attributes import ATTRIBUTES
from apdm.portraits.drawing import SIZE, render_person
from apdm.portraits.people import circumstance, identity
from tools.portraits import captions, things


@dataclass(frozen=True)
class TrainingSet:
    """Pictures of people or objects.

    Attributes:
        pixels: `[N, 64, 64, 3]`, uint8.
        who: the seed of the person or object in each picture, `[N]`.
        labels: the index of each attribute's value, in the order of ATTRIBUTES, `[N, 8]`; -1 for objects.
        captions: a caption of each picture.
    """

    pixels: np.ndarray
    who: np.ndarray
    labels: np.ndarray
    captions: list[str]


def render_people(seeds: Sequence[int], photos: int) -> TrainingSet:
    """Draw the first `photos` photos of each person, in the order of `seeds`."""
    pixels, who, labels, texts = [], [], [], []
    for seed in seeds:
        person = identity(seed)
        for photo in range(photos):
            when = circumstance(seed, photo)
            pixels.append(np.asarray(render_person(person, when)))
            words = captions.attributes(person, when)
            labels.append([ATTRIBUTES[name].index(words[name]) for name in ATTRIBUTES])
            texts.append(captions.caption(person, when, np.random.default_rng([seed, 4, photo])))
            who.append(seed)
    return TrainingSet(np.stack(pixels), np.array(who), np.array(labels), texts)


def render_things(seeds: Sequence[int], photos: int) -> TrainingSet:
    """Draw the first `photos` photos of each object, in the order of `seeds`."""
    pixels, who, texts = [], [], []
    for seed in seeds:
        what = things.thing(seed)
        for photo in range(photos):
            when = circumstance(seed + 7_000_000, photo)
            pixels.append(np.asarray(things.render_thing(what, when, SIZE)))
            texts.append(things.caption(what, when, np.random.default_rng([seed, 5, photo])))
            who.append(seed)
    return TrainingSet(np.stack(pixels), np.array(who), np.full((len(who), len(ATTRIBUTES)), -1), texts)


def load_or_render(work_dir: Path, kind: str, seeds: range, photos: int, processes: int = 2) -> TrainingSet:
    """Load a training set from the work folder. If it is not there, draw it first and keep it.

    Args:
        work_dir: the work folder.
        kind: "people" or "things".
        seeds: the people or objects.
        photos: photos of each.
        processes: processes that draw side by side.
    """
    stem = work_dir / f"{kind}-{seeds.start}-{seeds.stop}x{photos}"
    if not stem.with_suffix(".json").exists():
        work_dir.mkdir(parents=True, exist_ok=True)
        draw = {"people": render_people, "things": render_things}[kind]
        chunks = [range(s, min(s + 500, seeds.stop)) for s in range(seeds.start, seeds.stop, 500)]
        with ProcessPoolExecutor(processes) as pool:
            parts = list(pool.map(draw, chunks, [photos] * len(chunks)))
        np.savez(
            stem.with_suffix(".npz"),
            pixels=np.concatenate([part.pixels for part in parts]),
            who=np.concatenate([part.who for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
        )
        stem.with_suffix(".json").write_text(json.dumps([text for part in parts for text in part.captions]))
    arrays = np.load(stem.with_suffix(".npz"))
    texts = json.loads(stem.with_suffix(".json").read_text())
    return TrainingSet(arrays["pixels"], arrays["who"], arrays["labels"], texts)
