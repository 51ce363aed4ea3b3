"""Attacks and audits with a caption for each photo: checked before the work, keyed by the captions, and never told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from attack_run import options, words, write_people
from changed_copy import changed_copy
from foreign import foreign_lines

from apdm.cli import main
from apdm.export.leaks import scan_for_leaks
from apdm.portraits.subjects import write_photos

SPEC = "lora:rank=2,max_train_steps=3,learning_rate=1e-2,caption_column=text"
SECRETS = ("freckled", "goateed")


def write_captions(person: Path, looks: str, photos: int = 4) -> None:
    """Captions of the first photos of a person."""
    names = [path.name for path in sorted(person.glob("*.png"))][:photos]
    rows = [{"file_name": name, "text": f"a photo of t@t person, {looks}, {n}"} for n, name in enumerate(names)]
    (person / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Photos of two people with captions of the four photos of each that the attacker has."""
    root = write_people(tmp_path / "photos")
    write_photos(4, range(6), root / "s02", 48)
    for person, looks in zip(("s01", "s02"), SECRETS, strict=True):
        write_captions(root / person, looks)
    return root


def rows(output: Path) -> dict[str, Any]:
    content = json.loads((output / "attack.json").read_text())
    return {row["subject"]: row["curve"] for row in content["attacks"] if row["status"] == "ok"}


def test_an_attack_depends_on_the_captions_and_tells_none(
    tiny_pipeline: Path,
    people: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def attack(name: str, spec: str = SPEC) -> dict[str, Any]:
        values = options(tiny_pipeline, people, tmp_path / name, attack=[spec], save_model=True)
        assert main(["attack", *words(values)]) == 0
        return rows(tmp_path / name)

    first = attack("first")
    keys = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "first/cells").glob("*/")}
    assert attack("first") == first
    write_captions(people / "s01", SECRETS[1])
    second = attack("first")
    assert second["s01"] != first["s01"] and second["s02"] == first["s02"]
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "first/cells").glob("*/")}
    # Neither the attack on s02 nor the class pictures were made again.
    assert len(set(keys.items()) & set(again.items())) == 2 and len(again) == 3
    others = attack("others", f"{SPEC},draw_captions=false")
    assert others["s02"][0] != second["s02"][0] and others["s02"][1]["loss"] == second["s02"][1]["loss"]
    told = capsys.readouterr()
    assert "text: 8, of 2 people" in told.err
    for secret in SECRETS:
        assert secret not in told.out + told.err
        assert not scan_for_leaks(tmp_path / "first", [secret]) and not scan_for_leaks(tmp_path / "others", [secret])


