"""`apdm verify` finds each thing that must not be, in a folder that is sound but for that."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from unicodedata import normalize

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file
from tiny_pipelines import BUILDERS

from apdm.cli import main
from apdm.config import VerifyConfig
from apdm.config.continuation import options_hash
from apdm.core.files import claim_output_dir
from apdm.export.manifest import write_manifest
from apdm.export.pipeline import export_model
from apdm.families import load_family
from apdm.jobs.verify import verify
from apdm.portraits.subjects import write_subjects

UNET = "model/unet/diffusion_pytorch_model.safetensors"
PROMPT = "a photo of qzx person"


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    write_subjects(folder, protected=1, others=1, consenting=1, strangers=2)
    return folder


@pytest.fixture(scope="module")
def sound(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = claim_output_dir(tmp_path_factory.mktemp("run") / "out")
    family = load_family(tiny_pipeline)
    export_model(family, root / "model", base_path=tiny_pipeline, config_hash="ab" * 32, method="apdm", steps=1)
    (root / "config.yaml").write_text(f"instance_prompt: {PROMPT}\n")
    write_manifest(root, config_hash="")
    return root


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "out"))


def test_a_folder_as_it_was_shipped_is_sound(sound: Path, people: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["verify", str(sound)]) == 0
    assert main(["verify", str(sound), "--subjects", str(people)]) == 0
    said = capsys.readouterr().out
    assert "all files as shipped, the model loads, no prompt of the run in it\n" in said
    assert "all files as shipped, the model loads, nothing of a subject in it\n" in said
    assert "looked for 0 ids, 0 photos and the prompts in " in said
    assert re.search(r"looked for 3 ids, \d\d photos and the prompts in \d\d files\n", said)


@pytest.mark.usefixtures("any_flux_width")
@pytest.mark.parametrize("kind", BUILDERS)
def test_an_exported_model_of_every_family_is_sound(folders: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    root = claim_output_dir(tmp_path / "out")
    source = folders(kind)
    facts: dict[str, Any] = {"config_hash": "ab" * 32, "method": "apdm", "steps": 1}
    export_model(load_family(source), root / "model", base_path=source, single_file=True, **facts)
    write_manifest(root, config_hash="")
    assert verify(VerifyConfig(output_dir=str(root))).problems == ()


def test_what_was_found_is_also_told_as_json_and_quietly(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] and told["problems"] == [] and told["files"] > 5
    (folder / "model/notes.txt").write_text("n")
    assert main(["verify", str(folder), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["ok"] and told["problems"] == ["model/notes.txt is not in the manifest"]
    assert main(["verify", str(folder), "--quiet"]) == 1
    assert capsys.readouterr().out.splitlines() == [*told["problems"], f"{folder}: 1 problem"]


def test_of_a_folder_without_a_model_it_is_not_said_that_one_loads(
    tmp_path: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = claim_output_dir(tmp_path / "photos")
    (root / "images").mkdir()
    Image.new("RGB", (32, 32)).save(root / "images/a.png")
    write_manifest(root, config_hash="")
    assert main(["verify", str(root)]) == 0
    assert f"{root}: all files as shipped\n" in capsys.readouterr().out
    assert main(["verify", str(root), "--subjects", str(people)]) == 0
    assert f"{root}: all files as shipped, nothing of a subject in it\n" in capsys.readouterr().out


def header(key: str, value: str) -> Callable[[Path, Path], None]:
    def change(folder: Path, people: Path) -> None:
        save_file(load_file(folder / UNET), folder / UNET, metadata={"format": "pt", key: value})

    return change


def inside_weights(folder: Path, people: Path) -> None:
    photo = (people / "protected/s01/000.png").read_bytes()
    weights = load_file(folder / UNET) | {"extra": torch.frombuffer(bytearray(photo), dtype=torch.uint8)}
    save_file(weights, folder / UNET)


def as_protected(folder: Path, people: Path) -> None:
    shutil.copytree(people / "protected/s01", folder / "images/s01")


def noted_photo(folder: Path, people: Path) -> None:
    notes = PngInfo()
    notes.add_text("parameters", "taken at home")
    (folder / "images/s01").mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(folder / "images/s01/0.png", pnginfo=notes)


def torn_photo(folder: Path, people: Path) -> None:
    noted_photo(folder, people)
    (folder / "images/s01/0.png").write_bytes(b"torn")


def absolute_path(folder: Path, people: Path) -> None:
    path = folder / "model/unet/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_name_or_path": "/home/someone/model"}))


def broken_denoiser(folder: Path, people: Path) -> None:
    weights = load_file(folder / UNET)
    save_file(weights | {"conv_out.bias": torch.full_like(weights["conv_out.bias"], 1e38)}, folder / UNET)


def half_text_encoder(folder: Path, people: Path) -> None:
    """As an export of a half-precision model once was: diffusers' default is float32 for the denoiser alone."""
    path = folder / "model/text_encoder/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float16"}))


