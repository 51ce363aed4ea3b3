"""A strip shows the same pictures at the steps that were judged, of base and hardened model with one seed."""

from __future__ import annotations

from typing import Any

from PIL import Image
from tiny_results import course_pictures, row

from apdm.audit.results.models import Results
from apdm.audit.results.schema import from_json
from apdm.report.strips import MOST_STEPS, course_sheets, shown_steps, strip_image, strips


def made(results: dict[str, Any], **changed: list[Image.Image]) -> Any:
    return strips(from_json(Results, results), course_pictures(results) | changed)


def test_a_strip_has_the_worst_persons_pictures_and_likeness_by_step(results: dict[str, Any]) -> None:
    strip = made(results)["dreambooth"]
    assert (strip.subject, strip.seed, strip.steps, strip.nominal) == ("s02", 3, [0, 100, 200, 300], 100)
    assert [line.model for line in strip.lines] == ["base", "base", "hardened", "hardened"]
    pictures = course_pictures(results)
    for number, line in enumerate(strip.lines):
        of_row = pictures[f"course/attack/{line.model}/s02/3"]
        steps = len(of_row) // 2
        shown = [one.image for one in line.pictures if one.image is not None]
        assert shown == of_row[number % 2 * steps : (number % 2 + 1) * steps]
    assert [one.likeness for one in strip.lines[2].pictures] == [[0.1], [0.25], [0.3], [0.3]]
    # the attack on the base ended at the nominal step
    assert [one.image is None for one in strip.lines[0].pictures] == [False, False, True, True]


def test_both_models_have_one_seed_and_a_lost_sheet_leaves_no_strip(results: dict[str, Any]) -> None:
    assert made(results, **{"course/attack/base/s02/3": []})["dreambooth"].seed == 4
    results["attacks"] += [row(model, "s01", 3, [0.1, 0.2]) | {"spec": "lora"} for model in ("base", "hardened")]
    results["by_attack"].append(results["by_attack"][0] | {"spec": "lora", "comparison": {}})
    assert list(made(results, **{"course/lora/base/s01/3": []})) == ["dreambooth"]
    assert course_sheets(from_json(Results, results))["course/lora/hardened/s01/3"] == 2
    assert strips(from_json(Results, results), {}) == {}  # an audit by an older version


def test_at_most_six_steps_are_shown_the_nominal_one_among_them() -> None:
    assert shown_steps({0, 100, 300}, 300) == [0, 100, 300]
    assert shown_steps({0, 100, 300, 500, 700, 900, 1100, 1400}, 700) == [0, 300, 500, 700, 1100, 1400]
    chosen = shown_steps(set(range(0, 5001, 50)), 950)
    assert len(chosen) == MOST_STEPS and {0, 950, 5000} < set(chosen)


def test_the_picture_of_a_strip_shows_every_picture(results: dict[str, Any]) -> None:
    strip = made(results)["dreambooth"]
    sheet = strip_image(strip, side=64)
    colours = {colour for _, colour in sheet.getcolors(2**20) or []}
    for line in strip.lines:
        for one in line.pictures:
            assert one.image is None or one.image.getpixel((0, 0)) in colours
    assert sheet.mode == "RGB" and sheet.width > 4 * 64 and sheet.height > 4 * 64
