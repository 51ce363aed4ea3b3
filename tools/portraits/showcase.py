"""Writes the figures of a finished demo into the documents.

    apdm demo --size full
    python -m tools.portraits.showcase outputs/demo

It copies results.json to benchmarks/results/demo.json, draws docs/images/demo.svg from the pictures of the attack, and
writes figures between the markers of README.md and docs/threat-model.md. All figures come from results.json.
Where a Chromium browser is installed, it also renders the first screen of report.html to docs/images/report.svg.
"""

from __future__ import annotations

import argparse
import base64
import io
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from apdm.audit import read_results
from apdm.audit.results.schema import to_json
from apdm.core.files import write_text

BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"


def figures(results: dict[str, Any]) -> str:
    """The table of README.md: likeness and class pictures before and after protection, from results.json alone."""
    utility, nominal = results["utility"], results["cost_factor"]["nominal_step"]
    encoders = sorted(results["comparison"])
    strangers = _pair({name: entry["mean"] for name, entry in _strangers(results).items()}, encoders)
    comparison = {
        arm: _pair({name: entry[arm] for name, entry in results["comparison"].items()}, encoders)
        for arm in ("base", "hardened")
    }
    faces, frechet = utility["class_face_rate"], utility["frechet"]
    rows = [
        f"| likeness after DreamBooth ({nominal} steps): base model, hardened model "
        f"| {comparison['base']} | {comparison['hardened']} |",
        *(
            f"| the same for another person, who should stay learnable | {_pair(other['base'], encoders)} "
            f"| {_pair(other['hardened'], encoders)} |"
            for other in utility["other_subjects"]
        ),
        f'| pictures of "a person" that show a face | {faces["base"]:.2f} | {faces["hardened"]:.2f} |',
        *photo_rows(results, encoders),
    ]
    worst = results["cost_factor"]["worst"]
    cost = "not measured" if worst is None else f"{'at least ' if worst['at_least'] else ''}{worst['factor']:.1f}"
    needed = next(check["limit"] for check in results["verdict"]["checks"] if check["name"] == "cost_factor")
    verdict = "protected" if results["verdict"]["protected"] else "**not protected**"
    judges = " / ".join(f"`{name}`" for name in encoders)
    return "\n".join(
        [
            _paragraph(
                f"`apdm demo --size full`, {_counted(results)}. *Likeness* is the cosine between faces that an "
                f"attacked model draws and photos of the person, by two recognisers, {judges}. 1 is the same face; "
                f"strangers have {strangers}."
            ),
            "",
            "| | without apdm | with apdm |",
            "| --- | --- | --- |",
            *rows,
            "",
            _paragraph(
                f"By the audit's thresholds the demo is {verdict}: for the same likeness the hardened model costs "
                f"{cost} times the attack steps of the base model, and {needed} are asked for. The side effect: "
                f'hardening moved pictures of "a person" by {frechet["to_base"]:.0f}, where other seeds alone move '
                f"them by {frechet['base_seed_to_seed']:.0f} (Fréchet distance of face features). "
                f"{_photo_note(results)}"
                "[All figures](benchmarks/results/demo.json)."
            ),
        ]
    )


def promise(results: dict[str, Any]) -> str:
    """The paragraph of docs/threat-model.md on the demo, from results.json alone."""
    utility, verdict = results["utility"], results["verdict"]
    checks = {check["name"]: check["value"] for check in verdict["checks"]}
    likeness = ", ".join(
        f"{entry['hardened']:.2f} where the base gives {entry['base']:.2f} (`{name}`)"
        for name, entry in sorted(results["comparison"].items())
    )
    worst = results["cost_factor"]["worst"]
    cost = "not measured" if worst is None else f"{'at least ' if worst['at_least'] else ''}{worst['factor']:.1f} times"
    distance = utility["frechet"]["to_base"] / utility["frechet"]["base_seed_to_seed"]
    return "\n".join(
        [
            f"On the miniature world, by [demo.json](../benchmarks/results/demo.json) ({_counted(results)}): "
            f"{'the demo passed its audit' if verdict['protected'] else '**nothing**'}.",
            "",
            f"* Match rate after the nominal attack, at worst: {checks['match_rate']:.2f}.",
            f"* Likeness after it: {likeness}.",
            f"* Steps to the likeness that the base gives: {cost} the base's, by the worst encoder.",
            f"* Class distance ({utility['frechet']['network']} features): {distance:.1f} times that between two seeds "
            "of the base.",
        ]
    )


