"""Pairs of a protected photo and a safe picture: drawn by the base model, given by the user, or none."""

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import arguments, equal, told, weights

from apdm.cli import main
from apdm.config import HardenConfig, load_config
from apdm.core.errors import UserError
from apdm.core.pictures import to_pil
from apdm.data.separate_photos import Role
from apdm.data.subjects import load_images
from apdm.export.metadata import read_metadata
from apdm.families import load_family
from apdm.families.encoding import encode_images
from apdm.jobs.hardening.files import Photos
from apdm.jobs.hardening.inputs import HardenInputs
from apdm.jobs.hardening.partners import FIRST_SEED

UNET = "model/unet/diffusion_pytorch_model.safetensors"
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def people(noise_people: Path, tmp_path: Path) -> Path:
    """Two people with three photos each."""
    for person, images in (("s01", noise_people), ("s02", noise_people)):
        for number, file in enumerate(sorted((images / "s01").iterdir())):
            pixels = np.asarray(Image.open(file).convert("RGB"))
            target = tmp_path / f"people/protected/{person}/{number}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels if person == "s01" else pixels[::-1].copy()).save(target)
    return tmp_path / "people"


def command(pipeline: Path, people: Path, output: Path, **changes: object) -> list[str]:
    return ["harden", *arguments(pipeline, people, output, **{"pairs": "drawn", **changes})]


def read(pipeline: Path, people: Path, output: Path, **changes: object) -> HardenInputs:
    config = load_config(HardenConfig, command(pipeline, people, output, **changes)[1:])
    base = load_family(pipeline)
    return HardenInputs.read(config, base, base)


def partner(file: Path) -> Path:
    """A picture that stands in for a photo, with the photo's name."""
    target = file.parent / "safe" / file.name
    target.parent.mkdir(exist_ok=True)
    Image.new("RGB", (20, 20), "red").save(target)
    return target


def test_a_bad_photo_and_a_bad_partner_are_told_together(people: Path) -> None:
    protected = people / "protected"
    bad = [protected / "s01/1.png", *(partner(protected / f"{person}/0.png") for person in ("s01", "s02"))]
    for person in ("s01", "s02"):
        for number in (1, 2):
            partner(protected / f"{person}/{number}.png")
    for file in bad:
        file.write_bytes(b"")
    with pytest.raises(UserError) as raised:
        Photos.load(str(protected), 16, Role.PROTECTED, pairs="folder")
    lines = str(raised.value).splitlines()
    assert [line.split()[0] for line in lines] == ["s01/1.png", "s01/safe/0.png", "s02/safe/0.png"]


def test_partners_are_drawn_once_and_a_resumed_run_ends_with_the_same_weights(
    people: Path, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tiny_pipeline, people, tmp_path / "straight")) == 0
    assert told(capsys.readouterr().err)["pairs"] == "6 partners, drawn by the base model"
    assert main(command(tiny_pipeline, people, tmp_path / "run", max_train_steps=2)) == 0
    drawn = sorted((tmp_path / "run/partners").glob("*.png"))
    before = [file.stat().st_mtime_ns for file in drawn]
    again = [*command(tiny_pipeline, people, tmp_path / "run", resume_from_checkpoint="latest"), "--dry_run"]
    assert main(again) == 0
    plan = told(capsys.readouterr().err)
    assert plan["pairs"] == "6 partners, drawn by the base model" and plan["drawn"] == "nothing new"
    assert len(before) == 6
    assert main(command(tiny_pipeline, people, tmp_path / "run", resume_from_checkpoint="latest")) == 0
    assert [file.stat().st_mtime_ns for file in drawn] == before
    assert equal(weights(tmp_path / "straight"), weights(tmp_path / "run"))
    assert main(command(tiny_pipeline, people, tmp_path / "unpaired", pairs="none")) == 0
    assert not (tmp_path / "unpaired/partners").exists()
    assert not equal(weights(tmp_path / "straight"), weights(tmp_path / "unpaired"))
    for run, pairs in (("straight", "drawn"), ("unpaired", "none")):
        assert json.loads((tmp_path / run / "manifest.json").read_text())["pairs"] == pairs
        assert read_metadata(tmp_path / run / UNET)["apdm.pairs"] == pairs
        assert f"* Safe partners of the protected photos: {pairs}\n" in (tmp_path / run / "model/README.md").read_text()
        assert main(["verify", str(tmp_path / run), "--subjects", str(people / "protected")]) == 0
    (tmp_path / "straight/samples").mkdir()  # as validation leaves it
    assert main([*command(tiny_pipeline, people, tmp_path / "straight", pairs="none"), "--overwrite_output_dir"]) == 0
    assert not (tmp_path / "straight/partners").exists() and not (tmp_path / "straight/samples").exists()
    other = command(tiny_pipeline, people, tmp_path / "run", pairs="none", resume_from_checkpoint="latest")
    assert main([*other, "--max_train_steps", "6"]) == 2
    assert "made with other options: pairs" in capsys.readouterr().err


