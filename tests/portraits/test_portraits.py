"""The miniature world: what the drawings of people guarantee, and what the bundled models can do."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from apdm.core.pictures import as_images
from apdm.data.photo_captions import read_captions
from apdm.faces import load_encoders, load_face_score
from apdm.faces.portrait import PortraitFaceScore
from apdm.portraits import PIPELINE, WEIGHTS, people
from apdm.portraits.attributes import ATTRIBUTES
from apdm.portraits.drawing import render_person
from apdm.portraits.subjects import ATTACK, write_subjects
from tools.portraits.training_sets import render_people, render_things

ROOT = Path(__file__).parents[2]
UNSEEN = people.VERIFICATION_PEOPLE.start + 5000  # beyond the people on whom thresholds were set


def pixels(seed: int, photo: int) -> np.ndarray:
    return np.asarray(render_person(people.identity(seed), people.circumstance(seed, photo)))


def test_the_same_seed_draws_the_same_photo_and_another_photo_differs() -> None:
    assert np.array_equal(pixels(5, 0), pixels(5, 0))
    assert not np.array_equal(pixels(5, 0), pixels(5, 1))
    assert not np.array_equal(pixels(5, 0), pixels(6, 0))


def test_the_attackers_photos_have_captions_that_say_who_and_what_is_on_them(tmp_path: Path) -> None:
    write_subjects(tmp_path, protected=1, others=0, consenting=0, strangers=0)
    files = sorted((tmp_path / "attacker/s01").glob("*.png"))
    captions = read_captions(files, "text")
    prompt = yaml.safe_load((ROOT / "configs/audit-portrait.yaml").read_text())["instance_prompt"]
    seed = people.PROTECTED_PEOPLE.start
    for number, caption in zip(ATTACK, captions, strict=True):
        who, when = people.identity(seed), people.circumstance(seed, number)
        assert caption.startswith(f"{prompt} with ") and f"{who.eye_colour} eyes" in caption
        assert f"{when.clothes} shirt" in caption and ("smiling" in caption) == (when.smile > 0.3)
    assert not list(tmp_path.glob("protected/*/metadata.jsonl"))


def test_no_two_seed_ranges_share_a_person() -> None:
    ranges = [value for name, value in sorted(vars(people).items()) if name.endswith("_PEOPLE")]
    assert len(ranges) == 5
    assert all(a.stop <= b.start or b.stop <= a.start for a, b in combinations(ranges, 2))


def test_all_photos_of_a_person_show_the_same_person_and_photos_of_two_people_differ_in_the_person_alone() -> None:
    who, other = people.identity(9), people.identity(10)
    occasions = [people.circumstance(9, photo) for photo in range(12)]
    assert len({when.background for when in occasions}) > 1
    for when in occasions:
        mine, theirs = (np.asarray(render_person(person, when)).astype(int) for person in (who, other))
        corner = (slice(0, 3), slice(61, 64))  # nothing of a person reaches it
        assert np.array_equal(mine[corner], theirs[corner])
        assert np.abs(mine - theirs).max() > 50


def test_the_attribute_reader_sees_the_person_s_hair_in_every_photo_and_each_photo_s_own_background() -> None:
    reader = PortraitFaceScore()
    data = render_people(range(UNSEEN, UNSEEN + 16), 6)
    with torch.no_grad():
        seen = reader.attributes(as_images(data.pixels))
    hair, background = seen["hair"].view(16, 6), seen["background"].view(16, 6)
    assert (hair == hair[:, :1]).float().mean() > 0.98
    assert (background != background[:, :1]).any(1).float().mean() > 0.9
    for person in range(16):
        who = people.identity(UNSEEN + person)
        known = "bald" if who.hair_style == "bald" else who.hair_colour
        assert ATTRIBUTES["hair"][int(hair[person].mode().values)] == known


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
