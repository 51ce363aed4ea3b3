"""The report in a real browser: no errors, no requests, no overflow on a phone, and tables that sort."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_results import outcome, row

from apdm.audit.results import Results
from apdm.audit.schema import from_json
from apdm.report.page import write_report
from tools.portraits.showcase import find_browser, first_screen

BROWSER = find_browser()
PHONE = 390  # CSS pixels across
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium here; test_report.py parses the page instead")

# Runs inside the frame that shows the page. What it finds ends up in the title of the page around it.
PROBE = """
<script>
window.errors = [];
addEventListener("error", event => errors.push(event.message || "resource: " + event.target.outerHTML), true);
document.addEventListener("securitypolicyviolation", event => errors.push("refused: " + event.blockedURI));
</script>
"""
FRAME = """<!doctype html><html><body style="margin: 0"><iframe id="page"
style="border: 0; width: {width}px; height: 3000px" srcdoc="{page}"></iframe><pre id="found"></pre><script>
document.getElementById("page").onload = event => {{
  const view = event.target.contentWindow, doc = view.document, root = doc.documentElement;
  const wide = [...doc.querySelectorAll("body *")].filter(one => !one.closest(".scroll, svg")
    && one.getBoundingClientRect().right > view.innerWidth + 1).map(one => one.outerHTML.slice(0, 80));
  const table = doc.querySelector("#summary table");
  const column = () => [...table.tBodies[0].rows].map(r => r.cells[0].textContent);
  const before = column(); table.tHead.rows[1].cells[0].querySelector("button").click();
  const once = column(); table.tHead.rows[1].cells[0].querySelector("button").click();
  document.getElementById("found").textContent = JSON.stringify({{
    errors: view.errors, wide, width: view.innerWidth, content: root.scrollWidth, height: root.scrollHeight,
    requests: view.performance.getEntriesByType("resource").map(one => one.name)
      .filter(name => !name.startsWith("data:")),
    background: view.getComputedStyle(doc.body).backgroundColor, before, once, twice: column(),
  }});
}};
</script></body></html>"""


@pytest.fixture
def page(tmp_path: Path, results: dict[str, Any], pictures: dict[str, Any]) -> Path:
    """A report with three attacks, one of a long name, a placebo arm and everything else."""
    check = {"name": "match_rate", "value": 0.5, "limit": 0.05, "passed": False, "detail": "Many match."}
    rows = results["attacks"]
    for spec in ("two_stage", "lora:rank=32,train_text_encoder=true,learning_rate_factor=3"):
        for model in ("base", "placebo", "hardened"):
            rows.append(row(model, "s01", 3, [0.1, 0.6]) | {"spec": spec, "assumes": "the weights"})
    states = ("not protected", "void", "protected")
    specs = dict.fromkeys(one["spec"] for one in rows)
    results["by_attack"] = [
        outcome(spec, pairs=2, state=state, failed=1, void=1, checks=[check], no_attack={"hardened": {"enc-a": 0.05}})
        for spec, state in zip(specs, states, strict=True)
    ]
    results["left_out"] = [{"spec": "task_vector", "reason": "it needs a sibling model", "required": True}]
    write_report(from_json(Results, results), tmp_path / "report.html", pictures)
    return tmp_path / "report.html"


def opened(page: Path, *, width: int, dark: bool = False) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8").replace("<head>", f"<head>{PROBE}", 1)
    frame = page.with_name("frame.html")
    quoted = text.replace("&", "&amp;").replace('"', "&quot;")
    frame.write_text(FRAME.format(width=width, page=quoted), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--window-size=1400,900"]
    flags += ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run(
        [str(BROWSER), *flags, f"--user-data-dir={page.parent / 'profile'}", "--dump-dom", frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(found[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))
    return result


@pytest.mark.parametrize("width", [PHONE, 820, 1280])
def test_the_page_has_no_errors_asks_for_nothing_and_fits(page: Path, width: int):
    found = opened(page, width=width)
    assert found["errors"] == [] and found["requests"] == []
    assert found["width"] == width
    assert found["content"] <= width, found["wide"]
    assert found["wide"] == []


def test_a_heading_sorts_its_table_up_and_then_down(page: Path):
    found = opened(page, width=1280)
    assert found["before"] != found["once"] == sorted(found["before"]) == found["twice"][::-1]


def test_the_page_is_dark_where_the_reader_wants_that(page: Path):
    assert opened(page, width=1280)["background"] == "rgb(255, 255, 255)"
    assert opened(page, width=1280, dark=True)["background"] == "rgb(20, 23, 26)"


def test_the_picture_of_its_first_screen_that_the_docs_show_is_whole_and_needs_no_other_file(page: Path):
    svg = first_screen(page, str(BROWSER), width=400, height=300)
    (found,) = re.findall(r'href="data:image/jpeg;base64,([^"]*)"', svg)
    assert svg.count("href=") == 1
    with Image.open(io.BytesIO(base64.b64decode(found))) as shot:
        assert shot.size == (400, 300) and len(shot.getcolors(2**20) or []) > 16  # letters, not an empty page
