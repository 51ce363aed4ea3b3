"""`apdm reproduce`: recipes are read and compile to the other commands' options, and tables are made and go on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from html_page import Page
from PIL import Image
from small_stable_diffusion import write_sets, write_small_sd15
from tiny_judges import write_dino

import apdm
from apdm.audit.results.models import AttackRow, CurvePoint
from apdm.audit.tables import Column, figure_of, measured_cell
from apdm.cli import main
from apdm.config import ReproduceConfig
from apdm.core.errors import UserError
from apdm.families import StableDiffusion
from apdm.jobs.planning.resources import time_for
from apdm.jobs.reproduce import load_job
from apdm.jobs.reproducing.checks import check_options
from apdm.jobs.reproducing.listing import all_tables
from apdm.jobs.reproducing.models import filled_in
from apdm.jobs.reproducing.plan import groups_of, plan_rows, sums_of
from apdm.jobs.reproducing.recipes import Recipe, load_recipe, missing_for, recipe_names
from apdm.jobs.reproducing.subjects import mixed, read_subjects
from apdm.metrics.identity import IdentityStatistics
from apdm.metrics.perception import psnr
from apdm.metrics.statistics import bootstrap_interval
from apdm.portraits.subjects import write_photos
from apdm.recipes import TABLES

ROOT = Path(__file__).parents[3]
NAMES = recipe_names()
VARIANTS = ("-vggface2", "-dog", "-lora", "-instantid")  # other photos or another attack than the table of a twin
OBJECTS = ["apdm/table11"]  # the miniature world has people alone
REAL = [name for name in NAMES if not name.startswith("miniature/") and not name.endswith(VARIANTS)]
REAL = [name for name in REAL if name not in OBJECTS]
SHORT: dict[str, Any] = {
    "attack": {
        "max_train_steps": 2,
        "eval_steps": [2],
        "num_images": 2,
        "num_inference_steps": 2,
        "num_class_images": 2,
    },
    "perturb": {"num_class_images": 2, "num_inference_steps": 2},
    "harden": {"num_class_images": 2, "num_inference_steps": 2},
    "protections": {
        "advdm": {"perturb": {"image_layer": {"fsmg": {"ascent_steps": 1}}}},
        "pap": {"perturb": {"image_layer": {"pap": {"ascent_steps": 1, "prompt_steps": 1}}}},
        "apdm": {"harden": {"max_train_steps": 1, "l2p": {"inner_steps": 1}}},
    },
}


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """short(name) -> the file of a twin of that recipe with a few steps of everything."""

    def write(name: str) -> str:
        file = tmp_path_factory.mktemp("recipes") / "short.yaml"
        file.write_text(yaml.safe_dump({"twin_of": name, "resolution": 64, **SHORT}))
        return str(file)

    return write


def table(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((output / "table.json").read_text())
    return content


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_compiles_to_options_of_the_commands(name: str) -> None:
    recipe = load_recipe(name)
    check_options(recipe, name)
    assert all(row.published.keys() <= recipe.columns.keys() for row in recipe.rows.values())


def attack_names(recipe: Recipe, row: str) -> list[str]:
    """Without their options, the attacks of a row; none where nothing is attacked."""
    if not recipe.attacks:
        return []
    attack = {**recipe.attack, **recipe.rows[row].attack}
    return [spec.partition(":")[0] for spec in attack["attack"]]


@pytest.mark.parametrize("name", REAL)
def test_every_recipe_has_a_twin_on_the_miniature_world_with_all_its_rows(name: str) -> None:
    twin = load_recipe(f"miniature/{name.replace('/', '-')}")
    assert twin.is_miniature and twin.rows.keys() >= load_recipe(name).rows.keys()
    assert not any(missing_for(twin, row, {}) for row in twin.rows.values() if not twin.protection(row).needs)
    # Of each attack the name alone: the miniature world's rates and steps are others.
    assert [attack_names(twin, row) for row in load_recipe(name).rows] == [
        attack_names(load_recipe(name), row) for row in load_recipe(name).rows
    ]
    distances = {name for name, column in twin.columns.items() if "ID" in column.title.split()[0] and not column.needs}
    assert all(twin.columns[name].network == "bundled features" for name in distances), "which is not Inception"


def test_the_list_names_each_table_once_and_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(all_tables())
    twins = [line.split()[0].removeprefix("miniature/") for line in lines if line.startswith("miniature/apdm-")]
    assert twins[1:3] == ["apdm-table2", "apdm-table3"] and twins[-1] == "apdm-figure4"
    by_name = {line.split()[0]: line for line in lines}
    assert "needs sd15 (Stable Diffusion 1.5), dino (facebook/dino-vits16), and photos" in by_name["apdm/table1-person"]
    assert "runs here" in by_name["miniature/apdm-table1-person"] and "cannot be automated" in by_name["apdm/table16"]
    assert not set(yaml.safe_load(TABLES.read_text())) & set(NAMES)


def test_a_table_goes_from_photos_in_sets_to_figures_that_say_that_they_are_meaningless(
    short: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stable Diffusion 1.5's architecture at reduced width with random weights, and a DINO of the same kind."""
    models = {"sd15": write_small_sd15(tmp_path / "sd15"), "dino": write_dino(tmp_path / "dino")}
    (tmp_path / "models.yaml").write_text("".join(f"{name}: {place}\n" for name, place in models.items()))
    output, data = tmp_path / "out", write_sets(tmp_path / "data", people=2)
    words = ["reproduce", short("apdm/table1-person"), "--data", str(data), "--models", str(tmp_path / "models.yaml")]
    words += ["--output_dir", str(output), "--people", "1", "--num_threads", "1"]
    words += ["--rows", "dreambooth", "advdm-1", "pap-0", "apdm"]
    assert main(words) == 0
    made = table(output)
    assert made["subjects"] == ["n000000"] and "This table is meaningless" in made["doubts"][0]
    for name in ("dreambooth", "advdm-1", "pap-0", "apdm"):
        assert -1 <= made["rows"][name]["cells"]["dino"]["ours"] <= 1
        assert -1 <= made["rows"][name]["cells"]["dino_held_out"]["ours"] <= 1
    assert made["rows"]["apdm"]["cells"]["dino"]["published"] == 0.1375
    done = [folder.parent for folder in output.glob("work/perturb-*/perturbation.json")]
    (advdm,) = (one for one in done if json.loads((one / "perturbation.json").read_text())["method"] == "fsmg")
    saved = sorted((advdm / "images").rglob("*.png"))
    pairs = zip(saved, sorted((data / "n000000/set_A").iterdir()), strict=True)
    noise = [psnr(*(np.asarray(Image.open(file).convert("RGB")) for file in pair)) for pair in pairs]
    assert made["rows"]["advdm-1"]["cells"]["psnr"]["ours"] == pytest.approx(np.mean([each or 0 for each in noise]))
    assert made["rows"]["apdm"]["cells"]["psnr"]["reason"] == "the photos are not changed"
    page, text = Page(output / "table.html").text(), (output / "table.md").read_text()
    assert "meaningless" in page and "meaningless" in text and "| 0.138 |" in text
    # The same command again attacks nobody again.
    files = {path: path.stat().st_mtime_ns for path in output.glob("work/*/attack.json")}
    assert main(words) == 0
    assert files and files == {path: path.stat().st_mtime_ns for path in output.glob("work/*/attack.json")}
    # One more row takes over what is there.
    assert main([*words, "advdm-0"]) == 0
    assert files.items() <= {path: path.stat().st_mtime_ns for path in output.glob("work/*/attack.json")}.items()


