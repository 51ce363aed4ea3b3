"""The miniature world: the renderer's promises, and what the bundled weights can do."""

from __future__ import annotations

import dataclasses
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from apdm.faces import load_encoders, load_face_score
from apdm.portraits import PIPELINE, WEIGHTS, people, things
from apdm.portraits.data import ATTRIBUTES, as_images, render_people, render_things
from apdm.portraits.drawing import render_person
from apdm.portraits.text import new_tokenizer

UNSEEN = people.VERIFICATION_PEOPLE.start + 5000  # beyond the people on whom thresholds were set


def pixels(seed: int, photo: int) -> np.ndarray:
    return np.asarray(render_person(people.identity(seed), people.circumstance(seed, photo)))


def test_the_same_seed_draws_the_same_photo_and_another_photo_differs() -> None:
    assert np.array_equal(pixels(5, 0), pixels(5, 0))
    assert not np.array_equal(pixels(5, 0), pixels(5, 1))
    assert not np.array_equal(pixels(5, 0), pixels(6, 0))


def test_no_two_seed_ranges_share_a_person() -> None:
    ranges = [value for name, value in sorted(vars(people).items()) if name.endswith("_PEOPLE")]
    assert len(ranges) == 5
    assert all(a.stop <= b.start or b.stop <= a.start for a, b in combinations(ranges, 2))


def test_circumstance_never_touches_identity() -> None:
    fields = {f.name for f in dataclasses.fields(people.Identity)} & {
        f.name for f in dataclasses.fields(people.Circumstance)
    }
    assert not fields
    assert people.identity(9) == people.identity(9)


def test_a_caption_names_only_what_is_there() -> None:
    rng = np.random.default_rng(0)
    for seed in range(300):
        who, when = people.identity(seed), people.circumstance(seed, 0)
        text = people.caption(who, when, rng)
        for colour in people.HAIR_COLOURS:
            assert f" {colour} hair" not in text or colour == who.hair_colour
        assert "glasses" not in text or who.glasses != "none"
        assert "smiling" not in text or when.smile > 0.3
        for colour in people.BACKGROUNDS:
            assert f"{colour} background" not in text or colour == when.background


def test_known_words_are_single_tokens_and_identifiers_are_ordinary_unused_ones() -> None:
    tokenizer = new_tokenizer()
    rng = np.random.default_rng(0)
    used: set[int] = set()
    for seed in range(200):
        texts = [
            people.caption(people.identity(seed), people.circumstance(seed, 0), rng),
            things.caption(things.thing(seed), people.circumstance(seed, 0), rng),
        ]
        for text in texts:
            ids = tokenizer(text).input_ids[1:-1]
            assert len(ids) == len(text.split())
            used |= set(ids)
    for identifier in ("sks", "t@t"):
        ids = tokenizer(identifier).input_ids[1:-1]
        assert not set(ids) <= used
        assert tokenizer.unk_token_id not in ids


def test_every_person_has_labels_within_the_attribute_lists() -> None:
    data = render_people([1, 2], 3)
    assert data.pixels.shape == (6, 64, 64, 3)
    assert data.labels.shape == (6, len(ATTRIBUTES))
    assert (data.labels >= 0).all()
    assert (render_things([1], 2).labels == -1).all()


@pytest.mark.parametrize("name", ["portrait-a", "portrait-b"])
def test_an_encoder_tells_unseen_people_apart_at_its_threshold(name: str) -> None:
    (encoder,) = load_encoders([name])
    count, photos = 60, 4
    images = as_images(render_people(range(UNSEEN, UNSEEN + count), photos).pixels)
    with torch.no_grad():
        vectors = encoder.embed(images).view(count, photos, -1)
    means = torch.nn.functional.normalize(vectors[:, 1:].mean(1), dim=1)
    scores = vectors[:, 0] @ means.T
    same = scores.diagonal() >= encoder.threshold
    others = scores[~torch.eye(count, dtype=torch.bool)] >= encoder.threshold
    assert same.float().mean() >= 0.93
    assert others.float().mean() <= 0.004


def test_the_face_score_takes_portraits_and_refuses_noise_objects_and_collapse() -> None:
    score = load_face_score("portrait-face")
    generator = torch.Generator().manual_seed(1)
    faces = as_images(render_people(range(UNSEEN, UNSEEN + 64), 1).pixels)
    objects = as_images(render_things(range(3_000_000, 3_000_064), 1).pixels)

    def rate(images: Tensor) -> float:
        with torch.no_grad():
            return float((score.score(images) >= score.threshold).float().mean())

    assert rate(faces) >= 0.95
    assert rate(objects) <= 0.05
    assert rate(torch.rand(64, 3, 64, 64, generator=generator)) <= 0.05
    assert rate(faces.mean(0, keepdim=True).expand(8, -1, -1, -1)) <= 0.05


def test_the_bundled_weights_are_safetensors_and_small() -> None:
    files = sorted(path for path in WEIGHTS.rglob("*") if path.is_file())
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md"}
    assert sum(path.stat().st_size for path in files) <= 30 * 2**20


def test_diffusers_loads_the_bundled_pipeline_unmodified_and_it_draws_faces() -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(PIPELINE, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    prompts = ["a photo of a person"] * 16
    images = pipeline(
        prompts,
        num_inference_steps=15,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    score = load_face_score("portrait-face")
    assert images.shape == (16, 3, 64, 64)
    with torch.no_grad():
        assert (score.score(images.float()) >= score.threshold).float().mean() >= 0.93
