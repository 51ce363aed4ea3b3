"""Puts a finished demo into the docs: `python -m tools.portraits.showcase outputs/demo` (after `make demo`).

Copies results.json to docs/demo-results.json, draws docs/demo.svg from the attack's pictures, and writes the figures of
the README and of docs/threat-model.md between their markers. Nothing in the README's first screen is from elsewhere.
Where there is a Chromium, docs/report.svg becomes the first screen of report.html as it shows it.
"""

from __future__ import annotations

import argparse
import base64
import io
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from apdm.audit import read_results
from apdm.core.files import write_text

BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"


def figures(results: dict[str, Any]) -> str:
    """The README's table, from results.json alone."""
    utility, nominal = results["utility"], results["cost_factor"]["nominal_step"]
    rows = []
    for name, entry in sorted(results["comparison"].items()):
        rows.append(
            f"| likeness after {nominal} attack steps, `{name}` | {entry['base']:.2f} | {entry['hardened']:.2f} |"
        )
    for subject in utility["other_subjects"]:
        for name in sorted(subject["base"]):
            rows.append(
                f"| another person, same attack, `{name}` "
                f"| {subject['base'][name]:.2f} | {subject['hardened'][name]:.2f} |"
            )
    faces = utility["class_face_rate"]
    rows.append(f"| class pictures that show a face | {faces['base']:.2f} | {faces['hardened']:.2f} |")
    rows.append(
        f"| FID of class pictures to the base's | {utility['fid_base_seed_to_seed']:.2f} (base, other seeds) "
        f"| {utility['fid_to_base']:.2f} |"
    )
    worst = results["cost_factor"]["worst"]
    cost = "not measured" if worst is None else f"{'at least ' if worst['at_least'] else ''}{worst['factor']:.1f}"
    strangers = ", ".join(f"{name} {entry['mean']:.2f}" for name, entry in sorted(_strangers(results).items()))
    verdict = "protected" if results["verdict"]["protected"] else "**not protected**"
    return "\n".join(
        [
            "`make demo` on the bundled miniature world (drawn people, a small denoiser), one protected person:",
            "",
            "| | base | hardened |",
            "| --- | --- | --- |",
            *rows,
            "",
            *photo_rows(results),
            f"Strangers' likeness: {strangers}. Steps to base-level likeness, hardened over base, worst encoder: "
            f"{cost}. By the audit's thresholds the demo is {verdict}. All figures: "
            "[`docs/demo-results.json`](docs/demo-results.json); remade by `make demo` and "
            "`python -m tools.portraits.showcase outputs/demo`.",
        ]
    )


def promise(results: dict[str, Any]) -> str:
    """What docs/threat-model.md says of the demo, from results.json alone."""
    utility, verdict = results["utility"], results["verdict"]
    checks = {check["name"]: check["value"] for check in verdict["checks"]}
    likeness = ", ".join(
        f"{entry['hardened']:.2f} where the base gives {entry['base']:.2f} (`{name}`)"
        for name, entry in sorted(results["comparison"].items())
    )
    worst = results["cost_factor"]["worst"]
    cost = "not measured" if worst is None else f"{'at least ' if worst['at_least'] else ''}{worst['factor']:.1f} times"
    distance = utility["fid_to_base"] / utility["fid_base_seed_to_seed"]
    people, seeds = len(results["subjects"]), len(results["seeds"])
    counted = f"{people} {'person' if people == 1 else 'people'}, {seeds} {'seed' if seeds == 1 else 'seeds'}"
    return "\n".join(
        [
            "On the miniature world, by [demo-results.json](demo-results.json) "
            f"({counted}): {'the demo passed its audit' if verdict['protected'] else '**nothing**'}.",
            "",
            f"* Of the pictures after the nominal attack {checks['match_rate']:.2f} match at worst.",
            f"* Likeness after it: {likeness}.",
            f"* Steps for the base's likeness, in units of the base's: {cost}, by the worst encoder.",
            f"* FID of the class to the base: {distance:.1f} times that of the base against itself.",
        ]
    )


def photo_rows(results: dict[str, Any]) -> list[str]:
    """The table of the protected photos: likeness of what attacks on the base model draw; empty without them."""
    layer = results.get("image_layer")
    if not layer:
        return []
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in layer["attacks"]:
        for name, entry in sorted(row["identity"].items()):
            found.setdefault((row["attack"], name), {})[row["photos"]] = entry["mean"]
    psnr = min(photo["visible"]["psnr"] for photo in layer["photos"])
    misled = ", ".join(f"`{name}`" for name in layer["photos"][0]["faces"][0]["cosine"])
    names = {"dreambooth": "DreamBooth on the photos", "faceid": "FaceID adapter, one photo"}
    return [
        f"The same person's photos, protected (PSNR at least {psnr:.1f} dB; {misled} was misled), and the base model:",
        "",
        "| likeness | clean | protected |",
        "| --- | --- | --- |",
        *(
            f"| {names.get(attack, attack)}, `{name}` | {values['clean']:.2f} | {values['protected']:.2f} |"
            for (attack, name), values in found.items()
            if {"clean", "protected"} <= values.keys()
        ),
        "",
        f"A misled encoder is not an unlike picture: {misled} was attacked, the other encoder was not.",
        "",
    ]


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
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def first_screen(report: Path, browser: str, width: int = 1000, height: int = 900) -> str:
    """The top of a page as `browser` shows it, so many CSS pixels of it, as one self-contained SVG."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder, "shot.png")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},{height}"]
        flags += [f"--user-data-dir={folder}/profile", f"--screenshot={shot}"]
        subprocess.run([browser, *flags, report.resolve().as_uri()], check=True, capture_output=True, timeout=120)
        small = io.BytesIO()
        Image.open(shot).convert("RGB").save(small, "JPEG", quality=80)
    data = base64.b64encode(small.getvalue()).decode()
    size = f'width="{width}" height="{height}"'
    image = f'<image {size} href="data:image/jpeg;base64,{data}"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {size}>\n{image}\n</svg>\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="the folder that `make demo` left")
    demo: Path = parser.parse_args().demo
    results = read_results(demo / "results.json")
    shutil.copyfile(demo / "results.json", "docs/demo-results.json")
    subject, seed = results["subjects"][0], results["seeds"][0]
    base, hardened = (demo / f"pictures/attack/{model}/{subject}/{seed}.png" for model in ("base", "hardened"))
    write_text("docs/demo.svg", side_by_side(base, hardened))
    if browser := find_browser():
        write_text("docs/report.svg", first_screen(demo / "report.html", browser))
    for file, text in (("README.md", figures(results)), ("docs/threat-model.md", promise(results))):
        write_text(file, insert(Path(file).read_text(encoding="utf-8"), text))


if __name__ == "__main__":
    main()
