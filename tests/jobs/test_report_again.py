"""`apdm report` makes the page of an audit again, as it was, and replaces nothing but such a page."""

from __future__ import annotations

import json
import shutil
import weakref
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from html_page import Page
from tiny_results import make_results

from apdm.audit.results.file import write_results
from apdm.audit.results.models import Results
from apdm.audit.results.picture_names import COURSE, picture_name
from apdm.audit.results.schema import from_json
from apdm.audit.results.store import KeptPictures
from apdm.cli import main
from apdm.core.pictures import read_grid, to_pil
from apdm.export.manifest import verify_manifest, write_manifest
from apdm.jobs.auditing.picture_sheets import (
    attack_folder,
    read_attack_pictures,
    read_pictures,
    save_attack_pictures,
    save_pictures,
)
from apdm.report.audit_page import write_report

SIDE = 8


def drawn(content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Pictures as an audit draws them: five for each attack, and nine of the class."""
    random = torch.Generator().manual_seed(0)
    names = [f"attack/{row['model']}/{row['subject']}/{row['seed']}" for row in content["attacks"]]
    counts = {"class/base": 9, "class/hardened": 9, **dict.fromkeys(names, 5), f"attention/{names[0]}": 2}
    made = {name: torch.rand(count, 3, SIDE, SIDE, generator=random) for name, count in counts.items()}
    for name, row in zip(names, content["attacks"], strict=True):
        made[f"course/{name}"] = torch.rand(2, len(row["curve"]), 3, SIDE, SIDE, generator=random)
        made[f"course/{name}"][-1, -1] = 1  # a white picture is a picture, too
    return made


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of an audit, as far as its page needs it. Its seeds are sorted as numbers, not as names."""
    output, content = tmp_path_factory.mktemp("audit") / "out", make_results()
    for row in content["attacks"]:
        row["seed"] = {3: 9, 4: 10}[row["seed"]]
    results = from_json(Results, content)
    write_results(results, output / "results.json")
    save_pictures(drawn(content), output)
    write_report(results, output / "report.html", read_pictures(results, output))
    write_manifest(output, config_hash="")
    return output


@pytest.fixture
def output(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "out"))


