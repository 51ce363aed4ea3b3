"""`apdm compare` puts audits side by side and says which figures cannot be compared."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from html_page import Page
from tiny_results import make_results

from apdm.audit.results.models import Results
from apdm.audit.results.schema import from_json
from apdm.cli import main
from apdm.report.comparison import side_by_side, text_lines


def other_params(content: dict[str, Any]) -> None:
    for row in content["attacks"]:
        row["params"] = row["params"] | {"learning_rate": 1.0}


def other_judge(content: dict[str, Any]) -> None:
    content["judges"]["face_score"]["threshold"] = 0.7


def other_people(content: dict[str, Any]) -> None:
    content["subjects"] = ["s01"]


def other_others(content: dict[str, Any]) -> None:
    content["others"] = ["o02"]


def other_features(content: dict[str, Any]) -> None:
    content["utility"]["frechet"]["network"] = "another"


def other_seeds(content: dict[str, Any]) -> None:
    content["seeds"] = [7]
    for row in content["attacks"]:
        row["seed"], row["params"] = 7, row["params"] | {"seed": 7}


def table(change: Any) -> Any:
    content = copy.deepcopy(make_results())
    change(content)
    return side_by_side([("one", from_json(Results, make_results())), ("two", from_json(Results, content))])


@pytest.mark.parametrize(
    ("change", "concerned", "note", "points"),
    [
        (other_seeds, [], None, 2),
        (other_params, ["Likeness by enc-a", "Cost", "Others"], "two has another attack than one.", 1),
        (other_judge, ["Likeness by enc-a", "Cost", "Others"], "two has other judges than one.", 1),
        (other_people, ["Likeness by enc-a", "Cost"], "two has other people than one.", 1),
        (other_others, ["Others"], "two has other people who must stay learnable than one.", 2),
        (other_features, ["Class distance"], "two has another distance of class pictures than one.", 1),
    ],
)
def test_figures_that_were_measured_in_another_way_are_not_comparable(
    change: Any, concerned: list[str], note: str | None, points: int
) -> None:
    found = table(change)
    first, second = found.lines
    assert not [cell for cell in first.cells if cell.startswith("not comparable")]
    cells = dict(zip(found.heads, second.cells, strict=True))
    assert [head for head, cell in cells.items() if cell.startswith("not comparable: ")] == concerned
    assert found.notes == ([] if note is None else [note])
    assert len(found.plot.points) == points and found.plot.left_out == ["2"] * (2 - points)


def test_runs_without_a_common_attack_say_so() -> None:
    def change(content: dict[str, Any]) -> None:
        for row in [*content["attacks"], *content["by_attack"], content["cost_factor"]]:
            row["spec"] = "lora"

    found = table(change)
    assert found.attacks == [] and "attacks in common: none" in "\n".join(text_lines(found))
    assert found.lines[0].cells[0] == "0.75 → 0.25" and found.lines[1].cells[0] == "not comparable: another attack"


@pytest.mark.parametrize(("distance", "right"), [(0.0, 34.0), (9.5 * 1.3, 290.5), (9.5 * 2000, 330.0)])
def test_the_plot_has_round_ticks_at_any_size(distance: float, right: float) -> None:
    content = make_results()
    content["utility"]["frechet"]["to_base"] = distance
    plot = side_by_side([("one", from_json(Results, content))]).plot
    assert plot.points[0].x == right and 2 <= len(plot.x_ticks) <= 7 and plot.x_ticks[0] == (34.0, 0.0)


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    for name in ("a/run", "b/run"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "results.json").write_text(json.dumps(make_results()))
    return [str(tmp_path / "a/run"), str(tmp_path / "b/run/results.json")]


def test_the_command_prints_a_table_and_writes_a_page(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *folders]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["run", "a/run", "b/run", "attack:"]
    assert "0.75 → 0.25" in printed[1] and "≥ 2.0 ×" in printed[1] and "1.50 ×" in printed[1]
    assert printed[1].endswith("protected") and "87.5" in printed[1]

    output = tmp_path / "compared.html"
    for _ in range(2):  # its own page is replaced
        assert main(["compare", *folders, "--output", str(output)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"page  {output}"
    page = Page(output)
    assert page.text("runs").count("0.75 → 0.25") == 2 and "the/base → the/model" in page.text("runs")
    assert "The attacker owns the hardened weights" in page.text("threat-model")
    circles = [attributes for tag, attributes in page.tags if tag == "circle"]
    assert [circle["class"] for circle in circles] == ["hardened open"] * 2
    assert not page.values("src") and not page.values("href")


def test_bad_input_is_told_at_once_and_nothing_is_replaced(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", folders[0]]) == 2
    assert "results needs at least two audits" in capsys.readouterr().err
    (tmp_path / "old.json").write_text('{"schema": 1}')
    (tmp_path / "mine.html").write_text("mine")
    words = [folders[0], str(tmp_path / "old.json"), str(tmp_path / "nowhere"), "--output", str(tmp_path / "mine.html")]
    assert main(["compare", *words]) == 2
    said = capsys.readouterr().err
    for fault in ("has schema 1, this program reads 2", "nowhere does not exist", "is no page of this program"):
        assert fault in said
    assert "nowhere does not exist; give the results.json of an audit, or its folder" in said
    assert said.count("\n") == 3 and (tmp_path / "mine.html").read_text() == "mine"


def test_the_page_of_a_run_is_not_replaced_by_a_comparison(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "compared.html"
    assert main(["compare", *folders, "--output", str(page)]) == 0
    page.replace(Path(folders[0]) / "report.html")  # stands for the run's own page
    before = (Path(folders[0]) / "report.html").read_bytes()
    for words in (["compare", *folders], ["report", folders[1]]):
        assert main([*words, "--output", f"{folders[0]}/report.html"]) == 2
        assert "is the page of another run and is not replaced" in capsys.readouterr().err
    assert (Path(folders[0]) / "report.html").read_bytes() == before
    (Path(folders[0]) / "report.html").unlink()
    table = tmp_path / "table"
    table.mkdir()
    (table / "table.json").write_text("{}")
    (table / "table.html").write_bytes(before)
    assert main(["compare", *folders, "--output", str(table / "table.html")]) == 2
    assert "is the page of another run and is not replaced" in capsys.readouterr().err
    assert (table / "table.html").read_bytes() == before


def test_a_page_that_cannot_be_written_is_one_line(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = str(tmp_path / ("x" * 245 + ".html"))  # a longer name than the staging folder may have
    assert main(["compare", *folders, "--output", page]) == 2
    assert main(["report", folders[0], "--output", page]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("cannot be written" in line and "name another file" in line for line in said)
