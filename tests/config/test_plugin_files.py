"""Plug-ins in files of the user's own: names of such files, files that change, and what is refused."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import pytest

from apdm.config.plugins import ATTACKS, OBJECTIVES, code_hash
from apdm.core.errors import UserError

HINGE = """
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from apdm.protection.objectives import LossObjective


@dataclass(frozen=True, kw_only=True)
class Hinge(LossObjective):
    margin: {kind} = {default}

    name: ClassVar[str] = "hinge"
"""


def hinge(path: Path, kind: str = "float", default: str = "0.5") -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(HINGE.format(kind=kind, default=default))
    return f"{path}:Hinge"


@pytest.mark.parametrize("name", ["json.py", "apdm.py", "my objective v1.2.py"])
def test_a_file_may_be_called_like_a_module_of_python(tmp_path: Path, name: str) -> None:
    assert OBJECTIVES.make(hinge(tmp_path / name) + ":margin=2").margin == 2
    assert sys.modules["json"] is json


def test_two_files_may_have_the_same_name(tmp_path: Path) -> None:
    first, second = hinge(tmp_path / "a/mine.py"), hinge(tmp_path / "b/mine.py", 'Literal["low", "high"]', '"low"')
    assert OBJECTIVES.make(f"{first}:margin=1").margin == 1
    assert OBJECTIVES.make(f"{second}:margin=high").margin == "high"
    assert OBJECTIVES.make(f"{first}:margin=2").margin == 2


def test_a_file_that_was_changed_is_read_again_and_one_that_was_not_gives_the_same_class(tmp_path: Path) -> None:
    spec = hinge(tmp_path / "mine.py")
    first = OBJECTIVES.make(spec)
    assert type(OBJECTIVES.make(spec)) is type(first)
    assert pickle.loads(pickle.dumps(first)) == first
    assert OBJECTIVES.make(hinge(tmp_path / "mine.py", default="0.7")).margin == 0.7  # as long, at the same moment
    assert OBJECTIVES.make(hinge(tmp_path / "mine.py", "int", "3") + ":margin=4").margin == 4


def test_what_was_made_with_a_file_is_known_by_the_content_of_each_file_that_a_text_names(tmp_path: Path) -> None:
    spec = hinge(tmp_path / "mine.py")
    first = code_hash(spec)
    assert (
        first
        and code_hash(f"{spec}:margin=2") == code_hash(f"photos:purifier={spec}") == code_hash("lora", spec) == first
    )
    hinge(tmp_path / "mine.py", default="0.7")
    assert code_hash(spec) != first != code_hash("lora", f"photos:purifier={spec}")
    assert code_hash("lora:rank=4", None) is None


def test_a_file_named_by_another_path_gives_the_same_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = hinge(tmp_path / "mine.py")
    monkeypatch.chdir(tmp_path)
    assert type(OBJECTIVES.make("mine.py:Hinge")) is type(OBJECTIVES.make(spec))


def test_annotations_are_texts_only_if_the_file_says_so(tmp_path: Path) -> None:
    texts = type(OBJECTIVES.make(hinge(tmp_path / "mine.py")))
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text().replace("from __future__", "# "))
    types = type(OBJECTIVES.make(f"{tmp_path / 'mine.py'}:Hinge"))
    assert [texts.__annotations__["margin"], types.__annotations__["margin"]] == ["float", float]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("class Hinge", "class Other"), 'has no objective "Hinge"; it has Other'),
        (("name: ClassVar[str]", "called: ClassVar[str]"), "Hinge is no objective, because it has no name"),
        (("@dataclass(frozen=True, kw_only=True)", ""), "Hinge is no dataclass; write @dataclass(frozen=True, kw_only"),
        (("0.5", "exit(3)"), ", line 12: it cannot be loaded: SystemExit: 3"),
        (("0.5", "1 / 0"), ", line 12: it cannot be loaded: ZeroDivisionError: division by zero"),
        (
            ("margin: float = 0.5", "margin: tuple[int, ...] = ()"),
            "Hinge: the option margin is a tuple; write int, float",
        ),
        (("margin: float", "margin: Margin"), "Hinge: name 'Margin' is not defined; import outside of TYPE_CHECKING"),
        (("class Hinge", "klass Hinge"), ": it cannot be loaded: SyntaxError: invalid syntax"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_that_says_why(
    tmp_path: Path, change: tuple[str, str], problem: str
) -> None:
    spec = hinge(tmp_path / "mine.py")
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text().replace(*change))
    with pytest.raises(UserError) as caught:
        OBJECTIVES.make(spec)
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_a_class_without_a_method_that_it_must_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from apdm.attacks.fine_tuning import FineTuning\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(FineTuning):\n"
        "    name = 'mine'\n"
        "    assumes = 'nothing'\n"
    )
    with pytest.raises(UserError, match="Mine is no attack, because it has no begin"):
        ATTACKS.parse(f"{tmp_path / 'mine.py'}:Mine")
