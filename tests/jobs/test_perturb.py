"""`apdm perturb` as users run it: real processes, the bundled pipeline, files on disk."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest
from foreign import foreign_lines
from in_process import run_here
from perturb_run import QUICK, ROOT, arguments, files, here
from PIL import Image
from real_signals import signal_when

from apdm.config import PerturbConfig, load_config
from apdm.core.errors import Interrupted, UserError
from apdm.export.manifest import verify_manifest
from apdm.jobs.perturb import claim_photo_dir, perturb
from apdm.portraits.subjects import write_subjects

SLOW = {"image_layer.dladiff.rounds": 5}  # where a process must be killed while it works


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Two subjects with four photos each."""
    write_subjects(tmp_path / "people", protected=2, others=0, consenting=0, strangers=1)
    return tmp_path / "people/protected"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Photos like `people`, and the output folder of a run that protected them. Read them, never write into them."""
    folder = tmp_path_factory.mktemp("finished")
    write_subjects(folder / "people", protected=2, others=0, consenting=0, strangers=1)
    here(folder / "people/protected", folder / "out")
    return folder / "people/protected", folder / "out"


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "apdm", "perturb", *argv]


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def on_a_terminal(words: Sequence[str]) -> tuple[int, str]:
    """Run a command whose standard error is a terminal, as bars need it. Returns the exit code and what it wrote."""
    terminal, side = pty.openpty()
    termios.tcsetwinsize(side, (24, 100))  # a new one is 0 columns wide
    process = subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=side)
    os.close(side)
    said = bytearray()
    with suppress(OSError):  # Linux raises it when nobody has the other side open any more
        while part := os.read(terminal, 65536):
            said += part
    os.close(terminal)
    return process.wait(timeout=300), said.decode(errors="replace").replace("\r\n", "\n")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_the_command_ships_every_photo_within_its_budget_and_touches_no_original(people: Path, tmp_path: Path):
    before, output = files(people), tmp_path / "out"
    code, said = on_a_terminal(command(*arguments(people, output)))
    assert code == 0, said
    assert foreign_lines(said) == []
    assert files(people) == before
    assert files(output / "images").keys() == before.keys()
    for name in before:
        change = np.abs(pixels(output / "images" / name) - pixels(people / name)).max()
        assert 0 < change <= 11
    facts = json.loads((output / "perturbation.json").read_text())
    assert [row["subject"] for row in facts["photos"]] == ["s01"] * 4 + ["s02"] * 4
    for row in facts["photos"]:
        assert 0 < row["visible"]["linf"] <= 11 / 255 + 1e-9 and row["visible"]["psnr"] > 27
        (face,) = row["faces"]
        assert face["cosine"]["portrait-a"]["to_original"] < 0.99
    assert verify_manifest(output) == []
    # One bar, whose steps are those of both subjects together, to its end.
    totals = re.findall(r"(\d+)/(\d+) \[", said)
    assert {total for _, total in totals} == {"28"}, said
    assert totals[-1] == ("28", "28") and "step/s" in said


def test_a_killed_run_goes_on_with_the_missing_photos_to_the_same_files(people: Path, tmp_path: Path):
    here(people, tmp_path / "whole", **SLOW)
    output = tmp_path / "killed"
    process = subprocess.Popen(command(*arguments(people, output, **SLOW)), cwd=ROOT, env=environment(), stderr=-3)
    finished, deadline = output / "images/s01/003.png", time.monotonic() + 120
    while not finished.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert finished.exists() and not (output / "images/s02/003.png").exists()
    assert not (output / "perturbation.json").exists()
    first = finished.stat().st_mtime_ns
    facts = here(people, output, **SLOW)
    assert finished.stat().st_mtime_ns == first
    assert files(output / "images") == files(tmp_path / "whole/images")
    assert len(facts["photos"]) == 8


def test_two_processes_share_the_people_and_make_the_same_files(finished: tuple[Path, Path], tmp_path: Path):
    people, one = finished
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/cpu_2proc_ddp.yaml"]
    words = ["-m", "apdm", "perturb", *arguments(people, tmp_path / "two")]
    code, said = on_a_terminal([*launch, *words])
    assert code == 0, said
    assert files(tmp_path / "two/images") == files(one / "images")
    assert foreign_lines(said) == []
    assert {total for _, total in re.findall(r"(\d+)/(\d+) \[", said)} == {"14"}  # one person each
    assert verify_manifest(tmp_path / "two") == []


def test_a_photo_that_was_changed_or_lost_is_made_again(finished: tuple[Path, Path], tmp_path: Path):
    people, made = finished
    known = files(shutil.copytree(made, tmp_path / "out") / "images")
    Image.new("RGB", (64, 64)).save(tmp_path / "out/images/s01/000.png")
    (tmp_path / "out/images/s02/001.png").unlink()
    here(people, tmp_path / "out")
    assert files(tmp_path / "out/images") == known


def test_a_signal_ends_it_in_one_line_with_code_3_and_it_goes_on(finished: tuple[Path, Path], tmp_path: Path):
    people, whole = finished
    with signal_when(tmp_path / "out/images/s01/003.png", signal.SIGTERM):
        stopped = run_here("perturb", *arguments(people, tmp_path / "out"))
    assert stopped.returncode == 3
    said = stopped.stderr.rstrip()
    assert said.endswith("apdm: interrupted: photos that are finished are kept; the same command goes on")
    assert not (tmp_path / "out/images/s02/003.png").exists()
    assert len(here(people, tmp_path / "out")["photos"]) == 8
    assert files(tmp_path / "out/images") == files(whole / "images")


def test_other_options_need_leave_to_replace_what_is_there(finished: tuple[Path, Path], tmp_path: Path):
    people, made = finished
    known = files(shutil.copytree(made, tmp_path / "out") / "images")
    with pytest.raises(UserError, match="already holds a result"):
        here(people, tmp_path / "out", seed=1)
    assert files(tmp_path / "out/images") == known
    here(people, tmp_path / "out", seed=1, overwrite_output_dir="true")
    assert files(tmp_path / "out/images") != known


def test_a_subject_is_protected_alike_whoever_else_is_there(finished: tuple[Path, Path], tmp_path: Path):
    people, both = finished
    shutil.copytree(people / "s02", tmp_path / "alone/s02")
    here(tmp_path / "alone", tmp_path / "one")
    assert files(tmp_path / "one/images/s02") == files(both / "images/s02")


def test_photos_of_every_kind_and_size_come_back_whole(people: Path, tmp_path: Path):
    kinds = tmp_path / "kinds/s01"
    kinds.mkdir(parents=True)
    face = Image.open(people / "s01/000.png")
    face.resize((150, 150)).save(kinds / "large.jpg")
    wide = Image.new("RGB", (200, 90), "white")
    wide.paste(face.resize((80, 80)), (60, 5))
    wide.save(kinds / "wide.png")
    face.convert("RGBA").save(kinds / "alpha.webp", lossless=True)
    face.convert("L").save(kinds / "grey.png")
    Image.fromarray(np.asarray(face.convert("L")).astype(np.uint16) * 257).save(kinds / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    face.resize((64, 80)).save(kinds / "turned.jpg", exif=exif)
    here(kinds.parent, tmp_path / "out")
    sizes = {p.name: Image.open(p).size for p in sorted((tmp_path / "out/images/s01").iterdir())}
    assert sizes == {
        "large.png": (150, 150),
        "wide.png": (200, 90),
        "alpha.png": (64, 64),
        "grey.png": (64, 64),
        "deep.png": (64, 64),
        "turned.png": (80, 64),
    }


def test_jpeg_is_written_on_request_and_its_loss_said(people: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    facts = here(people, tmp_path / "out", **{"image_layer.format": "jpeg"})
    assert sorted(p.name for p in (tmp_path / "out/images/s01").iterdir()) == [f"00{i}.jpg" for i in range(4)]
    assert facts["format"] == "jpeg" and "JPEG" in caplog.text
    again = here(people, tmp_path / "out", **{"image_layer.format": "jpeg"})
    assert [row["visible"] for row in again["photos"]] == [row["visible"] for row in facts["photos"]]


def test_a_stopped_run_leaves_no_figures_of_the_photos_before(people: Path, tmp_path: Path) -> None:
    here(people, tmp_path / "out", **QUICK)
    shutil.copytree(people / "s01", people / "s03")
    config = load_config(PerturbConfig, arguments(people, tmp_path / "out", **QUICK))

    def stop(done: int, steps: int) -> None:
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        perturb(config, watch=stop)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {".apdm", "config.yaml", "images", "photo_sources.json"}


def test_a_photo_without_a_face_is_named_and_left_to_the_first_layer_or_refused(
    people: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(people / "s01/noise.png")
    caplog.set_level(logging.INFO)
    facts = here(people, tmp_path / "out")
    assert "faces of s01  5 photos, 4 with a face; no face in noise.png" in caplog.text
    assert re.search(r"faces +one in each photo of 1 other folder", caplog.text)
    assert [(one["subject"], one["photos"], one["without"]) for one in facts["people"]] == [
        ("s01", 5, [4]),
        ("s02", 4, []),
    ]
    assert [encoder["name"] for encoder in facts["misled"]] == ["portrait-a"]
    row = facts["photos"][4]
    assert row["faces"] == [] and 0 < row["visible"]["linf"] <= 7 / 255 + 1e-9
    assert "not protected" not in caplog.text
    facts = here(people, tmp_path / "faces", **{"image_layer.method": "none"})
    assert facts["photos"][4]["visible"]["linf"] == 0
    assert "no face was found in s01/noise.png, and image_layer.method is none" in caplog.text
    with pytest.raises(UserError, match="no face was found in s01/noise.png"):
        here(people, tmp_path / "refused", **{"image_layer.zero_shot.no_face": "refuse"})
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_layer.epsilon": 0.0039}, "it needs to be at least 0.0039215"),  # less than a grey level
        ({"image_layer.epsilon": 0.3}, "it needs to be at most 0.25"),
        ({"image_layer.zero_shot.epsilon": 0.3}, "at most 0.25"),
        ({"image_layer.method": "none", "image_layer.zero_shot.enabled": "false"}, "nothing would be protected"),
        ({"image_layer.zero_shot.encoders": "missing.onnx=0.3"}, "missing.onnx"),
        ({"image_layer.zero_shot.encoders": "portrait-c"}, "portrait-c"),
        ({"image_layer.zero_shot.detector": "nowhere"}, "nowhere"),
        ({"image_layer.zero_shot.weights": "1 2"}, "2 numbers for 1 encoder;"),
        ({"resolution": 40}, "resolution 40"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(people: Path, tmp_path: Path, changes: dict, message: str):
    flags = arguments(people, tmp_path / "out")
    for key, value in changes.items():
        flags += [f"--{key}", *str(value).split()]
    with pytest.raises(UserError) as error:
        perturb(load_config(PerturbConfig, flags))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["", "out", "s01", ".."])
def test_the_photos_own_folder_is_never_the_output(people: Path, where: str):
    before = files(people)
    result = run_here("perturb", *arguments(people, people / where))
    assert result.returncode == 2 and "originals are never overwritten" in result.stderr
    assert result.stderr.count("apdm: error: ") == 1 and foreign_lines(result.stderr) == []
    assert files(people) == before


def test_a_link_to_the_photos_folder_is_seen_through(people: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(people)
    with pytest.raises(UserError, match="never overwritten"):
        here(people, tmp_path / "link")


def test_a_folder_of_somebody_elses_is_not_taken(people: Path, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(UserError, match="not from this program"):
        claim_photo_dir(load_config(PerturbConfig, arguments(people, tmp_path / "mine")), ExitStack())


def test_layers_run_in_the_order_that_is_asked_for_within_the_same_ball(finished: tuple[Path, Path], tmp_path: Path):
    people, made = finished
    first = json.loads((made / "perturbation.json").read_text())
    second = here(people, tmp_path / "second", **{"image_layer.order": "zero_shot_first"})
    assert files(made / "images") != files(tmp_path / "second/images")
    for facts in (first, second):
        assert all(0 < row["visible"]["linf"] <= 11 / 255 + 1e-9 for row in facts["photos"])
    # What the last layer has done is not undone by another.
    last, before = (
        max(row["faces"][0]["cosine"]["portrait-a"]["to_original"] for row in facts["photos"])
        for facts in (first, second)
    )
    assert last <= before + 0.05