def test_the_miniature_world_needs_nothing_and_says_what_it_is(
    short: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It draws as many pictures as its plan says."""
    drawn, sample = 0, StableDiffusion.sample

    def counting(self: StableDiffusion, prompts: Sequence[str], **options: Any) -> Any:
        nonlocal drawn
        drawn += len(prompts)
        return sample(self, prompts, **options)

    monkeypatch.setattr(StableDiffusion, "sample", counting)
    file = short("miniature/apdm-table1-person")
    config = ReproduceConfig(recipe=file, output_dir=str(tmp_path / "out"), rows=["dreambooth", "advdm-0"], seeds=2)
    planned = str(plan_rows(replace(config, plan=True))["pictures"])
    made = apdm.reproduce(config).table
    assert sum(map(int, re.findall(r"\d+", planned))) == drawn > 0, planned
    assert made is not None and "miniature world" in made.doubts[0]
    cell = made.rows["advdm-0"].cells["likeness_b"]
    assert cell.n == 1 and cell.interval is not None and cell.published is None
    assert made.rows["dreambooth"].cells["dino"].ours is None
    assert made.rows["dreambooth"].cells["dino"].published == 0.6994


def test_two_processes_make_a_table_together_also_after_they_have_hardened(
    short: Callable[[str], str], tmp_path: Path
) -> None:
    words = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "launch/cpu_2proc_ddp.yaml"), "-m", "apdm"]
    words += ["reproduce", short("miniature/apdm-table1-person"), "--rows", "apdm", "dreambooth"]
    words += ["--output_dir", str(tmp_path / "out"), "--num_threads", "1"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("table.html") == 1
    assert table(tmp_path / "out")["rows"]["apdm"]["cells"]["likeness_a"]["n"] == 1


def test_the_plan_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["reproduce", "apdm/table1-person", "--plan", "--people", "4", "--output_dir", str(tmp_path / "x")]) == 0
    )
    told = capsys.readouterr().out
    assert " for photos at most" in told and "16 partners" in told
    assert "1,088,000 for hardening" in told  # 4 people, 800 outer steps, 20 inner steps, 17 forward passes
    assert "sd15 (Stable Diffusion 1.5)" in told and not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", NAMES)
def test_what_every_recipe_takes_can_be_counted(name: str) -> None:
    job = load_job(ReproduceConfig(recipe=name, plan=True))
    sums = sums_of(job, groups_of(job.recipe, [], None), seeds=1)
    assert all(number > 0 for number in sums.passes.values()) and sum(sums.pictures.values()) > 0


def test_small_work_is_not_told_as_no_minutes() -> None:
    assert [time_for(seconds * 1e14) for seconds in (0.2, 1, 30)] == [
        "less than a second at 100 TFLOP/s",
        "1 second at 100 TFLOP/s",
        "30 seconds at 100 TFLOP/s",
    ]


def test_names_of_models_are_filled_in_and_other_braces_stay() -> None:
    options = {"judge": ["dino:{dino}"], "prompts": ["{instance_prompt}"], "l2p": {"inner_steps": 3}}
    assert filled_in(options, {"dino": "/d"}) == {**options, "judge": ["dino:/d"]}


@pytest.mark.parametrize(("clean", "expected"), [(0, "abc"), (1, "Abc"), ("N-1", "ABc")])
def test_mixed_sets_have_the_clean_photos_first(clean: Any, expected: str) -> None:
    originals, protected = ([Path(name) for name in names] for names in ("ABC", "abc"))
    assert "".join(map(str, mixed(originals, protected, clean))) == expected


def row(scores: list[float | None], seed: int = 0, status: Any = "ok") -> AttackRow:
    seen = [score for score in scores if score is not None]
    statistics = IdentityStatistics(
        mean=sum(seen) / len(scores),
        detected_mean=sum(seen) / len(seen),
        face_rate=len(seen) / len(scores),
        match_rate=0.0,
    )
    point = CurvePoint(step=1, identity={"a": statistics}, quality={}, loss=1.0)
    return AttackRow(
        attack="dreambooth",
        spec="dreambooth",
        params={},
        assumes="photos",
        white_box=None,
        required=True,
        long=False,
        model="base",
        role="protected",
        subject="s",
        seed=seed,
        nominal_step=1,
        horizon=1,
        identity={"a": statistics},
        quality={"similarity": 0.5, "brisque": None},
        scores={"a": scores},
        curve=[point],
        seconds=1.0,
        status=status,
        error=None,
        unreliable=[],
        steps_to_match=None,
    )


def test_figures_of_one_prompt_are_read_from_its_pictures_alone() -> None:
    attack = row([0.4, None, 0.9, 0.7])

    def figure(name: Any, prompt: int | None) -> float | None:
        return figure_of(Column(title="x", figure=name, better="lower", prompt=prompt), attack, 2)

    assert [figure("mean", 0), figure("detected_mean", 0), figure("face_rate", 0)] == [0.2, 0.4, 0.5]
    assert [figure("mean", 1), figure("face_rate", 1)] == [0.8, 1.0]
    assert figure("mean", None) == pytest.approx(0.5) and figure("similarity", None) == 0.5


def test_a_cell_is_a_mean_over_people_of_means_over_seeds_and_failed_attacks_do_not_count() -> None:
    column = Column(title="x", figure="mean", better="lower")
    attacks = {"one": [row([0.2]), row([0.4], 1)], "two": [row([0.9]), row([0.1], 1, "failed")]}
    cell = measured_cell(column, attacks, 1, 0.7)
    assert (cell.ours, cell.n, cell.published) == (pytest.approx(0.6), 2, 0.7)
    assert cell.interval == pytest.approx(bootstrap_interval([0.3, 0.9]))
    empty = measured_cell(column, {"two": [row([0.1], 1, "failed")]}, 1, 0.7)
    assert empty.ours is None and empty.reason == "every attack failed"


@pytest.mark.parametrize("number", [4, 5])
def test_an_attack_that_takes_more_photos_than_a_subject_has_is_refused_before_the_first_row(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, file = write_sets(tmp_path / "sets", people=1), tmp_path / "table.yaml"
    change = {"twin_of": "apdm/table5", "attack": {"attack": [f"dreambooth:num_photos={number}"]}}
    file.write_text(yaml.safe_dump(change))
    assert main(["reproduce", str(file), "--data", str(data), "--plan"]) == (0 if number == 4 else 2)
    said = (
        f'"dreambooth:num_photos={number}" takes {number} photos, and n000000 has 4 for the attacker; lower num_photos'
    )
    assert (said in capsys.readouterr().err) is (number == 5)


def test_a_row_can_be_an_attack_without_training(tmp_path: Path) -> None:
    """The adapter draws, and the photos themselves define likeness: those that are not changed are all alike."""
    file = tmp_path / "short.yaml"
    change: dict[str, Any] = {"twin_of": "miniature/dladiff-table4-faceid"}
    change["attack"] = {
        "num_images": 2,
        "num_inference_steps": 2,
        "num_class_images": 2,
        "prompts": ["a photo of t@t person"],
    }
    layer = {"method": "fsmg", "fsmg": {"static_steps": 0, "ascent_steps": 1}}
    change["protections"] = {"mist": {"perturb": {"image_layer": layer}}}
    change["perturb"] = {"num_class_images": 2, "num_inference_steps": 2}
    file.write_text(yaml.safe_dump(change))
    made = apdm.reproduce(
        ReproduceConfig(recipe=str(file), output_dir=str(tmp_path / "out"), rows=["none", "mist"])
    ).table
    assert made is not None
    cells, changed = made.rows["none"].cells, made.rows["mist"].cells
    assert cells["ism_pro"].ours == 1 and cells["ism_pro"].published == 0.974
    assert changed["pro_b"].ours is not None and 0.3 < changed["pro_b"].ours < 1
    assert cells["ism_gen"].ours is not None and cells["gen_b"].ours != changed["gen_b"].ours


def test_each_photo_of_a_table_of_edits_has_its_own_prompt(tmp_path: Path) -> None:
    """Two people in Defense-Edit's layout: a folder with a photo and prompt.txt."""
    data = write_sets(tmp_path / "sets", people=2)
    people = tmp_path / "people"
    for place in sorted(data.iterdir()):
        (photo, *_) = sorted((place / "set_A").iterdir())
        (people / place.name).mkdir(parents=True)
        (people / place.name / photo.name).write_bytes(photo.read_bytes())
    recipe = load_recipe("anti-diffusion/editing")
    with pytest.raises(UserError, match="edit_prompts: .* has no prompt for n000000/"):
        read_subjects(str(people), recipe, None)
    for place in sorted(people.iterdir()):
        (place / "prompt.txt").write_text(f"a sad face of {place.name}")
    one, other = read_subjects(str(people), recipe, None)
    assert one.photos == one.holdout and [edit.prompt for edit in one.edits + other.edits] == [
        "a sad face of n000000",
        "a sad face of n000001",
    ]


def test_a_table_of_edits_is_made_with_the_prompt_of_each_photo(tmp_path: Path) -> None:
    for person, name in ((5, "a"), (7, "b")):
        write_photos(person, range(1), tmp_path / "data" / name)
        (tmp_path / "data" / name / "prompt.txt").write_text(f"a portrait of {name} with long hair")
    change: dict[str, Any] = {"twin_of": "miniature/anti-diffusion-editing", "subjects": "person", "edits": True}
    change["attack"] = {"num_images": 2, "num_inference_steps": 3, "num_class_images": 2}
    change["attack"]["prompts"] = ["a photo of t@t person"]
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(change))
    given = {"recipe": str(tmp_path / "short.yaml"), "data": str(tmp_path / "data"), "people": 2}
    made = apdm.reproduce(ReproduceConfig(**given, output_dir=str(tmp_path / "out"), rows=["masactrl-none"])).table
    assert made is not None and made.rows["masactrl-none"].cells["ism"].n == 2


def test_a_table_of_edits_compares_with_the_photos(tmp_path: Path) -> None:
    file = tmp_path / "short.yaml"
    change: dict[str, Any] = {"twin_of": "miniature/anti-diffusion-editing"}
    change["attack"] = {"num_images": 2, "num_inference_steps": 3, "num_class_images": 2}
    file.write_text(yaml.safe_dump(change))
    rows = ["masactrl-none", "img2img-none"]
    made = apdm.reproduce(ReproduceConfig(recipe=str(file), output_dir=str(tmp_path / "out"), rows=rows)).table
    assert made is not None
    found = [made.rows[name].cells["edit_similarity"].ours for name in rows]
    assert all(value is not None and 0 < value < 1 for value in found) and found[0] != found[1]
    assert made.rows["masactrl-none"].cells["edit_direction"].reason == "clip (CLIP ViT-L/14), which knows real photos"
