"""Hardening against attackers who give each photo a caption of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import UNET, arguments, write_people

from apdm.cli import main
from apdm.config import HardenConfig, load_config
from apdm.config.groups.attackers import VarietyConfig
from apdm.data.separate_photos import Role
from apdm.export.leaks import scan_for_leaks
from apdm.families import load_family
from apdm.families.encoding import encode_images
from apdm.jobs.hardening.encoding import encode_subjects
from apdm.jobs.hardening.files import Photos, read_files

SHORT = {"audit.enabled": "false", "image_layer.enabled": "false", "max_train_steps": 2, "validation.steps": 0}


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Photos of a protected person, each with a caption."""
    folder = write_people(tmp_path / "people")
    write_captions(folder, ["goateed", "bearded", "freckled", "smiling"])
    return folder


def write_captions(people: Path, looks: list[str]) -> None:
    for person in sorted((people / "protected").iterdir()):
        names = [photo.name for photo in sorted(person.glob("*.png"))]
        texts = [f"a photo of sks person, {look}" for look in looks]
        rows = [{"file_name": name, "text": text} for name, text in zip(names, texts, strict=False)]
        (person / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_captions_are_one_more_variant_of_each_change_of_the_photos(tiny_pipeline: Path, people: Path) -> None:
    base = load_family(tiny_pipeline)
    photos = Photos.load(str(people / "protected"), 16, Role.PROTECTED, caption_column="text")
    variety = VarietyConfig(instance_prompts=["a photo of t@t person"], photos=["flip"], caption_column="text")
    config = HardenConfig(
        pretrained_model_name_or_path=str(tiny_pipeline),
        instance_data_dir=str(people / "protected"),
        output_dir="out",
        variety=variety,
    )
    with torch.no_grad():
        prior = encode_images(base, next(iter(photos.instance.values())), batch_size=4)
        (variants,) = encode_subjects(config, base, photos, prior).values()
        (captions,) = photos.captions.values()
        assert [len(one.instance_prompt) for one in variants] == [1, 1, 4, 1, 1, 4]
        for one in (variants[2], variants[5]):
            torch.testing.assert_close(one.instance_prompt, base.encode_prompts(captions).float())
        flipped = encode_images(base, next(iter(photos.instance.values())).flip(3), batch_size=4)
        # Pixels are rounded on their way to [0, 1] and back.
        torch.testing.assert_close(variants[3].instance.mean, flipped.mean, rtol=0, atol=1e-5)


def test_a_run_with_captions_hardens_otherwise_and_tells_none(
    tiny_pipeline: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def hardened(name: str, **changes: object) -> torch.Tensor:
        assert main(["harden", *arguments(tiny_pipeline, people, tmp_path / name, **SHORT, **changes)]) == 0
        return torch.cat([weight.flatten() for _, weight in sorted(load_file(tmp_path / name / UNET).items())])

    plain, own = hardened("plain"), hardened("own", **{"variety.caption_column": "text"})
    assert not torch.equal(plain, own)
    told = capsys.readouterr()
    assert "text: 4, of 1 person" in told.err and told.err.count("passed over") == 1  # without the option
    for secret in ("goateed", "freckled"):
        assert secret not in told.out + told.err and not scan_for_leaks(tmp_path / "own", [secret])


def test_captions_without_the_rare_word_are_counted(
    tiny_pipeline: Path, people: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (table,) = (people / "protected").glob("*/metadata.jsonl")
    given = arguments(tiny_pipeline, people, tmp_path / "out", **SHORT, **{"variety.caption_column": "text"})
    config = load_config(HardenConfig, given)
    read_files(config)
    assert "rare word" not in caplog.text
    table.write_text(table.read_text().replace("sks person, smiling", "person, smiling"))
    read_files(config)
    assert "1 of 4 captions lack the rare word of instance_prompt; write it into each caption" in caplog.text


def test_captions_that_are_missing_are_told_before_the_work(
    tiny_pipeline: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_captions(people, ["goateed", "bearded"])
    given = arguments(tiny_pipeline, people, tmp_path / "out", **SHORT, **{"variety.caption_column": "text"})
    assert main(["harden", *given]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert "metadata.jsonl has no caption for" in error and "goateed" not in error
    assert not (tmp_path / "out").exists()