def test_the_page_is_made_again_as_it_was(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = output / "report.html"
    before = page.read_bytes()
    for given in ([str(output)], [str(output / "results.json")], ["--results", str(output)]):
        page.unlink()
        assert main(["report", *given]) == 0
        assert capsys.readouterr().out == f"report  {page}\n"
        assert page.read_bytes() == before
    assert verify_manifest(output) == []


def test_a_page_elsewhere_links_to_the_results(output: Path, tmp_path: Path) -> None:
    assert main(["report", str(output), "--output", str(tmp_path / "pages/a page.html")]) == 0
    page = Page(tmp_path / "pages/a page.html")
    assert page.values("href")[-1] == "../out/results.json" and page.values("src")
    shutil.copy(output / "results.json", output / "run 1.json")
    assert main(["report", str(output / "run 1.json")]) == 0
    assert Page(output / "report.html").values("href")[-1] == "run%201.json"


def test_the_manifest_knows_the_new_page_and_nothing_else_changes_in_it(output: Path) -> None:
    before = json.loads((output / "manifest.json").read_text())
    shutil.rmtree(output / "pictures")
    assert main(["report", str(output)]) == 0
    assert verify_manifest(output) == []
    after = json.loads((output / "manifest.json").read_text())
    changed = [new["path"] for old, new in zip(before.pop("files"), after.pop("files"), strict=True) if old != new]
    assert changed == ["report.html"] and before == after


def test_where_pictures_are_missing_the_page_says_so(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (output / "pictures/attack/hardened/s01/9.png").unlink()
    (output / "pictures/class/base.png").write_bytes(b"no picture")
    assert main(["report", str(output)]) == 0
    assert "missing pictures  2 of " in capsys.readouterr().out
    page = Page(output / "report.html")
    assert page.text().count("The pictures are missing") == 2
    assert "After the attack on s01" in page.text("pictures") and page.values("src")

    shutil.rmtree(output / "pictures")
    assert main(["report", str(output)]) == 0
    page = Page(output / "report.html")
    assert page.text().count("The pictures are missing") == 8 and not page.values("src")


def test_sheets_are_cut_into_the_pictures_that_they_were_made_of(tmp_path: Path) -> None:
    results = from_json(Results, make_results())
    for count in (1, 3, 4, 5, 8):
        saved = torch.rand(count, 3, SIDE, SIDE)
        save_pictures({"class/base": saved}, tmp_path)
        again = read_pictures(results, tmp_path)["class/base"]
        expected = [saved[place * count // min(count, 6)] for place in range(min(count, 6))]  # a page shows six
        assert [one.tobytes() for one in again] == [to_pil(one).tobytes() for one in expected]


def test_of_many_large_pictures_one_set_is_in_memory_at_a_time_and_what_is_shown_is_small(tmp_path: Path) -> None:
    """An audit of large pictures draws more than fit into the memory, so they are read when they are saved."""
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()

    def read() -> torch.Tensor:
        assert len(alive) <= 1  # the set before, which the loop still holds
        alive.add(images := torch.rand(8, 3, 512, 512))
        return images

    save_pictures(KeptPictures({f"attack/base/s01/{seed}": read for seed in (3, 4)}), tmp_path)
    found = read_pictures(from_json(Results, make_results()), tmp_path)
    shown = found["attack/base/s01/3"]
    assert [image.size for image in shown] == 6 * [(384, 384)] and "attack/base/s01/4" not in found


def test_only_pictures_that_the_page_shows_are_read(tmp_path: Path) -> None:
    """Of a later attack, whose strip takes their place, none. 50 people and 10 attacks had 2.6 GB of them in memory."""
    content = make_results()
    later = [row | {"spec": "lora"} for row in content["attacks"]]
    outcome = next(one for one in content["by_attack"] if one["spec"] == content["attacks"][0]["spec"])
    content["attacks"] += later
    content["by_attack"].append(outcome | {"spec": "lora"})
    pictures = drawn(content)
    pictures |= {name.replace("attack/", "lora/", 1): images for name, images in pictures.items() if "attack" in name}
    save_pictures(pictures, tmp_path)
    found = read_pictures(from_json(Results, content), tmp_path)
    assert any(name.startswith("attack/") for name in found) and any(name.startswith("course/lora/") for name in found)
    assert not any(name.startswith("lora/") for name in found)


def test_pictures_are_not_taken_from_elsewhere(output: Path) -> None:
    content = json.loads((output / "results.json").read_text())
    save_pictures({"a/b/c/9": torch.rand(1, 3, SIDE, SIDE)}, output / "private")
    for row in content["attacks"]:
        row["model"] = row["model"].replace("base", "../../private/pictures/a/b")
    pictures = read_pictures(from_json(Results, content), output)
    assert not any(images for name, images in pictures.items() if "private" in name)


def changed(**facts: Any) -> bytes:
    return json.dumps(make_results() | facts).encode()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff", "cannot be read as JSON"),
        (b"[]", "holds no results of an audit"),
        (b'{"schema_version": 1}', "holds no results of an audit"),
        (changed(schema=7), "has schema 7, this program reads 2"),
        (changed(attacks=None), "was not written by this version"),
        (changed(strangers={}), "its parts do not fit together (KeyError: 'enc-a')"),
        (changed(attacks=[]), "give the results.json as its command wrote it"),
    ],
)
def test_what_is_no_result_is_refused_and_the_page_stays(
    content: bytes, said: str, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (output / "report.html").read_bytes()
    (output / "results.json").write_bytes(content)
    assert main(["report", str(output)]) == 2
    error = capsys.readouterr().err
    assert said in error and str(output / "results.json") in error and error.count("\n") == 1
    assert (output / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("cells", "has not finished; give its command again"),
        ("photo_cells", "has not finished; give its command again"),
        ("empty", "has no results.json; give the output folder of an audit"),
        (None, "does not exist; give the results.json of an audit, the attack.json of an attack"),
    ],
)
def test_a_folder_without_results_is_refused(
    made: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if made is not None:
        (tmp_path / "out" / made).mkdir(parents=True)
    assert main(["report", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err


def test_only_a_page_of_this_program_is_replaced(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = (output / "results.json").read_bytes()
    for name in ("results.json", "pictures/class/base.png"):
        assert main(["report", str(output), "--output", str(output / name)]) == 2
        assert "is no page of this program and is not replaced" in capsys.readouterr().err
    (output / "mine.html").write_text("<!doctype html><title>mine</title>")
    assert main(["report", str(output), "--output", str(output / "mine.html")]) == 2
    assert main(["report", str(output), "--output", str(output / "pictures")]) == 2
    assert "is a folder; name a file" in capsys.readouterr().err
    assert (output / "results.json").read_bytes() == results and "mine" in (output / "mine.html").read_text()


def test_the_pictures_of_attacks_on_one_model_come_back_as_they_were_saved(tmp_path: Path) -> None:
    """Five pictures after the attack, and a line for each of two noises with a column for each measured step."""
    results = from_json(Results, make_results(), "results")
    row = next(row for row in results.attacks if row.model == "base" and row.subject == "s01" and row.identity)
    name, steps = picture_name(row, row.spec), len(row.curve)
    shades = torch.arange(5 + 2 * steps).view(-1, 1, 1, 1).expand(-1, 3, 16, 16) / 64
    after, course = shades[:5], shades[5:].unflatten(0, (2, steps))
    attacks = cast(Any, SimpleNamespace(attacks=[row]))
    saved, sheets = save_attack_pictures(attacks, {name: after, f"{COURSE}/{name}": course}, tmp_path)
    assert {Path(name).name: read_grid(file).size for name, file in sheets.items()} == {
        "after": (4 * 16, 2 * 16),
        "course": (steps * 16, 2 * 16),
    }
    read, found = read_attack_pictures(attacks, tmp_path)
    assert all(found.values()) and len(found) == 2
    (before,), (again,) = saved.values(), read.values()
    shown = [
        [image.convert("L").getpixel((0, 0)) for image in (*one.after, *chain.from_iterable(one.course))]
        for one in (before, again)
    ]
    assert shown[0] == shown[1] == [round(255 * shade / 64) for shade in range(5 + 2 * steps)]
    assert [len(line) for line in again.course] == [steps, steps]
    (tmp_path / "pictures" / f"{attack_folder(row)}/course.png").unlink()
    read, found = read_attack_pictures(attacks, tmp_path)
    assert sorted(found.values()) == [False, True] and not next(iter(read.values())).course
