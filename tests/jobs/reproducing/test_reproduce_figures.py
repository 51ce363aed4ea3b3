"""Figures of a table that are measured on saved files, against the same figures computed from these files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_reproduce import row as attack_row
from tiny_judges import write_clip
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from apdm.audit.results.store import CellStore
from apdm.audit.tables import Column, Table, TableCell, TableRow
from apdm.core.errors import UserError
from apdm.core.pictures import save_png, to_pil, to_unit
from apdm.data.edit_prompts import Edit, read_edits
from apdm.data.photo_files import stem
from apdm.data.subjects import load_images
from apdm.distributed.processes import ProcessGroup
from apdm.export.layout import CELLS, IMAGES, PERTURBATION
from apdm.faces.load import load_encoder
from apdm.faces.portrait import PortraitFeatures
from apdm.jobs.reproducing.figures import Figures
from apdm.jobs.reproducing.models import filled_in
from apdm.jobs.reproducing.recipes import Captions, Kind, Recipe, RecipeRow
from apdm.jobs.reproducing.steps import Done, Steps, picture
from apdm.jobs.reproducing.subjects import PHOTOS, Subject, read_subjects, too_few_spare
from apdm.metrics.fidelity import frechet_distance, kernel_distance
from apdm.portraits import PIPELINE
from apdm.portraits.subjects import write_photos
from apdm.report.table_page import table_plots

PROMPTS = ("a photo of t@t person", "a portrait of t@t person")


def recipe(**more: Any) -> Recipe:
    common = {"title": "T", "source": "S", "columns": {}, "rows": {}, "class_prompt": "a photo of a person"}
    return Recipe(**common, subjects="portraits", model="miniature", instance_prompt=PROMPTS[0], resolution=64, **more)


def column(figure: Any, **more: Any) -> Column:
    return Column(title="x", figure=figure, better="lower", **more)


def eight_bits(images: Tensor) -> Tensor:
    return (images * 255).round() / 255


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Done]]:
    """Attacks on two people with files as `apdm attack` keeps them: eight pictures each, four of each prompt."""
    root, made = tmp_path_factory.mktemp("attacks"), {}
    for n, name in enumerate(("one", "two")):
        write_photos(n, range(4), root / name / "photos")
        write_photos(n + 5, range(8), root / name / "drawn")
        store = CellStore(root / name / CELLS)
        drawn = to_unit(load_images(sorted((root / name / "drawn").iterdir()), 64))
        store.save("other", {"status": "ok"}, {"class": drawn[:2]})
        store.save("this", {"status": "ok"}, {"course": drawn[:2], "attacked": drawn})
        subject = Subject(name, sorted((root / name / "photos").iterdir()), [])
        made[name] = [Done(subject=subject, row=attack_row([0.5] * 8), attack=root / name, prompts=PROMPTS)]
    return made


def look(done: Done) -> tuple[Tensor, Tensor]:
    """Features of an attack's pictures and of the subject's photos."""
    assert done.attack is not None
    network = PortraitFeatures()
    drawn = to_unit(load_images(sorted((done.attack / "drawn").iterdir()), 64))
    return network(drawn), network(to_unit(load_images(done.subject.photos, 64)))


def measured(one: Column, runs: dict[str, list[Done]], **more: Any) -> Any:
    return Figures(recipe=recipe(), models={}, fill=dict, **more).cell(one, runs, 1.5)


def test_distances_of_each_person_and_pooled(runs: dict[str, list[Done]]) -> None:
    looks = [look(of[0]) for of in runs.values()]
    for figure, distance in (("frechet", frechet_distance), ("kernel", kernel_distance)):
        each = measured(column(figure), runs)
        assert each.ours == pytest.approx(sum(distance(*one) for one in looks) / 2, rel=1e-4)
        assert each.n == 2 and each.interval is not None and each.published == 1.5
        drawn, photos = (torch.cat(part) for part in zip(*looks, strict=True))
        pooled = measured(column(figure, pooled=True), runs)
        assert pooled.ours == pytest.approx(distance(drawn, photos), rel=1e-4)
        assert pooled.n == 2 and pooled.interval is None


def test_a_distance_of_one_prompt_is_that_of_its_pictures(runs: dict[str, list[Done]]) -> None:
    drawn, photos = look(runs["one"][0])
    cell = measured(column("frechet", prompt=1), {"one": runs["one"]})
    assert cell.ours == pytest.approx(frechet_distance(drawn[4:], photos), rel=1e-4)


def test_a_distance_needs_two_photos_of_each_person_or_of_all_together(runs: dict[str, list[Done]]) -> None:
    few = {
        name: [replace(one, subject=replace(one.subject, photos=one.subject.photos[:1])) for one in of]
        for name, of in runs.items()
    }
    cell = measured(column("frechet"), few)
    assert cell.ours is None and cell.reason == "a distance needs two pictures and two photos"
    drawn, photos = (torch.cat(part) for part in zip(*(look(of[0]) for of in few.values()), strict=True))
    pooled = measured(column("frechet", pooled=True), few)
    assert pooled.ours == pytest.approx(frechet_distance(drawn, photos), rel=1e-4)
    assert measured(column("frechet", pooled=True), {"one": few["one"]}).reason == cell.reason


def test_likeness_of_protected_photos_is_the_mean_cosine_to_their_originals(
    runs: dict[str, list[Done]], tmp_path: Path
) -> None:
    photos = runs["one"][0].subject.photos
    for photo in photos:
        darker = Image.open(photo).convert("RGB").point([level // 3 for level in range(256)] * 3)
        (tmp_path / IMAGES / "one").mkdir(parents=True, exist_ok=True)
        darker.save(tmp_path / IMAGES / "one" / photo.name)
    changed = {"one": [replace(runs["one"][0], changed=tmp_path)], "two": runs["two"]}  # of "two" nothing is changed
    figures = Figures(
        recipe=replace(recipe(), rows={"x": RecipeRow(title="X")}),
        models={},
        fill=partial(filled_in, places={"miniature": str(PIPELINE), "people": "people"}),
    )
    for place, name in enumerate(("portrait-a", "portrait-b")):
        encoder = load_encoder(name)
        sides = (to_unit(load_images(files, 64)) for files in (photos, sorted((tmp_path / IMAGES / "one").iterdir())))
        own = cosine_similarity(*(encoder.embed(side) for side in sides)).mean().item()
        assert own < 0.99
        cell = figures.cell(column("photo_likeness", encoder=place), changed, 0.5)
        assert cell.ours == pytest.approx((own + 1) / 2, abs=1e-5) and cell.published == 0.5
    assert figures.cell(column("photo_likeness", encoder=2), changed, 0.5) == TableCell(
        published=0.5, reason="there is no encoder 2, counted from 0"
    )


def test_similarity_to_the_attacked_photos_is_the_mean_cosine_of_all_pairs(runs: dict[str, list[Done]]) -> None:
    drawn, photos = (normalize(part.double()) for part in look(runs["two"][0]))
    expected = np.mean([[float(a @ b) for b in photos] for a in drawn])
    assert measured(column("trained_similarity"), {"two": runs["two"]}).ours == pytest.approx(expected, rel=1e-5)


def test_a_column_of_one_kind_and_one_without_its_network(runs: dict[str, list[Done]]) -> None:
    assert measured(column("frechet", kind="cat"), runs).ours is None
    assert measured(column("fiqa"), runs).reason.startswith("needs fiqa (Efficient-FIQA")
    assert measured(column("unsafe_rate"), runs).reason.startswith("needs safety_checker (")


def test_clip_scores_pair_each_picture_with_its_prompt(runs: dict[str, list[Done]], tmp_path: Path) -> None:
    figures = Figures(recipe=recipe(), models={"clip": str(write_clip(tmp_path / "clip"))}, fill=dict)
    done = runs["one"][0]
    assert done.attack is not None
    drawn = to_unit(load_images(sorted((done.attack / "drawn").iterdir()), 64))
    scores = torch.stack([figures.clip.score(drawn, [prompt] * 8) for prompt in PROMPTS])
    expected = torch.cat([scores[0, :4], scores[1, 4:]]).mean().item()
    assert figures.cell(column("clip"), {"one": [done]}, None).ours == pytest.approx(expected, abs=1e-5)
    only = figures.cell(column("clip", prompt=1), {"one": [done]}, None).ours
    assert only == pytest.approx(scores[1, 4:].mean().item(), abs=1e-5)


def test_figures_of_photos_are_means_of_what_was_measured_on_the_saved_files(
    runs: dict[str, list[Done]], tmp_path: Path
) -> None:
    visible = [{"psnr": 30.0, "ssim": 0.9, "lpips": None}, {"psnr": 34.0, "ssim": 0.8, "lpips": None}]
    (tmp_path / PERTURBATION).write_text(json.dumps({"photos": [{"visible": one} for one in visible]}))
    changed = {"one": [Done(subject=runs["one"][0].subject, changed=tmp_path)]}
    assert measured(column("psnr"), changed).ours == 32.0
    assert measured(column("ssim"), changed).ours == pytest.approx(0.85)
    assert measured(column("lpips"), changed).ours is None
    assert measured(column("psnr"), runs).reason == "the photos are not changed"


def test_copies_keep_the_order_of_the_photos_under_any_suffix_and_what_is_asked_of_each(tmp_path: Path) -> None:
    photos = [tmp_path / name for name in ("a.jpg", "a.k.png", "more/a.jpg")]
    for shade, photo in enumerate(photos):
        photo.parent.mkdir(exist_ok=True)
        photo.write_bytes(bytes([shade]))
    edits = [Edit(prompt=f"edit {i}", source="a face") for i in range(3)]
    machine: dict[str, Any] = {"num_threads": 1, "processes": ProcessGroup(), "device": torch.device("cpu")}
    steps = Steps(recipe=recipe(), output=tmp_path / "out", places={"miniature": "miniature"}, **machine)
    folder = steps._copies(photos, photos[:1], edits)
    copied = [file for file in sorted((folder / PHOTOS).iterdir()) if file.suffix != ".jsonl"]
    assert [file.read_bytes()[0] for file in copied] == [0, 1, 2]
    assert sorted(copied, key=lambda file: f"{stem(file)}.png") == copied  # as after apdm perturb
    assert read_edits(folder, {PHOTOS: copied}) == {PHOTOS: edits}


def test_subjects_of_kinds_and_photos_that_only_an_attacker_has(tmp_path: Path) -> None:
    for name, number in (("cat", 24), ("dog", 6)):
        write_photos(1, range(number), tmp_path / name)
    cat = Kind(subject="sks cat", class_prompt="a photo of cat", folders=["cat"], prompts=["a {subject} sits"])
    kinds = {"cat": cat, "dog": replace(cat, subject="sks dog", folders=["dog"], prompts=[])}
    table = replace(recipe(kinds=kinds, protects="dog"), subjects="object", rows={"x": RecipeRow(title="X", unseen=3)})
    cats, dogs = read_subjects(str(tmp_path), table, None)
    assert (cats.kind, dogs.kind) == ("cat", "dog") and table.attacked_kinds == ["cat"]
    assert [len(part) for part in (cats.photos, cats.spare, cats.holdout)] == [4, 12, 8]
    assert too_few_spare([cats], 12) is None and str(too_few_spare([cats, dogs], 3)).endswith("dog has 0")
    own = table.for_kind("cat")
    assert own.instance_prompt == "a photo of sks cat" and own.attack["prompts"] == ["a sks cat sits"]
    assert table.for_kind("dog").attack == {}
    with pytest.raises(UserError, match="has no folder fox, which the table needs for fox; add it"):
        read_subjects(str(tmp_path), replace(table, kinds={"fox": replace(cat, folders=["fox"])}), None)


def test_rows_with_a_place_are_points_of_a_drawing_and_the_one_without_a_line_begins_all() -> None:
    def one(place: float | None, line: str | None, ours: float | None) -> TableRow:
        return TableRow(title="r", not_run=None, cells={"fid": TableCell(ours=ours)}, line=line, place=place)

    rows = {"0": one(0, None, 2.0), "a": one(10, "a", 4.0), "b": one(10, "b", 6.0), "c": one(None, None, 9.0)}
    common = {"schema": 1, "recipe": "r", "title": "T", "source": "S", "command": None, "package": {}, "model": "m"}
    table = Table(
        **common,
        miniature=True,
        doubts=[],
        differs=[],
        subjects=[],
        seeds=[0],
        columns={"fid": column("caption_frechet")},
        rows=rows,
    )
    (plot,) = table_plots(table)
    assert [curve.name for curve in plot.curves] == ["a", "b"]
    assert plot.curves[0].points[0] == plot.curves[1].points[0] and plot.curves[0].points[1] != plot.curves[1].points[1]
    assert plot.x_ticks[-1][1] == 10.0 and plot.y_ticks[-1][1] == 6.0


def test_pictures_for_captions_are_compared_with_photos_and_with_their_captions(tmp_path: Path) -> None:
    write_photos(7, range(5), tmp_path / "photos")
    generator = torch.Generator().manual_seed(0)
    for i in range(5):
        save_png(to_pil(torch.rand(3, 64, 64, generator=generator)), picture(tmp_path / "drawn", i))
    captions = Captions(photos="{people}", number=5, prompts=["a photo of dog", "a photo of cat"], side=32)
    figures = Figures(
        recipe=recipe(captions=captions),
        models={"clip": str(write_clip(tmp_path / "clip"))},
        fill=lambda options: {key: str(tmp_path / "photos") for key in options},
    )
    runs = {"s": [Done(subject=Subject("s", [], []), captions=tmp_path / "drawn")]}
    network = PortraitFeatures()
    first, second = (
        network(to_unit(load_images(sorted((tmp_path / name).iterdir()), 32))) for name in ("drawn", "photos")
    )
    cell = figures.cell(column("caption_frechet"), runs, None)
    assert cell.ours == pytest.approx(frechet_distance(first, second), rel=1e-4)
    drawn = to_unit(load_images(sorted((tmp_path / "drawn").iterdir()), 64))
    texts = ["a photo of dog", "a photo of cat"] * 2 + ["a photo of dog"]
    score = figures.cell(column("caption_clip"), runs, None).ours
    assert score is not None and math.isclose(score, figures.clip.score(drawn, texts).mean().item(), abs_tol=1e-5)