def test_the_defender_sees_the_latent_of_the_picture_that_was_drawn_for_the_photo(
    people: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    inputs = read(tiny_pipeline, people, tmp_path / "run", seed=7)
    with ExitStack() as held:
        inputs.claim_output(held)
        groups = inputs.encode()
    family = load_family(tiny_pipeline)
    size = {"height": 16, "width": 16}
    pictures = family.sample(
        ["a photo of person"] * 6, seed=FIRST_SEED + 7, num_inference_steps=2, guidance_scale=7.5, **size
    )
    files = sorted((tmp_path / "run/partners").glob("*.png"))
    assert all(np.array_equal(to_pil(one), Image.open(file)) for one, file in zip(pictures, files, strict=True))
    with torch.no_grad():  # in batches of the three photos of a person, because rounding depends on the batch
        latents = encode_images(family, load_images(files, 16), batch_size=3)
    for number, person in enumerate(("s01", "s02")):
        (data,) = groups[0][person]
        assert data.positive is not None
        assert torch.equal(data.positive.mean, latents.mean[3 * number : 3 * number + 3])
        certain = replace(
            data,
            instance=replace(data.instance, std=torch.zeros_like(data.instance.std)),
            positive=replace(data.positive, std=torch.zeros_like(data.positive.std)),
        )
        batch = certain.protection(torch.Generator().manual_seed(0), 3)
        for negative, positive in zip(batch.negative.latents, batch.positive.latents, strict=True):
            (index,) = [i for i in range(3) if torch.equal(negative, certain.instance.mean[i])]
            assert torch.equal(positive, latents.mean[3 * number + index])


def test_without_pairs_nothing_is_drawn_and_partners_are_left_out(
    people: Path, tiny_pipeline: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file in sorted((people / "protected/s01").glob("*.png")):
        partner(file)
    inputs = read(tiny_pipeline, people, tmp_path / "run", pairs="none")
    assert inputs.pairs == "none" and not inputs.drawn_partners
    assert f"pairs is none: the safe partners in {people}/protected are not used" in caplog.text
    with ExitStack() as held:
        inputs.claim_output(held)
        assert all(data.positive is None for data in [one for (one,) in inputs.encode()[0].values()])


def test_partners_of_the_users_own_are_taken_and_the_others_drawn(
    people: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    own = [partner(file) for file in sorted((people / "protected/s01").glob("*.png"))]
    inputs = read(tiny_pipeline, people, tmp_path / "run")
    assert inputs.pairs == "folder and drawn" and inputs.drawn_partners == 3
    with ExitStack() as held:
        inputs.claim_output(held)
        groups = inputs.encode()
    with torch.no_grad():
        wanted = encode_images(load_family(tiny_pipeline), load_images(own, 16), batch_size=4)
    own_partners, drawn = (groups[0][person][0].positive for person in ("s01", "s02"))
    assert own_partners is not None and torch.equal(own_partners.mean, wanted.mean)
    assert drawn is not None and len(drawn) == 3


def test_everybody_needs_partners_if_they_come_from_the_folder(
    people: Path, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in sorted((people / "protected/s01").glob("*.png")):
        partner(file)
    assert main(command(tiny_pipeline, people, tmp_path / "run", pairs="folder")) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"s02 in {people}/protected has no folder safe/" in said and "--pairs drawn" in said
    assert not (tmp_path / "run").exists()


def test_a_photo_that_the_base_model_draws_by_heart_is_no_partner(
    people: Path, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = load_family(tiny_pipeline).sample(
        ["a photo of person"], seed=FIRST_SEED + 1, num_inference_steps=2, guidance_scale=7.5, height=16, width=16
    )
    to_pil(picture[0]).save(people / "protected/s01/0.png")
    for _ in range(2):
        assert main(command(tiny_pipeline, people, tmp_path / "run", sample_batch_size=2)) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert (
            "knows s01/0.png by heart" in said
            and "as partner 2 of 6" in said
            and "partners/00001.png" in said
            and "--seed 6," in said
        )
        # It ends at the batch with the copy, and the same command does not go on drawing.
        assert len(list((tmp_path / "run/partners").glob("*.png"))) == 2
    assert main(command(tiny_pipeline, people, tmp_path / "run", seed=6, max_train_steps=1)) == 0
    assert len(list((tmp_path / "run/partners").glob("*.png"))) == 6


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl", "sd3"])
def test_the_papers_configurations_draw_partners(name: str) -> None:
    required = ["--instance_data_dir", "i", "--output_dir", "o"]
    config = load_config(HardenConfig, ["--config", str(CONFIGS / f"{name}.yaml"), *required])
    assert config.pairs == "drawn"
