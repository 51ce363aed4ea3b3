"""Presets: defaults that anything given overrides, said once, and kept with the run."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path

import pytest
from tiny_run import arguments, equal, weights, write_people

from apdm.cli import main
from apdm.config import HardenConfig, load_config, to_yaml
from apdm.config.groups.presets import MEMORY_PRESETS, preset_report

REQUIRED = ["--pretrained_model_name_or_path=m", "--instance_data_dir=i", "--output_dir=o"]


@pytest.mark.parametrize("name", MEMORY_PRESETS)
def test_a_preset_sets_its_options_and_no_others(name):
    config = load_config(HardenConfig, [*REQUIRED, "--preset", name])
    assert {option: attrgetter(option)(config) for option in MEMORY_PRESETS[name]} == MEMORY_PRESETS[name]
    undone = [f"--{o}={str(attrgetter(o)(load_config(HardenConfig, REQUIRED))).lower()}" for o in MEMORY_PRESETS[name]]
    plain = load_config(HardenConfig, [*REQUIRED, "--preset", name, *undone, "--preset", "null"])
    assert plain == load_config(HardenConfig, REQUIRED)


def test_the_command_line_and_the_file_win_over_a_preset(tmp_path: Path):
    file = tmp_path / "c.yaml"
    file.write_text("preset: 24gb\nmixed_precision: 'no'\nl2p: {inner_steps: 7}\n")
    config = load_config(HardenConfig, ["--config", str(file), *REQUIRED, "--memory.offload", "false"])
    assert config.mixed_precision == "no" and config.l2p.inner_steps == 7 and not config.memory.offload
    assert config.memory.reference_dtype == "bfloat16" and config.gradient_checkpointing
    said = preset_report(config)
    assert said.startswith("preset 24gb: gradient_checkpointing true, memory.reference_dtype bfloat16")
    assert said.endswith("; as given: mixed_precision no, memory.offload false")


def test_what_a_preset_set_stands_in_the_written_configuration(tmp_path: Path):
    config = load_config(HardenConfig, [*REQUIRED, "--preset", "48gb", "--mixed_precision", "no"])
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert load_config(HardenConfig, ["--config", str(file)]) == config
    assert "offload: true" in file.read_text() and "preset: 48gb" in file.read_text()


def test_a_run_with_a_preset_says_so_once_and_resumes_with_the_options_alone(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    people = write_people(tmp_path / "people")

    def run(output: Path, **changes: object) -> int:
        # accelerate keeps a process's first mixed precision for good.
        options = {"mixed_precision": "no", **changes}
        return main(["harden", *arguments(tiny_pipeline, people, output, **options)])

    assert run(tmp_path / "straight", preset="80gb", max_train_steps=4) == 0
    said = "apdm: preset 80gb: gradient_checkpointing true, memory.reference_dtype bfloat16, memory.offload true"
    assert capsys.readouterr().err.count(f"{said}; as given: mixed_precision no\n") == 1
    assert run(tmp_path / "run", preset="80gb", max_train_steps=2) == 0
    outright = {
        option: str(value).lower() for option, value in MEMORY_PRESETS["80gb"].items() if option != "mixed_precision"
    }
    assert run(tmp_path / "run", max_train_steps=4, resume_from_checkpoint="latest", **outright) == 0
    assert equal(weights(tmp_path / "straight"), weights(tmp_path / "run"))
    assert run(tmp_path / "run", max_train_steps=5, resume_from_checkpoint="latest") == 2
