"""The manifest of what is shipped, and the scan for what must not be in it."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from apdm.core.errors import UserError
from apdm.core.files import sha256_file
from apdm.export import pipeline as export
from apdm.export.leaks import scan_for_leaks
from apdm.export.manifest import verify_manifest, write_manifest
from apdm.families import Family, load_family

CONFIG_HASH = "c0ffee" * 10 + "c0ff"


def write(family: Family, directory: Path, base: Path, **options: Any) -> Path:
    facts: dict[str, Any] = {"base_path": base, "config_hash": CONFIG_HASH, "method": "apdm", "steps": 12}
    return export.export_model(family, directory, **facts, **options)


def shipped(tmp_path: Path) -> Path:
    for name in ("model/a.json", "images/s01/1.png", "results.json", "logs/x", "config.yaml", ".apdm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def test_the_manifest_lists_what_is_shipped_in_order_and_nothing_else(tmp_path: Path) -> None:
    manifest = json.loads(write_manifest(shipped(tmp_path), config_hash=CONFIG_HASH).read_text())
    names = [entry["path"] for entry in manifest["files"]]
    assert names == ["images/s01/1.png", "model/a.json", "results.json"]
    digest = sha256_file(tmp_path / "results.json")
    assert manifest["files"][-1] == {"path": "results.json", "sha256": digest, "size": len("results.json")}
    assert manifest["config_sha256"] == CONFIG_HASH
    assert manifest["package"]["torch"] == version("torch")


def test_a_changed_a_missing_and_an_added_file_are_found(tmp_path: Path) -> None:
    write_manifest(shipped(tmp_path), config_hash="")
    assert verify_manifest(tmp_path) == []
    (tmp_path / "results.json").write_text("better")
    (tmp_path / "model" / "a.json").rename(tmp_path / "model" / "b.json")
    (tmp_path / "logs" / "more").write_text("")
    assert verify_manifest(tmp_path) == [
        "model/a.json is missing",
        "results.json has changed",
        "model/b.json is not in the manifest",
    ]


@pytest.mark.parametrize("content", ["", "[]", '{"files": [{}]}', None])
def test_an_unreadable_manifest_is_bad_input(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="cannot be read"):
        verify_manifest(tmp_path)


def test_nothing_of_a_subject_is_in_the_exported_bytes(tiny_pipeline: Path, tmp_path: Path) -> None:
    """One step on a photo of the subject, under its prompt, then an export: none of it is in any file."""
    subject, prompt = "opaque-subject-4711", "a photo of zwx person, Jörg"
    photo = tmp_path / "subjects" / subject / "IMG_20240501_holiday.png"
    photo.parent.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(photo)

    family = load_family(tiny_pipeline)
    image = torch.tensor(np.array(Image.open(photo))).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        noisy = family.posterior(image).mean
    out = family.predict(family.denoiser, noisy, torch.tensor([5]), family.encode_prompts([prompt]))
    out.square().mean().backward()
    torch.optim.SGD(family.denoiser.parameters(), lr=0.1).step()
    write(family, tmp_path / "out" / "model", tiny_pipeline, single_file=True)
    write_manifest(tmp_path / "out", config_hash="")

    pixels = Image.open(photo).tobytes()
    needles: list[bytes | str] = [subject, prompt, "zwx person", photo.name, photo.stem, str(tmp_path)]
    needles += [photo.read_bytes()[-200:-150], pixels[100:132], image.numpy().tobytes()[:64]]
    needles += [noisy.numpy().tobytes()[:32], str(tiny_pipeline.parent)]
    assert scan_for_leaks(tmp_path / "out", needles) == []


def test_the_scan_finds_what_was_planted_in_bytes_json_headers_and_names(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "blob").write_bytes(b"\0" * 5000 + b"photo-bytes" + b"\0" * 5000)
    (tmp_path / "config.json").write_text(json.dumps({"prompt": "a photo of Jörg"}))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "subject-4711.txt").write_text("")
    (tmp_path / "notes").write_text("Jo\u0308rg")  # as some systems write it
    (tmp_path / "start").write_bytes(b"photo-bytes")
    save_file({"a": torch.zeros(2)}, tmp_path / "w.safetensors", metadata={"subject": "subject-4711"})
    assert scan_for_leaks(tmp_path, [b"photo-bytes", "a photo of Jörg", "Jörg", "subject-4711", "absent"]) == [
        ("blob", b"photo-bytes"),
        ("config.json", "a photo of Jörg"),
        ("config.json", "Jörg"),
        ("images/subject-4711.txt", "subject-4711"),
        ("notes", "Jörg"),
        ("start", b"photo-bytes"),
        ("w.safetensors", "subject-4711"),
    ]
    assert scan_for_leaks(tmp_path / "blob", [b"photo-bytes"]) == [("blob", b"photo-bytes")]


def test_a_scan_of_nothing_or_for_nothing_is_an_error_and_not_a_pass(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="empty"):
        scan_for_leaks(tmp_path, [""])
    with pytest.raises(FileNotFoundError):
        scan_for_leaks(tmp_path / "absent", ["needle"])
