"""results.json: typed results are written and read back, other versions' files are refused, and the schema fits."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from json_schema import violations
from tiny_results import make_results

from apdm.audit import SCHEMA, Results, read_results, results_schema, write_results
from apdm.audit.results.schema import WrongShape, from_json, to_json
from apdm.core.errors import UserError

COMMITTED = sorted((Path(__file__).parents[2] / "benchmarks" / "results").glob("*.json"))
AUDITS = [path for path in COMMITTED if "by_attack" in json.loads(path.read_text())]


def test_there_are_committed_results_of_audits():
    assert {"demo.json", "ten-people-audit.json"} <= {path.name for path in AUDITS}


@pytest.mark.parametrize("path", AUDITS, ids=lambda path: path.name)
def test_committed_results_are_read_and_written_back_unchanged(path: Path, tmp_path: Path):
    write_results(read_results(path), tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(path.read_text())


def test_the_schema_has_the_number_of_the_results():
    schema = results_schema()
    assert schema["$defs"]["Results"]["properties"]["schema"] == {"enum": [SCHEMA]}
    assert f"schema {SCHEMA}" in schema["title"]


@pytest.mark.parametrize("path", AUDITS, ids=lambda path: path.name)
def test_written_results_conform_to_the_schema(path: Path, tmp_path: Path):
    write_results(read_results(path), tmp_path / "results.json")
    schema = results_schema()
    assert violations(json.loads((tmp_path / "results.json").read_text()), schema, schema["$defs"]) == []


def drop(content: dict[str, Any]) -> None:
    del content["attacks"][2]["horizon"]


def add(content: dict[str, Any]) -> None:
    content["verdict"]["mood"] = "good"


def mistype(content: dict[str, Any]) -> None:
    content["attacks"][0]["curve"][1]["loss"] = "low"


def misname(content: dict[str, Any]) -> None:
    content["by_attack"][0]["state"] = "splendid"


def misnumber(content: dict[str, Any]) -> None:
    content["seeds"] = [True]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (drop, "attacks[2].horizon is missing"),
        (add, "verdict.mood is not a known field"),
        (mistype, "attacks[0].curve[1].loss is 'low', not a number"),
        (misname, "by_attack[0].state is 'splendid', not one of 'protected', 'not protected'"),
        (misnumber, "seeds[0] is True, not an integer"),
        (lambda content: content.update(seeds=3), "seeds is 3, not a list"),
        (lambda content: content["attacks"][0].update(params=[]), "attacks[0].params is [], not an object"),
    ],
)
def test_what_the_schema_does_not_allow_is_refused_in_one_line(
    spoil: Callable[[dict[str, Any]], None], said: str, tmp_path: Path
):
    content, schema = make_results(), results_schema()
    assert violations(content, schema, schema["$defs"]) == []
    spoil(content)
    assert violations(content, schema, schema["$defs"])
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        read_results(tmp_path / "results.json")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_place_in_a_file_begins_with_its_field_and_whole_numbers_are_numbers():
    content = make_results()
    content["attacks"][0]["seconds"] = 2
    seconds = from_json(Results, content).attacks[0].seconds
    assert (seconds, type(seconds)) == (2.0, float)
    del content["seeds"]
    with pytest.raises(WrongShape, match=r"^seeds is missing$"):
        from_json(Results, content)


def test_a_field_that_may_be_left_out_is_left_out_where_it_is_none():
    content = make_results()
    assert "image_layer" not in to_json(from_json(Results, content))
    with pytest.raises(WrongShape, match="image_layer is not an object"):
        from_json(Results, copy.deepcopy(content) | {"image_layer": 3})
