"""Options that hold paths: home folders and variables are expanded, and nothing else is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from apdm.config import load_config
from apdm.config.filling import make_config
from apdm.config.help import COMMANDS
from apdm.config.options import option, options_by_path
from apdm.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Options that hold paths."""

    folder: str | None = option(None, "Folder.", holds="path")
    attack: str = option("lora", "Attack.", holds="spec")
    many: list[str] = option([], "Encoders.", holds="spec")
    prompt: str = option("p", "Prompt.")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("~", "/home/x"),
        ("~/photos", "/home/x/photos"),
        ("$DATA/photos", "/data/photos"),
        ("${DATA}photos/$NUMBER", "/dataphotos/7"),
        ("a/~/b", "a/~/b"),
        ("./~", "./~"),
        ("cost$", "cost$"),
        ("org/model", "org/model"),
    ],
)
def test_home_folders_and_variables_are_expanded_however_a_path_is_given(written, read, tmp_path, monkeypatch):
    for name, value in {"HOME": "/home/x", "DATA": "/data", "NUMBER": "7"}.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "c.yaml"
    file.write_text(f"folder: '{written}'\n")
    ways = (
        load_config(Paths, ["--folder", written]),
        load_config(Paths, [f"--folder={written}"]),
        load_config(Paths, ["--config", str(file)]),
        make_config(Paths, {"folder": written}),
    )
    assert {way.folder for way in ways} == {read}
    if not written.startswith("."):  # pathlib makes "~" of "./~"
        assert make_config(Paths, {"folder": Path(written)}).folder == read


def test_paths_inside_specs_and_lists_are_expanded_and_nothing_else_is(monkeypatch):
    monkeypatch.setenv("HOME", "/home/x")
    words = ["--attack", "~/m.py:Mine:weights=~/w.pt,rank=2,mark=$no,note=a~b", "--many", "~/e.onnx=0.3", "$HOME/p"]
    config = load_config(Paths, [*words, "--prompt", "~ $HOME"])
    assert config.attack == "/home/x/m.py:Mine:weights=/home/x/w.pt,rank=2,mark=$no,note=a~b"
    assert config.many == ["/home/x/e.onnx=0.3", "/home/x/p"]
    assert config.prompt == "~ $HOME"


def test_a_variable_or_a_user_that_does_not_exist_is_named_instead_of_becoming_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match='folder on the command line is "[$]OUTS/a"; the environment variable OUTS is not'
    ):
        load_config(Paths, ["--folder", "$OUTS/a"])
    with pytest.raises(UserError, match="it is blank"):
        load_config(Paths, ["--folder", " "])
    with pytest.raises(UserError, match="it holds the character 0"):
        make_config(Paths, {"folder": "a\0b"})
    with pytest.raises(UserError, match="a name in it has more than 255 bytes"):
        load_config(Paths, ["--folder", "a/" + 128 * "é"])
    with pytest.raises(UserError, match="there is no user nobody_has_this; for a name that begins with ~, write ./~"):
        load_config(Paths, ["--folder", "~nobody_has_this/a"])
    Path("$OUTS").mkdir()
    assert load_config(Paths, ["--folder", "$OUTS"]).folder == "$OUTS"  # a folder may really be called this


def test_the_file_of_config_may_lie_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("prompt: q\n")
    assert load_config(Paths, ["--config=~/c.yaml"]).prompt == "q"
    assert make_config(Paths, {}, file="$HOME/c.yaml").prompt == "q"


TEXTS = {"prompt", "prompts", "revision", "variant", "split", "column", "rows"}
TEXTS |= {"host", "dataset_config_name", "class_dataset_config_name", "dataset_subjects"}
TEXTS |= {"hub_model_id", "base_model"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_text_says_whether_it_holds_a_path(command):
    for path, found in options_by_path(COMMANDS[command]).items():
        is_text = found.kind in (str, str | None, list[str])
        if is_text and path.rpartition("_")[2] not in TEXTS and path.rpartition(".")[2] not in TEXTS:
            assert found.field.metadata["holds"] != "text", f'{path}: give option() holds="path" or holds="spec"'