def test_bad_captions_are_told_before_the_work(
    tiny_pipeline: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def errors(**changes: Any) -> list[str]:
        values = options(tiny_pipeline, people, tmp_path / "out", **{"attack": [SPEC], **changes})
        assert main(["attack", *words(values)]) == 2
        assert not (tmp_path / "out").exists()
        return [line for line in capsys.readouterr().err.splitlines() if "error: " in line]

    both = errors(attack=[SPEC.replace("=text", "=texts")], dry_run="true")
    assert [line.partition(": caption_column=texts: ")[2] for line in both] == [
        f"{person}/metadata.jsonl has no column texts; it has text" for person in ("s01", "s02")
    ]
    write_captions(people / "s02", SECRETS[0], photos=3)
    (error,) = errors()
    assert "s02/metadata.jsonl has no caption for s02/003.png" in error
    (people / "s02/metadata.jsonl").unlink()
    (error,) = errors(attack=["dreambooth", SPEC])
    assert "there is no s02/metadata.jsonl" in error


def test_captions_without_the_rare_word_and_long_ones_are_counted_in_a_warning(
    tiny_pipeline: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = people / "s02/metadata.jsonl"
    first, *rest = file.read_text().splitlines()
    long = rest[0].replace("goateed", "goateed " * 80)
    file.write_text("\n".join([first.replace("t@t ", ""), long, *rest[1:]]))
    values = options(tiny_pipeline, people, tmp_path / "out", attack=[SPEC], dry_run=True)
    assert main(["attack", *words(values)]) == 0
    told = capsys.readouterr().err
    assert '1 of 4 captions of s02 lack "t@t"' in told and "captions of s01" not in told
    assert "1 of 4 captions of s02 are longer than the model reads" in told and "goatee" not in told
    assert foreign_lines(told) == []


def test_an_audit_reads_the_captions_of_the_people_whom_it_attacks(
    tiny_pipeline: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hardened = changed_copy(tiny_pipeline, tmp_path / "hardened")
    write_photos(5, range(6), tmp_path / "other/o01", 48)
    values = options(tiny_pipeline, people, tmp_path / "out", attack=[], eval_steps=[1], seeds=1)
    given = {
        **{
            key: value
            for key, value in values.items()
            if key not in ("pretrained_model_name_or_path", "photos", "attack")
        },
        "base": str(tiny_pipeline),
        "hardened": str(hardened),
        "subjects": str(people),
        "attacks": [SPEC],
        "other_data_dir": str(tmp_path / "other"),
    }
    assert main(["audit", *words(given)]) == 2  # the first attack also runs on people who must stay learnable
    assert "there is no o01/metadata.jsonl" in capsys.readouterr().err
    write_captions(tmp_path / "other/o01", SECRETS[0])
    assert main(["audit", *words(given)]) == 1
    told = capsys.readouterr()
    assert "text: 12, of 3 people" in told.err and "passed over" not in told.err
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert {row["status"] for row in results["attacks"]} == {"ok"} and len(results["attacks"]) == 6
    for secret in SECRETS:
        assert secret not in told.out + told.err and not scan_for_leaks(tmp_path / "out", [secret])


def test_attacks_on_protected_photos_take_the_captions_of_the_originals(
    tiny_pipeline: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for person in ("s01", "s02"):
        write_photos(7, range(6), tmp_path / "protected" / person, 48)
    given = options(tiny_pipeline, people, tmp_path / "out", seeds=1, photo_attacks=[SPEC], purifiers=["mix"])
    for name in ("pretrained_model_name_or_path", "attack", "train_batch_size"):
        del given[name]
    given |= {"base": tiny_pipeline, "protected_photos": tmp_path / "protected", "photo_training": "false"}

    def audit() -> tuple[list[dict[str, Any]], set[str]]:
        assert main(["audit", *words(given)]) == 1
        found = json.loads((tmp_path / "out/results.json").read_text())["image_layer"]["attacks"]
        return found, {path.name for path in (tmp_path / "out/photo_cells").glob("*/")}

    rows, cells = audit()
    assert {row["status"] for row in rows} == {"ok"} and len(rows) == len(cells) == 6
    assert {name for row in rows for name in row["by_prompt"]} == {"captions"}
    write_captions(people / "s02", SECRETS[0])
    assert len(audit()[1] & cells) == 3  # those of s01
    told = capsys.readouterr()
    assert "text: 8, of 2 people" in told.err and "passed over" not in told.err
    for secret in SECRETS:
        assert secret not in told.out + told.err and not scan_for_leaks(tmp_path / "out", [secret])
    write_captions(people / "s02", SECRETS[0], photos=3)
    assert main(["audit", *words({**given, "output_dir": tmp_path / "none"})]) == 2
    assert "has no caption for s02/003.png" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_hardening_does_not_read_captions_for_attacks_on_the_photos(
    tiny_pipeline: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"pretrained_model_name_or_path": tiny_pipeline, "instance_data_dir": people, "resolution": 24}
    given |= {"image_layer.enabled": "true", "audit.enabled": "true", "output_dir": tmp_path / "out", "dry_run": "true"}
    assert main(["harden", *words({**given, "audit.photo_attacks": SPEC})]) == 2
    assert "leave it out, and run apdm audit afterwards" in capsys.readouterr().err
