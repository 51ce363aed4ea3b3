"""Photos that are changed, removed or replaced between two runs of `apdm perturb`, or during one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from changed_copy import changed_copy
from perturb_run import QUICK, arguments, files, here
from PIL import Image

from apdm.config import PerturbConfig, load_config
from apdm.core.errors import UserError
from apdm.export.manifest import verify_manifest
from apdm.jobs.perturb import load_perturb, perturb
from apdm.portraits import PIPELINE
from apdm.portraits.subjects import write_subjects


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Two subjects with four photos each."""
    write_subjects(tmp_path / "people", protected=2, others=0, consenting=0, strangers=1)
    return tmp_path / "people/protected"


def test_what_was_protected_of_a_photo_that_is_gone_goes_too(people: Path, tmp_path: Path):
    own, output = tmp_path / "own", tmp_path / "out"
    shutil.copytree(people, own)
    here(own, output, **QUICK)
    (own / "s01/003.png").unlink()
    shutil.rmtree(own / "s02")
    facts = here(own, output, **QUICK)
    assert sorted(files(output / "images")) == ["s01/000.png", "s01/001.png", "s01/002.png"]
    assert len(facts["photos"]) == 3 and not (output / "images/s02").exists()
    assert verify_manifest(output) == []


def test_a_jpeg_of_another_picture_is_not_taken_for_a_finished_photo(people: Path, tmp_path: Path):
    here(people, tmp_path / "out", **QUICK, **{"image_layer.format": "jpeg"})
    shipped = tmp_path / "out/images/s01/000.jpg"
    good = shipped.read_bytes()
    Image.new("RGB", Image.open(shipped).size, "magenta").save(shipped)
    here(people, tmp_path / "out", **QUICK, **{"image_layer.format": "jpeg"})
    assert shipped.read_bytes() == good


def test_photos_are_made_again_if_their_original_or_the_model_was_replaced(
    people: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tmp_path / "model"
    shutil.copytree(PIPELINE, model)

    def times(remade: str) -> dict[str, int]:
        caplog.clear()
        here(people, tmp_path / "out", pretrained_model_name_or_path=model, **QUICK)
        assert ("photos are made again" in caplog.text) is bool(remade) and caplog.text.strip().endswith(remade)
        return {path.parent.name: path.stat().st_mtime_ns for path in sorted(tmp_path.glob("out/images/*/001.png"))}

    first = times("")
    (people / "s02/003.png").unlink()
    assert times("") == first  # the others are as good as before
    original = people / "s01/000.png"
    Image.fromarray(np.array(Image.open(original)) ^ 1).save(original)  # within the budget of the protected photo
    second = times("are made again: s01")
    assert second["s01"] > first["s01"] and second["s02"] == first["s02"]
    changed_copy(PIPELINE, tmp_path / "other")
    shutil.rmtree(model)
    (tmp_path / "other").rename(model)
    third = times("are made again: s01, s02")
    assert third["s01"] > second["s01"] and third["s02"] > second["s02"]
    sampler = model / "scheduler/scheduler_config.json"
    sampler.write_text(json.dumps(json.loads(sampler.read_text()) | {"beta_end": 0.02}))
    fourth = times("are made again: s01, s02")
    assert fourth["s01"] > third["s01"]


def test_a_photo_that_is_replaced_while_others_are_protected_ends_the_run_and_the_next_one_takes_it(
    people: Path, tmp_path: Path
) -> None:
    """Its faces were looked for at the start. Protected as it is now, figures would speak of two pictures."""
    original, output = people / "s02/000.png", tmp_path / "out"

    def turn_it(done: int, steps: int) -> None:
        if (output / "images/s01/003.png").exists() and not (output / "images/s02").exists():
            Image.open(original).rotate(180).save(original)

    with pytest.raises(UserError, match=r"^s02/000\.png was changed during the run; run the command again$"):
        perturb(load_config(PerturbConfig, arguments(people, output, **QUICK)), watch=turn_it)
    assert not (output / "perturbation.json").exists() and not (output / "images/s02").exists()
    assert len(here(people, output, **QUICK)["photos"]) == 8


def test_a_photo_that_is_removed_while_the_model_is_loaded_ends_the_run_in_one_line(
    people: Path, tmp_path: Path
) -> None:
    config = load_config(PerturbConfig, arguments(people, tmp_path / "out", **QUICK))
    job, family = load_perturb(config, quiet=True)
    (people / "s02/000.png").unlink()
    with pytest.raises(UserError, match=r"^s02/000\.png cannot be read any more: No such file or directory$"):
        job.run(family, tmp_path / "out")
    assert not (tmp_path / "out").exists()
