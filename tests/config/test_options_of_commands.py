"""The options of the commands: their help, their limits, the shipped files, and names of older versions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from apdm.config import AttackConfig, AuditConfig, AuditJobConfig, HardenConfig, load_config
from apdm.config.filling import command_line
from apdm.config.help import COMMANDS, brief, common_options, help_text, short_help
from apdm.config.options import option, options_by_path
from apdm.config.reference import options_page
from apdm.core.errors import UserError

ROOT = Path(__file__).parents[2]
REQUIRED = ["--pretrained_model_name_or_path=m", "--instance_data_dir=i", "--output_dir=o"]


def test_every_option_of_harden_is_explained():
    lines = help_text(HardenConfig).splitlines()
    options = [index for index, line in enumerate(lines) if line.startswith("--")]
    assert len(options) > 60
    assert all(lines[index + 1].startswith("    ") for index in options)


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_config_loads(file):
    alone = {"audit": AuditJobConfig, "attack": AttackConfig}.get(file.stem.split("-")[0])
    if alone is not None:
        load_config(alone, ["--config", str(file)])
        return
    load_config(HardenConfig, ["--config", str(file), "--instance_data_dir", "i", "--output_dir", "o"])


def test_sd15_config_is_the_defaults_for_the_whole_job_with_an_audit_that_is_long_enough_to_be_passed():
    file = ROOT / "configs" / "sd15.yaml"
    longer = ["--audit.nominal_step", "800", "--audit.max_train_steps", "4000"]
    loaded = load_config(HardenConfig, ["--config", str(file), *REQUIRED])
    whole = [
        "--image_layer.enabled",
        "--image_layer.batch_size",
        "2",
        "--audit.enabled",
        "--audit.gradient_checkpointing",
    ]
    assert loaded == load_config(HardenConfig, [*REQUIRED, *longer, *whole, "--audit.seeds", "3"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--resolution", "100"], "a multiple of 8"),
        (["--seed", "-1"], "at least 0"),
        (["--adam_beta1", "1"], "less than 1"),
        (["--audit.max_match_rate", "2"], "at most 1"),
        (["--audit.eval_steps", "5", "900"], "audit.eval_steps holds 900, past the attack's end"),
        (["--validation.probe_steps", "5"], "validation.steps is 0"),
        (["--validation.stop_when_protected"], "needs validation.probe_steps"),
    ],
)
def test_values_that_make_no_sense_are_refused(argv, message):
    with pytest.raises(UserError, match=message):
        load_config(HardenConfig, [*REQUIRED, *argv])


def test_likeness_is_always_measured_at_the_attacks_last_step():
    assert AuditConfig(max_train_steps=9, eval_steps=[6, 3, 9]).measured_steps == [3, 6, 9]
    assert AuditConfig(max_train_steps=1).measured_steps == [1]


def test_likeness_is_measured_where_the_cost_factor_needs_it():
    """By default at quarters and multiples of the nominal step, and always at the one that the verdict asks for."""
    long = AuditConfig(max_train_steps=4000, nominal_step=800)
    assert long.measured_steps == [200, 400, 600, 1000, 1200, 1600, 2000, 2400, 3200, 4000]
    assert AuditConfig(max_train_steps=800).measured_steps == [200, 400, 600, 800]
    asked = AuditConfig(max_train_steps=4000, nominal_step=800, eval_steps=[900], min_cost_factor=2.5)
    assert asked.measured_steps == [900, 2000, 4000]


def test_a_command_is_told_without_the_machines_paths():
    words = [
        "--config",
        "configs/a.yaml",
        "--instance_data_dir",
        "/home/somebody/faces",
        "--output_dir=~/out/run",
        "--class_data_dir",
        "$HOME/out/class",
        "1/2",
        "/home/somebody/encoder.pt=0.255",
        "/home/somebody/mine.py:Mine:steps=5,rate=1/2",
        "--image_layer.method=/home/somebody/mine.py:Mine:steps=5",
        "--audit.judge",
        "dino:/home/somebody/dino",
        "clip:openai/clip",
        "--image_layer.method=aspl:rounds=2,clean_data_dir=~/photos/clean",
        "--dataset_subjects",
        "Anna Maier",
        "Bert",
        "--dataset_subjects=Anna Maier",
        "--seed",
        "1",
    ]
    shown = (
        "apdm harden --config configs/a.yaml --instance_data_dir faces --output_dir=run --class_data_dir class 1/2 "
        "encoder.pt=0.255 mine.py:Mine:steps=5,rate=1/2 --image_layer.method=mine.py:Mine:steps=5 "
        "--audit.judge dino:dino clip:openai/clip --image_layer.method=aspl:rounds=2,clean_data_dir=clean "
        "--dataset_subjects ... --dataset_subjects=... --seed 1"
    )
    assert command_line("harden", words) == shown
    assert command_line("audit", ["--prompts", "a sks"]) == "apdm audit --prompts 'a sks'"  # as a shell takes it


@pytest.mark.parametrize(
    ("kind", "argv", "message"),
    [
        (
            AuditJobConfig,
            ["--max_fid_ratio", "3"],
            'there is no option "max_fid_ratio" any more (on the command line); write max_class_distance',
        ),
        (
            HardenConfig,
            ["--audit.max_fid_ratio", "3"],
            'there is no option "audit.max_fid_ratio" any more (on the command line); write audit.max_class_distance',
        ),
        (
            AuditJobConfig,
            ["--dino_dir", "x"],
            'there is no option "dino_dir" any more (on the command line); write judge with dino:PATH',
        ),
        (
            HardenConfig,
            ["--audit.clip_dir", "x"],
            'there is no option "audit.clip_dir" any more (on the command line); write audit.judge with clip:PATH',
        ),
        (HardenConfig, ["--max_fid_ratio", "3"], 'unknown option "max_fid_ratio" on the command line; '),
    ],
)
def test_the_message_about_an_option_of_older_versions_says_what_to_write(kind, argv, message):
    with pytest.raises(UserError) as error:
        load_config(kind, argv)
    assert str(error.value).startswith(message)


def test_the_options_page_of_the_documents_is_up_to_date():
    page = ROOT / "docs/reference/options.md"
    mend = "run: python -m apdm.config.reference docs/reference/options.md"
    assert page.read_text(encoding="utf-8") == options_page(), mend
    assert max(map(len, options_page().splitlines())) <= 120


def test_a_heading_that_the_short_help_does_not_have_is_refused():
    with pytest.raises(TypeError, match="no such heading: \\['toys'\\]"):
        option(1, "Help.", common={"harden": "toys"})


def test_every_common_option_is_shown_once_with_its_default():
    for command in ("harden", "perturb", "audit"):
        known = options_by_path(COMMANDS[command])
        common = [option.path for options in common_options(command).values() for option in options]
        assert sorted(common) == sorted(path for path, found in known.items() if found.heading(command))
        assert {path for path, found in known.items() if found.required} <= set(common)
        lines = {line.split()[0]: line for line in short_help(command).splitlines() if line.startswith("  --")}
        assert list(lines) == [f"--{path}" for path in common]
        assert all(re.search(r"\w.* \[[^]]+\]$", line) for line in lines.values())
    assert "[no; or fp16, bf16]" in short_help("harden") and "[required]" in short_help("audit")


def test_a_command_to_which_an_option_is_common_exists():
    for name, cls in COMMANDS.items():
        for path, found in options_by_path(cls).items():
            common = found.field.metadata["common"]
            assert common is None or isinstance(common, str) or common.keys() <= COMMANDS.keys(), (name, path)


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("One, two. Three.", 20, "One, two"),
        ("One: two, three.", 8, "One"),
        ("One, two, three: four.", 12, "One, two"),
        ("One two (three).", 12, "One two"),
        ("A folder <id>/*.jpg of 0.5. More.", 40, "A folder <id>/*.jpg of 0.5"),
        ("One two three four", 14, "One two ..."),
    ],
)
def test_the_short_help_shows_the_first_sentence_or_as_much_as_fits(text, width, shown):
    assert brief(text, width) == shown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained_in_whole_sentences(command):
    for path, found in options_by_path(COMMANDS[command]).items():
        assert found.help.endswith("."), path
