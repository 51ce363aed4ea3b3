"""What a finished job tells a person and a script."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import pytest
from tiny_results import make_results
from tiny_run import write_people

from apdm.app.parts import outcome
from apdm.audit import read_results
from apdm.audit.results.common import WorstPerson
from apdm.audit.results.models import LowestCost, Results
from apdm.audit.results.one_model import AttackResults
from apdm.audit.results.photos import PhotoComparison, PhotoOutcome
from apdm.audit.results.schema import from_json
from apdm.cli import main
from apdm.faces.described import NamedThreshold
from apdm.faces.photo_faces import PhotoFaces
from apdm.image_layer.results import EncoderCosine, Perturbation, ProtectedFace, ProtectedPhoto
from apdm.jobs.common.results import AttackResult, AuditResult, HardenResult, PerturbResult, PushResult
from apdm.jobs.common.summary import LINES, Summary, of_attack, of_audit, of_hardening, of_perturbation, of_push
from apdm.metrics.perception import Visibility

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "benchmarks/results"
OUTPUT = Path("outputs/demo")


def demo() -> Results:
    return cast(Results, read_results(RESULTS / "demo.json"))


def test_a_person_reads_on_few_lines_what_was_made_what_it_does_and_what_to_do_next() -> None:
    results = demo()
    result = HardenResult(
        output_dir=OUTPUT,
        model_dir=OUTPUT / "model",
        steps=230,
        seconds=170.0,
        peak_memory_bytes=840_000_000,
        moved=0.669,
        image_dir=OUTPUT / "images",
        results=results,
    )
    told = of_hardening(result, next_step="a command")
    text = "\n".join(told.lines())
    assert len(told.lines()) <= LINES and max(map(len, told.lines())) <= 120
    for part in (
        "outputs/demo/model (230 outer steps in 3 min, at most 0.8 GB of memory)",
        "outputs/demo/images (4 photos), PSNR at least 28.2 dB",
        "after 100 / 300 / 700 steps of dreambooth (portrait-b; strangers have 0.03)",
        "0.69 / 0.82 / 0.94  base model",
        "0.45 / 0.65 / 0.88  hardened model",
        "1.2 times the steps; 2.0 are asked for",
        "100% of the class pictures show a face (base: 100%)",
        "other people reach 1.00 of their likeness on the base",
        "not protected: fine-tuning still learns the person; the hardened model takes 1.2 times as many steps",
        "open              outputs/demo/report.html",
        "try next          a command",
    ):
        assert part in text
    assert told.facts["results"] == "outputs/demo/results.json"
    assert told.facts["protected"] is False and told.facts["cost_factor"] == pytest.approx(1.24, abs=0.01)
    assert told.facts["likeness"]["by_encoder"]["portrait-b"]["base"][0][0] == 0
    json.dumps(told.facts, allow_nan=False)


@pytest.mark.parametrize(
    ("factor", "at_least", "text"),
    [(4.96, False, "4.9 times"), (5.0, True, "at least 5.0 times"), (0.3, False, "0.3 times")],
)
def test_a_cost_below_the_threshold_never_reads_like_the_threshold(factor: float, at_least: bool, text: str) -> None:
    assert str(LowestCost(factor=factor, at_least=at_least, subject="s01", encoder="enc")) == text


def audited(results: Results) -> AuditResult:
    return AuditResult(output_dir=OUTPUT, verdict=results.verdict, results=results)


@pytest.mark.parametrize("name", ["demo.json", "ten-people-audit.json"])
def test_the_summary_of_an_audit_has_the_same_figures(name: str) -> None:
    results = cast(Results, read_results(RESULTS / name))
    told = of_audit(audited(results))
    assert len(told.lines()) <= LINES and told.verdict.startswith("not protected: ")
    assert {"likeness", "attacker's cost", "utility", "verdict", "open", "figures"} <= told.rows.keys()


def on_photos(state: str) -> PhotoOutcome:
    """An attack on photos, with figures that two judges measured."""
    comparison = PhotoComparison(
        clean=-0.001,
        protected=0.2,
        clean_interval=None,
        protected_interval=None,
        difference=0.2,
        difference_interval=None,
        worst=WorstPerson(subject="s01", likeness=0.2),
        pairs=1,
        clean_match_rate=0.0,
        protected_match_rate=0.0,
    )
    return PhotoOutcome(
        attack="dreambooth",
        purifier=None,
        state=cast(Any, state),
        cells=1,
        failed=0,
        void=int(state == "void"),
        checks=[],
        comparison=dict.fromkeys(("portrait-a", "portrait-b"), comparison),
        quality={},
        unreliable=[],
    )


def test_what_makes_figures_worth_nothing_stands_beside_them() -> None:
    results = demo()
    assert results.image_layer is not None
    works = replace(results.image_layer, by_attack=[on_photos("protected")], misled_judges=["portrait-b"])
    assert of_audit(audited(replace(results, image_layer=works))).rows["from photos"] == [
        "dreambooth: likeness 0.00 from clean photos, 0.20 from protected ones (portrait-a)"
    ]
    void = replace(works, by_attack=[on_photos("void")], misled_judges=["portrait-a", "portrait-b"])
    weak = "base/s01/seed 0: the attack on the base is too weak"
    checks = [replace(check, passed=check.name != "likeness_over_strangers") for check in results.verdict.checks]
    verdict = replace(results.verdict, unreliable=[weak, "one encoder only"], checks=checks)
    unmeasured = replace(verdict, checks=[replace(check, value=None) for check in checks])
    told = of_audit(audited(replace(results, verdict=unmeasured)))
    assert told.verdict == f"not protected: nothing is claimed, because the audit is unreliable: {weak}"
    told = of_audit(audited(replace(results, image_layer=void, verdict=verdict)))
    assert f"the audit is also unreliable: {weak}" in told.verdict
    assert told.rows["from photos"] == [
        "dreambooth: likeness 0.00 from clean photos, 0.20 from protected ones (portrait-b, which they target)",
        "which says nothing: the attack is too weak with clean photos",
    ]


def test_fewer_steps_than_three_are_told_once() -> None:
    """Base and hardened model were both measured at step 100 alone, besides the start."""
    told = of_audit(audited(from_json(Results, make_results(), "results")))
    assert told.rows["likeness"] == [
        "after 100 steps of dreambooth (enc-a; strangers have 0.10):",
        "0.75  base model",
        "0.25  hardened model",
    ]


def test_attacks_on_one_model_are_told_from_where_they_began_to_where_they_led() -> None:
    """The figures of the README: likeness of strangers, and of the person after 700 steps on the base."""
    results = demo()
    rows = [row for row in results.attacks if (row.model, row.role, row.spec) == ("base", "protected", "dreambooth")]
    failed = replace(rows[0], spec="lora", error="no memory")
    shared = ("command", "package", "subjects", "photos", "prompts", "judges", "strangers")
    attacks = AttackResults(
        schema=2,
        kind="attack",
        model=results.models["base"],
        attacks=[rows[0], failed],
        **{name: getattr(results, name) for name in shared},
    )
    result = AttackResult(output_dir=OUTPUT, results=attacks, models_dir=OUTPUT / "attacked_models")
    told = of_attack(result, attacks)
    text, (subject,) = str(told.rows[f"dreambooth on {rows[0].subject}"]), results.subjects
    assert re.fullmatch(r"likeness 0\.\d\d / 0\.\d\d before, 0\.92 / 0\.94 after 700 steps", text)
    assert told.rows[f"lora on {subject}"] == "failed: no memory"
    assert told.rows["strangers"] == "likeness 0.05 / 0.03, by chance (portrait-a / portrait-b)"
    assert told.verdict == f"lora on {subject} failed: no memory"
    assert told.rows["open"] == told.facts["report"] == "outputs/demo/report.html"
    assert str(told.rows["attacked models"]).startswith("outputs/demo/attacked_models; ")
    assert [one["error"] for one in told.facts["attacks"]] == [None, "no memory"]
    alone = replace(attacks, attacks=rows[:1], strangers=None)
    told = of_attack(AttackResult(output_dir=OUTPUT, results=alone), alone)
    assert list(told.rows) == [f"dreambooth on {subject}", "open", "pictures"]
    last = cast(list[str], told.rows[f"dreambooth on {subject}"])[-1]
    assert re.match(r" *700 +0\.92 +[0-9.]+\s% +0\.94 +[0-9.]+\s% +100\s%", last)
    assert told.verdict == "attacked; the page is outputs/demo/report.html"


@pytest.mark.parametrize(("number", "more"), [(8, []), (9, ["... and 1 more file"]), (11, ["... and 3 more files"])])
def test_a_dry_push_lists_eight_files_and_counts_the_others(number: int, more: list[str]) -> None:
    files = tuple(f"{one:02}.json" for one in range(number))
    told = of_push(PushResult(output_dir=OUTPUT, repository="me/mine", address=None, files=files))
    assert told.verdict == f"dry run: {number} files would be pushed to me/mine"
    assert told.rows == {"would be pushed": [*files[:8], *more], "repository": "me/mine"}
    told = of_push(PushResult(output_dir=OUTPUT, repository="me/mine", address="https://hub/me/mine", files=files))
    assert told.rows == {"pushed": f"{number} files of {OUTPUT}", "to": "https://hub/me/mine"}
    assert told.verdict == "pushed to https://hub/me/mine" and told.facts["files"] == [*files]


def test_photos_without_a_face_and_with_an_unclear_one_are_told() -> None:
    people = [PhotoFaces(subject="s01", photos=4, without=[1, 3]), PhotoFaces(subject="s02", photos=2, unclear=[0])]
    figures = Perturbation(
        schema=1,
        package={},
        method="none",
        zero_shot=True,
        format="png",
        epsilon={},
        photos=[],
        command=None,
        seconds_per_photo=None,
        peak_memory_bytes=None,
        people=people,
    )
    told = of_perturbation(PerturbResult(output_dir=OUTPUT, image_dir=OUTPUT / "images", figures=figures))
    assert told.rows["without a face"] == "2 of s01" and told.facts["without_a_face"] == {"s01": 2}
    assert str(told.rows["unclear faces"]).startswith("photos of s02; ") and told.facts["unclear_faces"] == ["s02"]
    told = of_perturbation(
        PerturbResult(output_dir=OUTPUT, image_dir=OUTPUT / "images", figures=replace(figures, people=[]))
    )
    assert list(told.rows) == ["protected photos", "figures", "try next"]


def test_photos_that_are_as_they_were_or_still_recognised_do_not_count_as_protected() -> None:
    def photo(number: int, psnr: float | None, cosine: float | None) -> ProtectedPhoto:
        visible = Visibility(**{field.name: 1.0 for field in fields(Visibility)} | {"psnr": psnr})
        judged = {} if cosine is None else {"enc": EncoderCosine(to_original=cosine, threshold=0.3)}
        faces = [ProtectedFace(visible=visible, cosine=judged)] if judged else []
        return ProtectedPhoto(subject="s01", photo=number, visible=visible, faces=faces)

    figures = Perturbation(
        schema=1,
        package={},
        method="none",
        zero_shot=True,
        misled=[NamedThreshold(name="enc", threshold=0.3)],
        format="png",
        epsilon={},
        photos=[photo(0, 40.0, 0.5), photo(1, 41.0, 0.1), photo(2, None, None)],
        command=None,
        seconds_per_photo=None,
        peak_memory_bytes=None,
    )
    told = of_perturbation(PerturbResult(output_dir=OUTPUT, image_dir=OUTPUT / "images", figures=figures))
    assert told.rows["protected photos"] == f"{OUTPUT}/images (3 photos, 1 of them unchanged), PSNR at least 40.0 dB"
    assert str(told.rows["misled"]).startswith("enc in 1 of 2 photos with a face; ")
    assert (told.facts["unchanged"], told.facts["still_recognised"]) == (1, {"enc": 1})
    assert "2 photos protected, 1 left as before. The" in outcome(figures, [])


def test_a_command_to_try_next_can_be_pasted_into_a_shell() -> None:
    output = Path("it's mine/out put")
    told = of_perturbation(PerturbResult(output_dir=output, image_dir=output / "images"))
    assert shlex.split(cast(str, told.rows["try next"])) == ["apdm", "verify", str(output)]


def test_a_long_summary_keeps_its_last_lines() -> None:
    told = Summary(rows={f"attack {number}": "failed" for number in range(20)} | {"open": "p", "pictures": "q"})
    lines = told.lines()
    assert len(lines) == LINES
    assert "... (8 more lines: see the report)" in lines
    assert lines[-2:] == ["open       p", "pictures   q"]


def perturbed(pipeline: Path, folder: Path) -> list[str]:
    options: dict[str, object] = {
        "pretrained_model_name_or_path": pipeline,
        "instance_data_dir": folder / "people/protected",
        "output_dir": folder / "out",
        "resolution": 16,
        "num_class_images": 2,
        "num_inference_steps": 1,
        "image_layer.method": "noise",
        "image_layer.zero_shot.enabled": "false",
    }
    return ["perturb", *(word for key, value in options.items() for word in (f"--{key}", str(value)))]


def test_quiet_prints_one_line_and_json_one_object(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_people(tmp_path / "people")
    words = perturbed(tiny_pipeline, tmp_path)
    assert main([*words, "--quiet"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"protected photos in {tmp_path / 'out/images'}\n", "")
    assert main([*words, "--json"]) == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert facts["images"] == str(tmp_path / "out/images") and facts["photos"] == 4 and facts["lowest_psnr"] > 20
    assert "apdm: model" in said.err
    assert main([*words, "--json", "--instance_data_dir", str(tmp_path / "nowhere")]) == 2
    said = capsys.readouterr()
    fault = json.loads(said.out)
    assert fault["exit_code"] == 2 and f"apdm: error: {fault['error']}\n" in said.err


def test_a_command_without_a_summary_says_that_it_has_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 2
    said = capsys.readouterr()
    assert "apdm env prints no --json; demo, harden, perturb, audit, attack, verify, push do" in said.err
    assert main(["env", "--json=false"]) == 0
