"""The configurations of configs/: they are understood, and the same job runs on tiny models of their families."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from tiny_judges import write_dino
from tiny_pipelines import BUILDERS
from tiny_run import weights, write_people

from apdm.cli import main
from apdm.config import AttackConfig, AuditJobConfig, HardenConfig, PerturbConfig, load_config
from apdm.portraits import PIPELINE

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
TINY = {
    "resolution": 16,
    "variant": "null",
    "train_batch_size": 1,
    "mixed_precision": "no",
    "num_class_images": 2,
    "num_inference_steps": 1,
    "max_train_steps": 1,
    "l2p.inner_steps": 1,
    "num_threads": 1,
}
ALONE = {"image_layer.enabled": "false", "audit.enabled": "false"}


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people"))


@pytest.fixture(autouse=True)
def any_precision() -> Iterator[None]:
    """accelerate allows one precision in a process, unless it is told to forget the last one."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def words(config: str, **options: object) -> list[str]:
    given = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    return ["--config", str(ROOT / f"configs/{config}.yaml"), *given]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_configuration_is_understood(file: Path) -> None:
    jobs = {"audit": AuditJobConfig, "attack": AttackConfig, "dladiff": PerturbConfig}
    cls: Any = jobs.get(file.stem.split("-")[0], HardenConfig)
    required = ["--instance_data_dir", "subjects"] if cls in (HardenConfig, PerturbConfig) else []
    config: Any = load_config(cls, ["--config", str(file), *required])
    assert config.output_dir.startswith("outputs/" if "portrait" in file.stem else "checkpoints/")


@pytest.mark.parametrize("name", BUILDERS)
def test_a_dry_run_passes_on_a_tiny_model_of_the_family(
    name: str, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    BUILDERS[name](tmp_path / "make").save_pretrained(tmp_path / "model")
    places = {
        "pretrained_model_name_or_path": tmp_path / "model",
        "instance_data_dir": people / "protected",
        "output_dir": tmp_path / "out",
    }
    assert main(["harden", *words(name, **places, **TINY, **ALONE), "--dry_run"]) == 0
    said = capsys.readouterr().err
    assert "activations estimated" in said and "for hardening" in said
    assert not (tmp_path / "out").exists()
    if name == "sd15":
        assert main(["harden", *words(name, **places, **TINY, **ALONE)]) == 0
        assert weights(tmp_path / "out")


def test_the_commands_of_the_page_on_stable_diffusion_pass_their_dry_run(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # configurations are named by paths from the root
    text = (ROOT / "docs/stable-diffusion.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith(("apdm harden", "apdm perturb"))]
    assert len(commands) == 3
    common = {
        "pretrained_model_name_or_path": PIPELINE,
        "instance_data_dir": people / "protected",
        "output_dir": tmp_path / "out",
        "instance_prompt": "a photo of t@t person",
        "class_prompt": "a photo of a person",
        "resolution": 64,
        "num_class_images": 2,
    }
    changes = [word for key, value in common.items() for word in (f"--{key}", str(value))]
    networks = {"dino:facebook/dinov2-small": f"dino:{write_dino(tmp_path / 'dino')}"}  # what the page downloads
    for _, command, *given in commands:
        given = [networks.get(word, word) for word in given]
        # The bundled networks judge the bundled world.
        start = given.index("--faces")
        end = next(i for i in range(start + 1, len(given)) if given[i].startswith("--"))
        words = [*given[:start], *given[end:], *changes, "--dry_run"]
        assert main([command, *words]) == 0
    said = capsys.readouterr().err
    assert "faces seen" in said and "audit memory" in said and "photo memory" in said
    assert not (tmp_path / "out").exists()
