"""The README's figures are those of the committed results, and of nothing else."""

import json
from pathlib import Path

from apdm.audit import read_results
from apdm.audit.results.schema import to_json
from tools.portraits.showcase import BEGIN, END, figures, insert, promise

ROOT = Path(__file__).parents[2]


def test_the_readme_shows_the_figures_of_the_committed_results() -> None:
    readme = (ROOT / "README.md").read_text()
    results = json.loads((ROOT / "benchmarks/results/demo.json").read_text())
    assert insert(readme, figures(results)) == readme


def test_the_threat_model_promises_what_the_committed_results_say() -> None:
    text = (ROOT / "docs/threat-model.md").read_text()
    assert insert(text, promise(to_json(read_results(ROOT / "benchmarks/results/demo.json")))) == text


def test_figures_replace_what_stood_between_the_markers() -> None:
    assert insert(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\nnew\n{END}\nb"


def test_the_picture_needs_no_other_file() -> None:
    svg = (ROOT / "docs/images/demo.svg").read_text()
    assert svg.count('href="data:image/png;base64,') == svg.count("href=") == 2
