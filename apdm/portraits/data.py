"""Rendered training sets: pictures, captions and attribute labels as arrays, drawn once and kept in a work folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from apdm.portraits import things
from apdm.portraits.drawing import render_person
from apdm.portraits.people import (
    BACKGROUNDS,
    BEARDS,
    COLOURS,
    GLASSES,
    HAIR_COLOURS,
    HAIR_STYLES,
    attributes,
    caption,
    circumstance,
    identity,
)

SIZE = 64
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "skin": ("light", "medium", "dark"),
    "hair": ("bald", *HAIR_COLOURS),
    "style": HAIR_STYLES,
    "beard": BEARDS,
    "glasses": GLASSES,
    "smile": ("no", "yes"),
    "clothes": tuple(COLOURS),
    "background": tuple(BACKGROUNDS),
}


@dataclass(frozen=True)
class Rendered:
    """`pixels` uint8 [N, 64, 64, 3]; `who` [N] seeds; `labels` [N, 8] in the order of ATTRIBUTES, -1 for things."""

    pixels: np.ndarray
    who: np.ndarray
    labels: np.ndarray
    captions: list[str]


def render_people(seeds: Sequence[int], photos: int) -> Rendered:
    """`photos` pictures of each person, people in the order of `seeds`."""
    pixels, who, labels, captions = [], [], [], []
    for seed in seeds:
        person = identity(seed)
        for photo in range(photos):
            when = circumstance(seed, photo)
            pixels.append(np.asarray(render_person(person, when, SIZE)))
            words = attributes(person, when)
            labels.append([ATTRIBUTES[name].index(words[name]) for name in ATTRIBUTES])
            captions.append(caption(person, when, np.random.default_rng([seed, 4, photo])))
            who.append(seed)
    return Rendered(np.stack(pixels), np.array(who), np.array(labels), captions)


def render_things(seeds: Sequence[int], photos: int) -> Rendered:
    """`photos` pictures of each object."""
    pixels, who, captions = [], [], []
    for seed in seeds:
        what = things.thing(seed)
        for photo in range(photos):
            when = circumstance(seed + 7_000_000, photo)
            pixels.append(np.asarray(things.render_thing(what, when, SIZE)))
            captions.append(things.caption(what, when, np.random.default_rng([seed, 5, photo])))
            who.append(seed)
    return Rendered(np.stack(pixels), np.array(who), np.full((len(who), len(ATTRIBUTES)), -1), captions)


def rendered(work_dir: Path, kind: str, seeds: range, photos: int, processes: int = 2) -> Rendered:
    """The rendered set from `work_dir`, drawn first where it is missing. `kind` is "people" or "things"."""
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
    captions = json.loads(stem.with_suffix(".json").read_text())
    return Rendered(arrays["pixels"], arrays["who"], arrays["labels"], captions)


def as_images(pixels: np.ndarray | Tensor) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W] in [0, 1]."""
    return torch.as_tensor(pixels).permute(0, 3, 1, 2).float() / 255
