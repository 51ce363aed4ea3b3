"""`apdm env --models` loads what a file names, recognises it by its content, and says what it can be used for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from real_assets import ASSETS, needs_assets
from safetensors.torch import save_file
from tiny_judges import write_clip, write_dino, write_scripted_inception

from apdm.cli import main
from apdm.faces.mobilefacenet import MobileFaceNet
from apdm.metrics.inception import InceptionNetwork
from apdm.portraits import ADAPTER


def look(tmp_path: Path, capsys: pytest.CaptureFixture[str], models: dict[str, object], *more: str) -> tuple[int, str]:
    file = tmp_path / "models.yaml"
    file.write_text("".join(f"{name}: {path}\n" for name, path in models.items()))
    capsys.readouterr()
    code = main(["env", "--models", str(file), *more])
    return code, capsys.readouterr().out


def test_each_model_is_recognised_by_its_content(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(MobileFaceNet().state_dict(), tmp_path / "net.safetensors")
    save_file({"layers.0.adaLN_modulation.0.weight": torch.ones(2, 2)}, tmp_path / "z_image.safetensors")
    models = {
        "a": tiny_pipeline,
        "b": ADAPTER,
        "c": tmp_path / "net.safetensors",
        "d": tmp_path / "z_image.safetensors",
    }
    code, said = look(tmp_path, capsys, models)
    lines = said.splitlines()
    assert code == 0
    assert "ok" in lines[0] and "stable-diffusion" in lines[0] and "float32, 16 pixels" in lines[0]
    assert f"--pretrained_model_name_or_path {tiny_pipeline}" in lines[0]
    assert "FaceID adapter" in lines[1] and "MobileFaceNet" in lines[2] and "single-file checkpoint" in lines[3]
    jobs = dict(line.split("  ", 1) for line in lines[5:])
    assert jobs["harden"].strip() == jobs["zero-shot attack"].strip() == "ready"
    assert (
        "face detector" in jobs["audit of people"]
        and "features of pictures" in jobs["audit of people"]
        and "missing: features of pictures" not in jobs["harden"]
    )


def test_a_model_in_the_cache_needs_only_the_files_that_were_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--somebody--tiny-dino"
    fetched = write_dino(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    files = [path.name for path in sorted(fetched.iterdir())] + ["pytorch_model.bin"]  # nobody fetched the last one
    listing = {"format_version": 1, "files": {name: {"size": 1, "blob_id": "0"} for name in files}}
    (repository / "trees").mkdir()
    (repository / "trees" / f"{commit}.json").write_text(json.dumps(listing))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    code, said = look(tmp_path, capsys, {"dino": "somebody/tiny-dino"})
    assert code == 0 and "in the cache of the Hub" in said and "--judge dino:somebody/tiny-dino" in said


def test_feature_networks_are_recognised_as_judges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(InceptionNetwork().state_dict() | {"fc.weight": torch.zeros(1008, 2048)}, tmp_path / "fid.safetensors")
    models = {
        "dino": write_dino(tmp_path / "tiny-dino"),
        "clip": write_clip(tmp_path / "tiny-clip"),
        "inception": tmp_path / "fid.safetensors",
    }
    code, said = look(tmp_path, capsys, models)
    assert code == 0, said
    assert "features of pictures" not in said.partition("audit of people")[2].partition("\n")[0]
    for line, (kind, path) in zip(said.splitlines(), models.items(), strict=False):
        assert f"--judge {kind}:{path}" in line
    assert "utility in audits" in said and "utility in audits" in "".join(
        line for line in said.splitlines() if line.endswith("ready")
    )


def test_parts_beside_a_pipeline_and_files_that_run_code_are_recognised(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline / "unet")
    ControlNetModel.from_unet(unet).save_pretrained(tmp_path / "net")
    shutil.copytree(tmp_path / "net", tmp_path / "torn")
    (tmp_path / "torn/diffusion_pytorch_model.safetensors").write_bytes(b"torn")
    fid = write_scripted_inception(tmp_path / "fid.pt")
    models = {"net": tmp_path / "net", "torn": tmp_path / "torn", "fid": fid}
    code, said = look(tmp_path, capsys, models)
    assert code == 2 and f"ControlNet, 0 M weights: --faceid_controlnet {tmp_path}/net, beside an Instant" in said
    assert f"torn  FAILED  {tmp_path}/torn cannot be loaded: " in said
    assert f"fid   FAILED  {tmp_path}/fid.pt is a pickle, which can run code; give --allow_pickle true" in said
    code, said = look(tmp_path, capsys, {"fid": fid}, "--allow_pickle")
    assert code == 0 and f"the Inception network of FID: --judge inception:{tmp_path}/fid.pt" in said


def test_what_cannot_be_loaded_is_told_and_nothing_is_downloaded(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(MobileFaceNet().state_dict(), tmp_path / "net.pt")
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    for name in ("empty", "torn"):
        (tmp_path / name).mkdir()
    (tmp_path / "torn/config.json").write_text("{")
    models = {
        "good": tiny_pipeline,
        "hub": "nobody/no-such-model",
        "absent": tmp_path / "absent",
        "part": tiny_pipeline / "unet",
        "pickle": tmp_path / "net.pt",
        "bad": tmp_path / "bad.onnx",
        "empty": tmp_path / "empty",
        "torn": tmp_path / "torn",
        "other": tmp_path / "other.safetensors",
    }
    code, said = look(tmp_path, capsys, models)
    lines = {line.split()[0]: line for line in said.splitlines()[: len(models)]}
    assert code == 2
    assert "ok" in lines["good"] and all("FAILED" in lines[name] for name in models if name != "good")
    assert "nothing was downloaded" in lines["hub"] and "--allow_pickle true" in lines["pickle"]
    assert "name the folder with model_index.json" in lines["part"]
    assert "torn/config.json cannot be read; copy the folder anew" in lines["torn"]
    assert "no single-file checkpoint, no adapter for faces and no MobileFaceNet" in lines["other"]
    assert "is neither a face recogniser (" in lines["bad"] and "is no pipeline, no InsightFace pack" in lines["empty"]
    assert look(tmp_path, capsys, {"pickle": tmp_path / "net.pt"}, "--allow_pickle")[0] == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no models"),
        ("- a\n", "needs lines of the form `name: path`"),
        ("a: 3\n", "a has no path"),
        ("a: b\nc:\n", "c has no path"),
        ("a: $NOBODY_SET_THIS/b\n", "models.yaml: the environment variable NOBODY_SET_THIS is not set"),
        ("a: [b\n", "line 2: not valid YAML"),
        ("a: b\na: c\n", '"a" is given twice'),
    ],
)
def test_a_file_without_models_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    (tmp_path / "models.yaml").write_text(text)
    assert main(["env", "--models", str(tmp_path / "models.yaml")]) == 2
    assert said in capsys.readouterr().err
    assert main(["env", "--models", str(tmp_path / "absent.yaml")]) == 2
    assert "absent.yaml cannot be read" in capsys.readouterr().err


def test_without_models_versions_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    assert "diffusers" in capsys.readouterr().out
    assert main(["env", "--model", "x"]) == 2


def test_copies_of_one_recogniser_are_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = MobileFaceNet().state_dict()
    save_file(net, tmp_path / "net.safetensors")
    torch.save(net, tmp_path / "copy=1.pt")
    models = {"one": tmp_path / "net.safetensors", "two": tmp_path / "copy=1.pt"}
    code, said = look(tmp_path, capsys, models, "--allow_pickle")
    jobs = dict(line.split("  ", 1) for line in said.splitlines()[3:])
    assert code == 0 and "the same recogniser as one" in said.splitlines()[1]
    assert "face recogniser" in jobs["audit of people"].split(", ")


@needs_assets
def test_real_networks_are_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = {
        "pack": ASSETS / "encoders/insightface_pack",
        "recogniser": f"{ASSETS}/encoders/insightface_pack/rec_mobilefacenet.onnx=0.3",
        "yunet": ASSETS / "detectors/yunet_n_dynamic.onnx",
    }
    code, said = look(tmp_path, capsys, models)
    assert code == 0, said
    lines = said.splitlines()
    assert "detector and recogniser of 128 numbers" in lines[0] and "without gradients" not in lines[0]
    assert lines[0].endswith(
        f"--faces {models['pack']}=THRESHOLD"
    )  # nothing says it, and without it the run is refused
    assert "face recogniser of 128 numbers for faces of 112 pixels" in lines[1] and "YuNet" in lines[2]
    assert [line for line in lines if line.startswith("perturb, layer 2")][0].endswith("ready")
