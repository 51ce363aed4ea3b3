"""The pages in a real browser: no errors, no requests, no overflow at any width, and everything works by keyboard."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_results import course_pictures, make_pictures, make_results, outcome, photo_layer, picture, row

from apdm.audit.results.models import Results
from apdm.audit.results.schema import from_json
from apdm.report.audit_page import write_report
from apdm.report.comparison import side_by_side, write_comparison
from tools.portraits.showcase import find_browser, first_screen

BROWSER = find_browser()
sync_api: Any = None
with suppress(ImportError):
    from playwright import sync_api
PHONE, WINDOW, SCREEN = 390, 1200, 1920  # CSS pixels across
PAPER = 688  # A4 without margins of 14 mm
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no chromium here; test_report.py parses the page instead"),
    pytest.mark.skipif(sync_api is None, reason="no playwright here; test_report.py parses the page instead"),
]
TOO_WIDE = """() => [...document.querySelectorAll("body *")].filter(one => !one.closest(".scroll, svg, .slider")
  && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 80))"""

TOO_WIDE_ON_PAPER = """() => [...document.querySelectorAll("body *")].filter(one => !one.closest("svg, .slider")
  && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(BROWSER), args=FLAGS)
        yield opened
        opened.close()


@dataclass
class Opened:
    """A page in the browser, and what went wrong there."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def show(browser: Any) -> Iterator[Callable[..., Opened]]:
    """show(file, width=..., dark=..., touch=...) -> the page, without network."""
    contexts = []

    def opened(file: Path, *, width: int, dark: bool = False, touch: bool = False) -> Opened:
        scheme = "dark" if dark else "light"
        size = {"width": width, "height": 900}
        context = browser.new_context(viewport=size, offline=True, color_scheme=scheme, has_touch=touch)
        contexts.append(context)
        found = Opened(context.new_page())
        found.page.on("console", lambda message: found.errors.append(message.text))
        found.page.on("pageerror", lambda error: found.errors.append(str(error)))
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.goto(file.as_uri())
        return found

    yield opened
    for context in contexts:
        context.close()


def seen_twice(value: Any) -> Any:
    """The same, with a second encoder that sees what the first one sees."""
    if isinstance(value, list):
        return [seen_twice(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    seen = {key: seen_twice(entry) for key, entry in value.items()}
    return seen | {"enc-b": seen["enc-a"]} if "enc-a" in seen else seen


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with three attacks, one of a long name, a placebo arm, protected photos and everything else."""
    results = make_results()
    check = {"name": "match_rate", "value": 0.5, "limit": 0.05, "passed": False, "detail": "Many match."}
    rows = results["attacks"]
    for spec in ("two_stage", "lora:rank=32,train_text_encoder=true,learning_rate_factor=3"):
        for model in ("base", "placebo", "hardened"):
            rows.append(row(model, "s01", 3, [0.1, 0.6]) | {"spec": spec, "assumes": "the weights"})
    for one in rows:
        one["quality"] = dict.fromkeys(("face_score", "kernel_distance_to_class", "similarity", "brisque"), 12.345)
    states = ("not protected", "void", "protected")
    specs = dict.fromkeys(one["spec"] for one in rows)
    results["by_attack"] = [
        outcome(spec, pairs=2, state=state, failed=1, void=1, checks=[check], no_attack={"hardened": {"enc-a": 0.05}})
        for spec, state in zip(specs, states, strict=True)
    ]
    results["left_out"] = [{"spec": "task_vector", "reason": "it needs a sibling model", "required": True}]
    results["image_layer"] = photo_layer()
    results = seen_twice(results)
    results["judges"]["encoders"].append(results["judges"]["encoders"][0] | {"name": "enc-b"})
    pictures = make_pictures() | course_pictures(results) | {"photos/s02": [picture(8)]}
    pictures |= {
        f"layer/{slot}/s01": [picture(seed), picture(seed)] for seed, slot in enumerate(("original", "shipped"))
    }
    file = tmp_path_factory.mktemp("report") / "report.html"
    write_report(from_json(Results, results), file, pictures)
    return file


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs side by side, one of which cannot be compared."""
    results = from_json(Results, make_results())
    other = from_json(Results, make_results() | {"subjects": ["s01"]})
    long = "outputs/a-recipe-with-a-name-that-is-as-long-as-names-of-folders-become/seed-3"
    file = tmp_path_factory.mktemp("compared") / "compared.html"
    write_comparison(side_by_side([("one", results), (long, results), ("third", other)]), file)
    return file


@pytest.mark.parametrize("width", [PHONE, 820, WINDOW, SCREEN])
@pytest.mark.parametrize("kind", ["report", "compared"])
def test_a_page_has_no_errors_asks_for_nothing_and_fits(
    kind: str, width: int, show: Callable[..., Opened], request: pytest.FixtureRequest
) -> None:
    file = request.getfixturevalue(kind)
    found = show(file, width=width)
    assert found.page.evaluate("document.documentElement.scrollWidth") <= width, found.page.evaluate(TOO_WIDE)
    assert found.page.evaluate(TOO_WIDE) == []
    if width >= WINDOW:  # no table needs a scroll bar
        wide = "() => [...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth + 1)"
        assert found.page.evaluate(f"({wide})().map(one => one.outerHTML.slice(0, 200))") == []
    assert found.errors == [] and found.requests[1:] == []
    assert not re.search(r'(src|href)="(?!data:|#|results\.json)', file.read_text(encoding="utf-8"))


def test_every_picture_is_there_without_scrolling_so_that_it_is_on_paper_too(
    report: Path, show: Callable[..., Opened]
) -> None:
    page = show(report, width=WINDOW).page
    assert page.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
    assert page.locator("img").count() > 30
    page.emulate_media(media="print")
    page.set_viewport_size({"width": PAPER, "height": 1000})
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("[...document.images].every(one => one.getBoundingClientRect().height > 0)")


@pytest.mark.parametrize("kind", ["report", "compared"])
def test_a_page_fits_on_paper(kind: str, show: Callable[..., Opened], request: pytest.FixtureRequest) -> None:
    page = show(request.getfixturevalue(kind), width=PAPER).page
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(TOO_WIDE_ON_PAPER) == []


def test_the_slider_moves_by_keyboard_mouse_and_touch(report: Path, show: Callable[..., Opened]) -> None:
    page = show(report, width=PHONE, touch=True).page
    slider = page.locator(".slider").first
    knob = slider.locator("input")
    over = slider.locator(".over")
    knob.focus()
    page.keyboard.press("End")
    assert "100%" in over.evaluate("one => getComputedStyle(one).clipPath")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert " 1%" in over.evaluate("one => getComputedStyle(one).clipPath")
    assert slider.locator("i").evaluate("one => getComputedStyle(one).outlineStyle") == "solid"
    box = slider.bounding_box()
    for share, tap in ((0.25, page.touchscreen.tap), (0.75, page.mouse.click)):
        slider.scroll_into_view_if_needed()
        box = slider.bounding_box()
        tap(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        assert abs(int(knob.input_value()) - 100 * share) < 8


def test_what_can_be_reached_by_keyboard_shows_that_it_has_the_focus(report: Path, show: Callable[..., Opened]) -> None:
    page = show(report, width=WINDOW).page
    seen = set()
    look = """() => { const one = document.activeElement, style = getComputedStyle(one);
      const marked = style.outlineStyle !== "none" || style.textDecorationLine.includes("underline")
        || one.matches(".slider input") && getComputedStyle(one.nextElementSibling).outlineStyle !== "none";
      return [one.tagName, marked]; }"""
    for _ in range(60):
        page.keyboard.press("Tab")
        tag, marked = page.evaluate(look)
        if tag == "BODY":
            break
        assert marked, tag
        seen.add(tag)
    assert {"A", "SUMMARY", "BUTTON", "DIV", "INPUT"} <= seen


def test_a_heading_sorts_its_table_up_and_then_down(report: Path, show: Callable[..., Opened]) -> None:
    page = show(report, width=WINDOW).page
    column = "() => [...document.querySelectorAll('#summary tbody tr')].map(row => row.cells[0].textContent)"
    before, head = page.evaluate(column), page.locator("#summary thead tr").nth(1).locator("button").first
    head.click()
    once = page.evaluate(column)
    head.click()
    assert before != once == sorted(before) == page.evaluate(column)[::-1]


def test_the_page_is_dark_where_the_reader_wants_that_and_light_on_paper(
    report: Path, show: Callable[..., Opened]
) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    assert show(report, width=WINDOW).page.evaluate(background) == "rgb(255, 255, 255)"
    page = show(report, width=WINDOW, dark=True).page
    assert page.evaluate(background) == "rgb(20, 23, 26)"
    page.emulate_media(media="print")
    assert page.evaluate(background) == "rgb(255, 255, 255)"


def test_the_picture_of_its_first_screen_that_the_docs_show_is_whole_and_needs_no_other_file(report: Path) -> None:
    svg = first_screen(report, str(BROWSER), width=400, height=300)
    (found,) = re.findall(r'href="data:image/webp;base64,([^"]*)"', svg)
    assert svg.count("href=") == 1
    with Image.open(io.BytesIO(base64.b64decode(found))) as shot:
        assert shot.size == (400, 300) and len(shot.getcolors(2**20) or []) > 16  # letters, not an empty page