def card(text: str) -> Callable[[Path, Path], object]:
    return lambda folder, people: (folder / "model/README.md").write_text(text)


def file(name: str, content: bytes = b"0") -> Callable[[Path, Path], object]:
    return lambda folder, people: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder, people: (folder / "model/README.md").unlink(), "model/README.md is missing"),
        (file("model/README.md", b"other"), "model/README.md has changed"),
        (file("model/evil.bin"), "model/evil.bin is a pickle"),
        (file("model/evil.bin"), "model/evil.bin is not in the manifest"),
        (file("notes.txt"), "notes.txt is not in the manifest, nor"),
        (file(UNET, b"torn"), "diffusion_pytorch_model.safetensors has changed"),
        (file(UNET, b"torn"), "is neither a safetensors file nor"),
        (file("results.json", b'{"schema": 7}'), "has schema 7, this program reads 2"),
        (header("name", "x"), "unknown entry 'name' in its header"),
        (header("apdm.method", "for s01"), f"{UNET} holds the id of a subject"),
        (header("apdm.method", PROMPT), f"{UNET} holds a prompt"),
        (card("made for s01."), "model/README.md holds the id of a subject"),
        (card("made for s012."), "model/README.md has changed"),
        (inside_weights, f"{UNET} holds bytes of a subject's photo"),
        (as_protected, "images/s01/000.png is a subject's photo as it was"),
        (noted_photo, "images/s01/0.png carries parameters"),
        (torn_photo, "images/s01/0.png is no picture"),
        (broken_denoiser, "the pipeline folder does not draw: the picture has values that are not finite"),
        (half_text_encoder, "the pipeline folder does not draw: mat1 and mat2 must have the same dtype"),
        (file("model/unet/config.json", b"{"), "model/unet/config.json has changed"),
        (absolute_path, "model/unet/config.json holds a path of the machine"),
        (lambda folder, people: shutil.copy(people / "strangers/000.png", folder / "model/x.png"), "picture inside a"),
    ],
)
def test_what_must_not_be_is_said(
    change: Callable[[Path, Path], None],
    said: str,
    folder: Path,
    people: Path,
    capsys: pytest.CaptureFixture[str],
):
    change(folder, people)
    assert main(["verify", str(folder), "--subjects", str(people)]) == 1
    assert said in capsys.readouterr().out


