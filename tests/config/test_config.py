"""The loader and the tree of options."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
import yaml

from apdm.config import AuditJobConfig, HardenConfig, config_hash, load_config, to_yaml
from apdm.config.continuation import has_same_options
from apdm.config.filling import make_config
from apdm.config.help import help_text
from apdm.config.options import option
from apdm.core.errors import UserError
from apdm.core.logging import messages_on_stderr

ROOT = Path(__file__).parents[2]
REQUIRED = ["--pretrained_model_name_or_path=m", "--instance_data_dir=i", "--output_dir=o"]


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Inner options."""

    steps: int = option(3, "Steps.", at_least=1)
    rate: float = option(0.5, "Rate.", above=0)


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Options of a command."""

    name: str = option(help="Name.")
    note: str | None = option(None, "Note.")
    flag: bool = option(False, "Flag.")
    mode: Literal["no", "fp16"] = option("no", "Mode.")
    words: list[str] = option(["a b"], "Words.")
    marks: list[int] = option([], "Marks.", at_least=0)
    inner: Inner = field(default_factory=Inner)


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """load(yaml, *argv): what `--config c.yaml *argv` gives."""
    monkeypatch.chdir(tmp_path)

    def run(text: str, *argv: str) -> Outer:
        Path("c.yaml").write_text(text)
        return load_config(Outer, ["--config", "c.yaml", *argv])

    return run


def test_command_line_wins_over_yaml_and_yaml_over_defaults(load):
    config = load("name: file\ninner: {steps: 5, rate: 2}\n", "--inner.steps", "7", "--flag", "true")
    assert config == Outer(name="file", flag=True, inner=Inner(steps=7, rate=2.0))


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--note=a=b"], "note", "a=b"),
        (["--note", "5e-6"], "note", "5e-6"),
        (["--note", "null"], "note", None),
        (["--note=--x"], "note", "--x"),
        (["--flag"], "flag", True),
        (["--flag", "false"], "flag", False),
        (["--flag", "true", "--flag", "false"], "flag", False),
        (["--mode", "fp16"], "mode", "fp16"),
        (["--words", "x y", "1"], "words", ["x y", "1"]),
        (["--words"], "words", []),
        (["--marks", "1", "20"], "marks", [1, 20]),
        (["--inner.rate", "1e-3"], "inner", Inner(rate=0.001)),
    ],
)
def test_each_form_of_the_command_line_gives_its_value(argv, name, value):
    assert getattr(load_config(Outer, ["--name", "n", *argv]), name) == value


@pytest.mark.parametrize("given", ['["a", "b"]', "[1, 2]", "[]"])
def test_a_yaml_list_on_the_command_line_is_no_item(given):
    for key in ("words", "marks"):
        with pytest.raises(UserError, match=f"--{key} is given as .*; write the items themselves, separated by spaces"):
            load_config(Outer, ["--name", "n", f"--{key}", given])


def test_an_empty_default_may_be_written_down():
    @dataclass(frozen=True, kw_only=True)
    class Prompts:
        prompt: str = option("", "By default another prompt.")
        name: str = option("n", "Name.")

    assert load_config(Prompts, ["--prompt", ""]) == make_config(Prompts, {"prompt": ""}) == Prompts()
    with pytest.raises(UserError, match="it needs text"):
        load_config(Prompts, ["--name", ""])


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("inner: {rate: 5e-6}", "inner", Inner(rate=5e-6)),
        ("inner: {rate: 1}", "inner", Inner(rate=1.0)),
        ("mode: no", "mode", "no"),
        ("note: on", "note", "on"),
        ("note: 2026-01-02", "note", "2026-01-02"),
        ("note: 12:30", "note", "12:30"),
        ("note: ~", "note", None),
        ("note: none", "note", None),
        ("note: None", "note", None),
        ("inner:\n  # steps: 4\n", "inner", Inner()),
    ],
)
def test_yaml_scalars_mean_what_they_look_like(load, text, name, value):
    assert getattr(load(f"name: n\n{text}\n"), name) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inner: {steps: ten}", 'inner.steps in c.yaml is "ten" (str); it needs a whole number'),
        ("inner: {steps: 1.5}", "inner.steps in c.yaml is 1.5 (float); it needs a whole number"),
        ("inner: {steps: true}", "inner.steps in c.yaml is true (bool); it needs a whole number"),
        ("inner: {steps: }", "inner.steps in c.yaml is null; it needs a whole number"),
        ("inner: {steps: 0}", "inner.steps in c.yaml is 0 (int); it needs to be at least 1"),
        ("inner: {rate: 0}", "inner.rate in c.yaml is 0.0 (float); it needs to be more than 0"),
        ("inner: {rate: .nan}", 'inner.rate in c.yaml is ".nan" (str); it needs a number'),
        ("inner: {rate: 1e999}", "inner.rate in c.yaml is inf (float); it needs a number"),
        ("inner: 5", "inner in c.yaml is a group of options; set one of them, such as inner.steps"),
        ("inner: {step: 5}", 'unknown option "inner.step" in c.yaml; did you mean "inner.steps"?'),
        ("steps: 5", 'unknown option "steps" in c.yaml; did you mean "inner.steps"?'),
        ("iner: {steps: 5}", 'unknown option "iner" in c.yaml; did you mean "inner"?'),
        ("zzz: 5", 'unknown option "zzz" in c.yaml; --help-all lists the options'),
        ("note: 2026", "note in c.yaml is 2026 (int); it needs text or null"),
        ("note: ''", 'note in c.yaml is "" (str); it needs text or null'),
        ("flag: yes", 'flag in c.yaml is "yes" (str); it needs true or false'),
        ("mode: bf16", 'mode in c.yaml is "bf16" (str); it needs one of no, fp16'),
        ("words: a", 'words in c.yaml is "a" (str); it needs a list, each item text'),
        ("marks: [1, -2]", "marks in c.yaml is [1, -2] (list); it needs to be at least 0"),
        ("name: n", 'c.yaml, line 2: not valid YAML: "name" is given twice'),
        ("note: [1", "c.yaml, line 3: not valid YAML"),
        (
            "inner.steps: 5\ninner: {steps: 7}",
            "inner.steps in c.yaml is given twice, in a group and with a dotted name",
        ),
        ("inner: {steps: 5}\ninner.steps: 5", "inner.steps in c.yaml is given twice"),
        (
            "inner:\n\tsteps: 5",
            "c.yaml, line 3: not valid YAML: found character '\\t' that cannot start any token; indent",
        ),
        ("---\nflag: true", "c.yaml, line 2: not valid YAML: but found another document; leave only one"),
        ("note: a: b", "c.yaml, line 2: not valid YAML: mapping values are not allowed here; put quotes around"),
        ("note: *a", "c.yaml, line 2: not valid YAML: found undefined alias 'a'; put quotes around"),
        ("note: " + "[" * 3000, "c.yaml is nested too deeply"),
        ("note: 012", "note in c.yaml is 12.0 (float); it needs text or null; put it in quotes"),
        ("inner: {rate: '5e-6'}", 'inner.rate in c.yaml is "5e-6" (str); it needs a number; leave out the quotes'),
        ("inner: {steps: 1e3}", "inner.steps in c.yaml is 1000.0 (float); it needs a whole number; write 1000"),
        ("flag: off", 'flag in c.yaml is "off" (str); it needs true or false; write false'),
        (
            "marks: 100, 200",
            'marks in c.yaml is "100, 200" (str); it needs a list, each item a whole number; write [100, ',
        ),
        (
            "words: a photo, b",
            'words in c.yaml is "a photo, b" (str); it needs a list, each item text; write [a photo, b]',
        ),
    ],
)
def test_a_mistake_in_yaml_is_named_with_its_file_and_key(load, text, message):
    with pytest.raises(UserError) as error:
        load(f"name: n\n{text}\n")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_all_mistakes_of_a_file_or_a_call_are_told(load):
    wrong = {"nmae": "n", "inner": {"step": 5, "steps": "ten"}, "zzz": 1}
    for where, make in (
        ("in c.yaml", lambda: load(yaml.safe_dump(wrong))),
        ("in the call", lambda: make_config(Outer, wrong)),
    ):
        with pytest.raises(UserError) as error:
            make()
        told = [line.partition(f" {where}")[0] for line in str(error.value).splitlines()]
        assert sorted(told) == [
            "inner.steps",
            'unknown option "inner.step"',
            'unknown option "nmae"',
            'unknown option "zzz"',
        ]


def test_a_value_that_no_change_of_its_form_mends_gets_no_advice(load):
    with pytest.raises(UserError) as error:
        load("name: n\ninner: {steps: 'ten'}\n")
    assert str(error.value) == 'inner.steps in c.yaml is "ten" (str); it needs a whole number'


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--inner.steps", "ten"], 'inner.steps on the command line is "ten"; it needs a whole number'),
        (["--inner.steps", "[1"], 'inner.steps on the command line is "[1"; it needs a whole number'),
        (["--inner.steps", "-1"], "inner.steps on the command line is -1; it needs to be at least 1"),
        (["--inner.steps"], "--inner.steps needs a value"),
        (["--note", "two", "words"], "--note takes one value; put quotes around one with spaces"),
        (["--flag=", "x"], '"x" on the command line follows no option'),
        (["stray"], '"stray" on the command line follows no option'),
        (
            ["--inner.stpes", "1"],
            'unknown option "inner.stpes" on the command line; did you mean "inner.steps"?',
        ),
        (["--inner", "1"], "inner on the command line is a group of options"),
        (["--config"], "--config needs the name of one YAML file"),
        (["--config", "a.yaml", "--config=b.yaml"], "--config is given twice"),
        (["--words", "a", "--words=b"], "--words on the command line is given twice; write all items after one"),
        (
            ["--marks", "1,2"],
            "marks on the command line is ['1,2']; it needs a list, each item a whole number; separate",
        ),
        (["--config", "$NOBODY_SET_THIS/c.yaml"], "--config $NOBODY_SET_THIS/c.yaml cannot be read: the environment"),
        ([], "--name must be given, on the command line or in the file of --config"),
    ],
)
def test_a_mistake_on_the_command_line_is_named_with_its_key(argv, message):
    with pytest.raises(UserError) as error:
        load_config(Outer, argv)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"- a\n- b\n", "needs lines of the form"),
        (b"\xff\xfe\x00", "is not a YAML text file"),
        (b"name: " + b"9" * 5000, "is not a YAML text file"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, content, message):
    file = tmp_path / "c.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_config(Outer, ["--config", str(file)])


@pytest.mark.parametrize("text", ["\ufeffname: n\ninner: {steps: 5}", "name: n\r\ninner:\r\n  steps: 5\r\n"])
def test_files_that_windows_programs_wrote_are_read(load, text):
    assert load(text) == Outer(name="n", inner=Inner(steps=5))


@pytest.mark.parametrize("text", ["no", "5e-6", "null", "1_000", "0o7", "a: b # c", "2026-01-02", " ", "é\n%", "1."])
def test_resolved_yaml_reads_back_to_the_same_config(tmp_path, text):
    config = Outer(name=text, words=[text, "x"], marks=[1], inner=Inner(rate=5e-6))
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(Outer, ["--config", str(file)]) == config
    assert yaml.safe_load(to_yaml(config))["name"] == text  # other readers of YAML 1.1 agree


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_an_option_that_is_given_twice_is_told_once_with_the_value_that_counts(capsys, monkeypatch, rank, lines):
    """In one line of one process, also if a launcher started several."""
    launcher = {"WORLD_SIZE": "2", "LOCAL_RANK": rank, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in {"RANK": rank, **launcher}.items():
        monkeypatch.setenv(name, value)
    words = ["--name", "n", "--inner.steps", "5", "--note=a", "--inner.steps=6", "--inner.steps", "7"]
    with messages_on_stderr():
        assert load_config(Outer, words).inner.steps == 7
    said = ["apdm: --inner.steps is given 3 times on the command line: the last one counts, 7"]
    assert capsys.readouterr().err.splitlines() == said * lines


def test_the_hash_changes_with_an_option_and_with_nothing_else():
    one = Outer(name="n")
    assert config_hash(one) == config_hash(load_config(Outer, ["--name", "n"]))
    assert config_hash(one) != config_hash(Outer(name="n", inner=Inner(steps=4)))


@pytest.mark.parametrize("kind", [AuditJobConfig, HardenConfig])
def test_a_run_is_the_same_in_a_folder_that_was_moved_and_another_with_another_option(tmp_path, kind):
    given = {"base": "model", "hardened": "other", "subjects": "people"}
    if kind is HardenConfig:
        given = {"pretrained_model_name_or_path": "model", "dataset_name": "people", "class_dataset_name": "others"}
    one = kind(**given, output_dir="outputs/a")
    moved = replace(one, output_dir="outputs/b")
    (tmp_path / "config.yaml").write_text(to_yaml(one), encoding="utf-8")
    assert has_same_options(tmp_path / "config.yaml", to_yaml(moved))
    assert config_hash(moved) == config_hash(one)
    other = replace(one, seed=1)
    assert not has_same_options(tmp_path / "config.yaml", to_yaml(other))
    assert config_hash(other) != config_hash(one)
    for damaged in ("", "a: [", "- output_dir"):
        (tmp_path / "config.yaml").write_text(damaged, encoding="utf-8")
        assert not has_same_options(tmp_path / "config.yaml", to_yaml(one))


def test_audits_that_a_run_takes_attacks_from_do_not_make_it_another_one():
    one = HardenConfig(pretrained_model_name_or_path="model", instance_data_dir="people", output_dir="out")
    assert config_hash(replace(one, audit=replace(one.audit, reuse_audits=["other"]))) == config_hash(one)
    assert config_hash(replace(one, audit=replace(one.audit, seeds=7))) != config_hash(one)


def test_two_configs_do_not_share_a_default_list():
    one, two = Outer(name="n"), Outer(name="n")
    one.words.append("x")
    assert two.words == ["a b"]


def test_the_help_text_holds_every_option_with_its_default():
    printed = help_text(Outer)
    for line in (
        "--name  text; required",
        "--inner.steps  a whole number, at least 1; default 3",
        '--words  a list, each item text; default ["a b"]',
        "inner: Inner options.",
    ):
        assert line in printed.splitlines()
