"""The page in a real browser, served by a real process: one story from dropped photos to an empty folder."""

from __future__ import annotations

import io
import os
import re
import signal
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
from tiny_results import make_pictures, make_results

from apdm.app.sessions import PREFIX
from apdm.audit.results.models import Results
from apdm.audit.results.schema import from_json
from apdm.config import PerturbConfig, load_config
from apdm.jobs.perturb import perturb
from apdm.portraits import PIPELINE
from apdm.portraits.subjects import write_photos
from apdm.report.audit_page import write_report
from tools.portraits.showcase import find_browser

playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
pytest.importorskip("gradio", reason="the page is made with gradio")
BROWSER = find_browser()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium here")

QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update"]
# A few steps of a fast method. What is not here are the miniature world's own settings.
OPTIONS = ["--image_layer.method", "encoder:ascent_steps=3", "--image_layer.zero_shot.max_steps", "20"]
OPTIONS += ["--image_layer.zero_shot.margin", "4.0", "--num_threads", "1", "--seed", "3"]
WORLD = ["--pretrained_model_name_or_path", str(PIPELINE), "--resolution", "64"]
WORLD += ["--instance_prompt", "a photo of t@t person", "--class_prompt", "a photo of a person"]
PATIENCE = 60_000  # milliseconds, on a busy machine


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two drawn people's photos, a text, a report, and an empty folder for temporary files."""
    folder = tmp_path_factory.mktemp("app")
    write_photos(0, range(0, 2), folder / "photos")
    write_photos(1, range(0, 1), folder / "other")
    (folder / "notes.txt").write_text("hello")
    (folder / "tmp").mkdir()
    write_report(from_json(Results, make_results()), folder / "report.html", make_pictures())
    return folder


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process of the command, and the address that it printed."""
    command = [sys.executable, "-m", "apdm", "app", "--port", "0", "--report", str(place / "report.html"), *OPTIONS]
    environment = {**os.environ, "TMPDIR": str(place / "tmp"), "HF_HUB_OFFLINE": "1"}
    with open(place / "stderr.txt", "w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found, line + (place / "stderr.txt").read_text()
    yield process, found[0]
    if process.poll() is None:
        process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=BROWSER, args=QUIET)
        yield running
        running.close()


def drop(page: Any, *files: Path) -> None:
    page.set_input_files("input[type=file] >> nth=0", [str(file) for file in files])


def ready(page: Any) -> None:
    page.wait_for_function("!document.querySelector('#go').disabled", timeout=PATIENCE)


def fetch(url: str, **headers: str) -> int:
    request = Request(url, headers=headers)
    try:
        with urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except OSError as error:
        return int(getattr(error, "code", 0))


def check_downloads(page: Any, place: Path) -> str:
    """Protect the photos. What is downloaded is what `apdm perturb` writes. Returns the address of the first photo."""
    page.click("#go")
    page.wait_for_selector("#compare img.after", timeout=PATIENCE)
    assert "2 photos protected" in page.locator("#told").inner_text()
    with page.expect_download() as download:
        page.click(".apdm-zip")
    options = [*WORLD, *OPTIONS, "--instance_data_dir", str(place / "photos"), "--output_dir", str(place / "out")]
    perturb(load_config(PerturbConfig, options))
    expected = {path.name: path.read_bytes() for path in sorted((place / "out" / "images" / "s01").iterdir())}
    with zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes())) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == expected
    with page.expect_download() as single:
        page.click(".apdm-files li:nth-child(2) a")
    assert (single.value.suggested_filename, Path(single.value.path()).read_bytes()) == ("001.png", expected["001.png"])
    assert page.evaluate("document.querySelector('img.after').naturalWidth") == 64
    return str(page.evaluate("document.querySelector('img.before').src"))


def check_layout(page: Any) -> None:
    """The report lies in a frame of its own, and a phone shows every tab without a horizontal scroll bar."""
    page.get_by_role("tab", name="Report").click()
    frame = page.frame_locator("iframe.apdm-report")
    frame.locator("h1").first.wait_for(timeout=PATIENCE)
    assert page.locator("iframe.apdm-report").bounding_box()["width"] > 900  # the frame has the page's width
    page.set_viewport_size({"width": 390, "height": 800})
    for tab in ("Report", "What it means", "Photos"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_photos_are_dropped_seen_protected_compared_and_deleted(place, server, browser):
    process, url = server
    page, other = (browser.new_context(viewport={"width": 1200, "height": 900}).new_page() for _ in range(2))
    asked, errors = [], []
    for one in (page, other):
        one.on("request", lambda request: asked.append(request.url))
        one.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        one.on("pageerror", lambda error: errors.append(str(error)))
        one.goto(url)
        one.wait_for_selector("#go", timeout=PATIENCE)  # the page builds itself after it has been loaded
    photos = sorted((place / "photos").iterdir())

    # What was dropped is shown, with its faces; a text is named and not taken.
    drop(page, *photos, place / "notes.txt")
    ready(page)
    assert page.locator(".apdm-photos figure").count() == 2
    assert page.locator(".apdm-box.chosen").count() == 2
    assert page.locator(".apdm-bad").inner_text() == (
        "Not taken: notes.txt is not a picture that can be read; replace or remove it"
    )
    # Another page has its own photos.
    drop(other, place / "other" / "000.png")
    ready(other)
    assert (page.locator(".apdm-photos figure").count(), other.locator(".apdm-photos figure").count()) == (2, 1)
    (root,) = (place / "tmp").glob(f"{PREFIX}*")
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert len(list((root / "sessions").iterdir())) == 2 and not list((root / "uploads").rglob("*.*"))

    before = check_downloads(page, place)
    check_layout(page)

    # Nothing was asked for elsewhere, and nothing is wrong in the browser.
    assert {urlsplit(one).hostname for one in asked if one.startswith("http")} == {"127.0.0.1"}
    assert errors == []
    assert fetch(url) == 200 and fetch(before) == 200
    assert fetch(url, Host="evil.example") == 403 and fetch(url, Origin="http://evil.example") == 403
    assert fetch(f"{url}/gradio_api/file={place}/notes.txt") == 403

    # A page that is closed takes its photos with it, and the end of the process takes all.
    page.context.close()
    wait_until(lambda: len(list((root / "sessions").iterdir())) == 1)
    assert fetch(before) == 404
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert not list((place / "tmp").glob(f"{PREFIX}*"))
    log = (place / "stderr.txt").read_text()
    assert "Traceback" not in log and "000.png" not in log and "notes.txt" not in log
    other.context.close()


def wait_until(condition: Any, seconds: float = 20) -> None:
    import time

    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    assert condition()