def test_captions_beside_photos_are_looked_for_and_prompts_of_the_run_among_them_are_not(
    folder: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captioned = Path(shutil.copytree(people, tmp_path / "people"))
    photo = next(captioned.glob("protected/*/*.png"))
    for table in sorted(captioned.rglob("metadata.jsonl")):
        table.unlink()
    photo.with_suffix(".txt").write_text("a photo of qzx person with a green scarf", encoding="utf-8")
    line = json.dumps({"file_name": photo.name, "text": PROMPT, "said": "wearing a “zürich” shirt"})
    (photo.parent / "metadata.jsonl").write_text(line + "\n", encoding="utf-8")
    assert main(["verify", str(folder), "--subjects", str(captioned)]) == 0
    told = re.sub(" +", " ", capsys.readouterr().err)
    assert "captions 3 texts beside the photos" in told and "passed over" not in told
    for place, text in (("model/README.md", "A Photo: wearing a “zürich” shirt."), ("report.html", PROMPT)):
        (folder / place).write_text(text, encoding="utf-8")
    assert main(["verify", str(folder), "--subjects", str(captioned)]) == 1
    said = capsys.readouterr().out
    assert said.count("holds a caption of a subject's photo") == 1 and "model/README.md holds a caption" in said


def test_a_runs_checkpoints_are_working_files_and_folders_like_them_are_not(
    folder: Path, people: Path, capsys: pytest.CaptureFixture[str]
):
    (folder / "checkpoint-000100").mkdir()
    assert main(["verify", str(folder)]) == 0
    (folder / "checkpoint-best").mkdir()
    assert main(["verify", str(folder)]) == 1
    assert "checkpoint-best is not in the manifest" in capsys.readouterr().out


def test_an_id_within_another_word_or_in_a_file_that_cannot_be_read_is_not_an_id(
    folder: Path, people: Path, capsys: pytest.CaptureFixture[str]
):
    card("made for s012.")(folder, people)
    for name in ("torn.json", "torn.md"):
        (folder / "model" / name).write_bytes(b"{\xff")
    main(["verify", str(folder), "--subjects", str(people)])
    assert "id of a subject" not in capsys.readouterr().out


def test_photos_directly_in_a_folder_are_s01_whatever_the_folder_is_called(
    folder: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flat = Path(shutil.copytree(people / "protected/s01", tmp_path / "photos"))
    card("of no photos")(folder, people)
    write_manifest(folder, config_hash="")
    assert main(["verify", str(folder), "--subjects", str(flat)]) == 0
    card("made for s01")(folder, people)
    assert main(["verify", str(folder), "--subjects", str(flat)]) == 1
    assert "id of a subject" in capsys.readouterr().out


def test_linked_folders_and_photos_without_a_suffix_are_looked_for(
    folder: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    subjects = tmp_path / "subjects"
    (subjects / "bob/2024/may").mkdir(parents=True)
    (subjects / "Photos").mkdir()
    (subjects / "Photos/ann").symlink_to(people / "protected/s01")
    shutil.copy(people / "other/o01/000.png", subjects / "bob/2024/may/IMG_0001")
    (subjects / "bob/IMG_0002.CR3").write_bytes(bytes(range(256)) * 4)
    (subjects / "bob/IMG_0001.txt").write_text("a caption")
    (subjects / "bob/IMG_0001.NEF").write_bytes(bytes(range(255)) * 4)  # the raw file of the photo of this name
    (subjects / "bob/.cara").mkdir()
    shutil.copy(people / "other/o01/001.png", subjects / "bob/.cara")
    shutil.copy(people / "protected/s01/000.png", folder / "model/extra")
    shutil.copy(people / "other/o01/000.png", folder / "model/vae/weights")
    shutil.copy(subjects / "bob/IMG_0001.NEF", folder / "model/unet/raw")
    shutil.copy(subjects / "bob/.cara/001.png", folder / "model/unet/hidden")
    shutil.copy(subjects / "bob/IMG_0002.CR3", folder / "model/unet/readme")
    card("made for bob")(folder, people)
    assert main(["verify", str(folder), "--subjects", str(subjects)]) == 1
    said = capsys.readouterr()
    for name in ("extra", "vae/weights", "unet/readme", "unet/raw", "unet/hidden"):
        assert f"model/{name} is a subject's photo as it was" in said.out
    assert "model/extra is a picture inside a model" in said.out
    assert "model/README.md holds the id of a subject, bob" in said.out
    assert "people  4 (2024, ann, bob, may)" in " ".join(said.err.replace("apdm: ", "").split(" " * 6))
    assert f"8 photos in {subjects}" in said.err and "1 .txt (such as bob/IMG_0001.txt)" in said.err


@pytest.mark.parametrize(("named", "written"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_an_id_is_found_whichever_form_of_unicode_it_has(
    named: Literal["NFC", "NFD"],
    written: Literal["NFC", "NFD"],
    folder: Path,
    people: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    for person in ("Zoë", "Andréa Müller"):
        shutil.copytree(people / "protected/s01", tmp_path / "subjects" / normalize(named, person))
    card(normalize(written, "made for Zoë"))(folder, people)
    (folder / "model/unet" / normalize(written, "Zoë.json")).write_text("{}")
    weights = load_file(folder / UNET)
    note = torch.frombuffer(bytearray(normalize(written, "Andréa Müller").encode()), dtype=torch.uint8)
    save_file(weights | {"note": note}, folder / UNET)
    main(["verify", str(folder), "--subjects", str(tmp_path / "subjects")])
    said = normalize("NFC", capsys.readouterr().out)
    for file in ("model/README.md", "model/unet/Zoë.json"):
        assert f"{file} holds the id of a subject, Zoë" in said
    assert f"{UNET} holds the id of a subject, Andréa Müller" in said


def test_an_id_of_digits_is_looked_for_among_texts_and_not_among_numbers(
    folder: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(people / "protected/s01", tmp_path / "subjects/4")
    shutil.copytree(people / "protected/s01", tmp_path / "subjects/16")
    file = folder / "model/unet/config.json"
    for more, code in (({"made_of": "16 blocks"}, 0), ({"made_for": "16"}, 1)):
        file.write_text(json.dumps(json.loads(file.read_text()) | more))
        write_manifest(folder, config_hash="")
        assert main(["verify", str(folder), "--subjects", str(tmp_path / "subjects")]) == code
    assert "id of a subject" in capsys.readouterr().out


def test_a_second_tokenizers_words_are_no_ids_and_the_simulated_attackers_prompts_are_prompts(
    folder: Path, people: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(folder / "model/tokenizer", folder / "model/tokenizer_2")
    (folder / "model/tokenizer_2/vocab.json").write_text(json.dumps({"s01</w>": 1}))
    write_manifest(folder, config_hash="")
    assert main(["verify", str(folder), "--subjects", str(people)]) == 0
    (folder / "config.yaml").write_text("variety:\n  instance_prompts: [a photo of vwx person]\n")
    card("say a photo of vwx person")(folder, people)
    capsys.readouterr()
    main(["verify", str(folder), "--subjects", str(people)])
    assert "holds a prompt" in capsys.readouterr().out


def test_options_of_another_run_than_that_of_the_files_are_a_problem(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a change by hand, or when a later run into the folder was stopped before it wrote its model."""
    config = folder / "config.yaml"
    write_manifest(folder, config_hash=options_hash(config.read_text()))
    config.write_text(config.read_text() + "resume_from_checkpoint: latest\noutput_dir: moved\n")  # decide nothing
    assert main(["verify", str(folder)]) == 0
    for text in ("instance_prompt: a photo of abc person\n", "instance_prompt: [\n", ""):
        config.write_text(text)
        assert main(["verify", str(folder)]) == 1
        assert "config.yaml is not that of the run that wrote the other files" in capsys.readouterr().out
    config.unlink()
    assert main(["verify", str(folder)]) == 0


@pytest.mark.parametrize("option", [["."], ["--subjects", "."]])
def test_a_folder_without_manifest_and_subjects_without_photos_are_bad_input(
    option: list[str], sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["verify", *([str(sound)] if option[0].startswith("-") else []), *option]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("apdm: error: ")


def test_the_single_file_is_loaded_too(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "model.safetensors").write_bytes(b"torn")
    write_manifest(folder, config_hash="")
    assert main(["verify", str(folder)]) == 1
    said = capsys.readouterr().out
    assert "manifest" not in said and "1 problem\n" in said


def test_a_single_file_that_says_something_else_than_the_folder_is_told(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = claim_output_dir(tmp_path / "out")
    facts: dict[str, Any] = {"config_hash": "ab" * 32, "method": "apdm", "steps": 1}
    export_model(load_family(tiny_pipeline), root / "model", base_path=tiny_pipeline, single_file=True, **facts)
    file = root / "model.safetensors"
    save_file(load_file(file) | {"v_pred": torch.empty(0)}, file)  # diffusers does not look at this entry
    write_manifest(root, config_hash="")
    assert main(["verify", str(root)]) == 1
    assert "has the entry v_pred" in capsys.readouterr().out