def photo_rows(results: dict[str, Any], encoders: list[str]) -> list[str]:
    """Rows on the protected photos: likeness that attacks draw on the base model; none without protected photos."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in (results.get("image_layer") or {"attacks": []})["attacks"]:
        means = {name: entry["mean"] for name, entry in row["identity"].items()}
        found.setdefault(row["attack"], {})[row["photos"]] = means
    names = {
        "dreambooth": "likeness after DreamBooth on the base model: with clean photos, with protected photos",
        "faceid": "likeness drawn by a FaceID adapter from one photo: clean photo, protected photo",
    }
    return [
        f"| {names.get(attack, attack)} | {_pair(values['clean'], encoders)} | {_pair(values['protected'], encoders)} |"
        for attack, values in found.items()
        if {"clean", "protected"} <= values.keys()
    ]


def _photo_note(results: dict[str, Any]) -> str:
    layer = results.get("image_layer")
    if not layer:
        return ""
    psnr = min(photo["visible"]["psnr"] for photo in layer["photos"])
    misled = ", ".join(f"`{name}`" for name in layer["photos"][0]["faces"][0]["cosine"])
    return f"The photos were changed to mislead {misled} (PSNR at least {psnr:.1f} dB). "


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _counted(results: dict[str, Any]) -> str:
    people, seeds = len(results["subjects"]), len(results["seeds"])
    return f"{people} {'person' if people == 1 else 'people'}, {seeds} {'seed' if seeds == 1 else 'seeds'}"


def _pair(values: Mapping[str, float], encoders: list[str]) -> str:
    """One value for each encoder: `0.92 / 0.94`."""
    return " / ".join(f"{values[name]:.2f}" for name in encoders)


def _strangers(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Mean over subjects where the results keep one entry for each."""
    return {name: entry for name, entry in results["strangers"].items() if "mean" in entry}


def insert(readme: str, text: str) -> str:
    """The README with `text` between the markers."""
    head, rest = readme.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n{text}\n{END}{tail}"


def side_by_side(left: Path, right: Path, side: int = 280) -> str:
    """Two PNG sheets in one self-contained SVG."""

    def image(path: Path, x: int) -> str:
        data = base64.b64encode(path.read_bytes()).decode()
        return f'<image x="{x}" y="30" width="{side}" height="{side}" href="data:image/png;base64,{data}"/>'

    width = 2 * side + 20
    text = 'font-family="sans-serif" font-size="15" fill="#888"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {side + 30}" width="{width}">',
            f'<text x="0" y="18" {text}>base model, attacked</text>',
            f'<text x="{side + 20}" y="18" {text}>hardened model, attacked</text>',
            image(left, 0),
            image(right, side + 20),
            "</svg>",
            "",
        ]
    )


def find_browser() -> str | None:
    """The path of an installed Chromium browser, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def first_screen(report: Path, browser: str, width: int = 1000, height: int = 820) -> str:
    """The top of a page as `browser` shows it, so many CSS pixels of it, as one self-contained SVG."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder, "shot.png")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},{height}"]
        flags += [f"--user-data-dir={folder}/profile", f"--screenshot={shot}"]
        subprocess.run([browser, *flags, report.resolve().as_uri()], check=True, capture_output=True, timeout=120)
        small = io.BytesIO()
        Image.open(shot).convert("RGB").save(small, "WEBP", quality=75, method=6)
    data = base64.b64encode(small.getvalue()).decode()
    size = f'width="{width}" height="{height}"'
    image = f'<image {size} href="data:image/webp;base64,{data}"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {size}>\n{image}\n</svg>\n'


def main() -> None:
    """Write the figures of the demo that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="the folder that `apdm demo --size full` left")
    demo: Path = parser.parse_args().demo
    results = to_json(read_results(demo / "results.json"))
    shutil.copyfile(demo / "results.json", "benchmarks/results/demo.json")
    subject, seed = results["subjects"][0], results["seeds"][0]
    base, hardened = (demo / f"pictures/attack/{model}/{subject}/{seed}.png" for model in ("base", "hardened"))
    write_text("docs/images/demo.svg", side_by_side(base, hardened))
    if browser := find_browser():
        write_text("docs/images/report.svg", first_screen(demo / "report.html", browser))
    for file, text in (("README.md", figures(results)), ("docs/threat-model.md", promise(results))):
        write_text(file, insert(Path(file).read_text(encoding="utf-8"), text))


if __name__ == "__main__":
    main()
