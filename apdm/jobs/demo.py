"""`apdm demo`: the main job on the miniature world, with everything that it needs from the package itself.

It draws the people, and runs `apdm harden` on them in two processes. This process is the first of the two and starts
the other one, so that nobody has to know a launcher.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from apdm.config import DemoConfig, HardenConfig, make_config
from apdm.config.yaml_text import read_yaml
from apdm.core.cpus import available_cpus
from apdm.core.errors import UserError
from apdm.core.files import MARKER, check_output_dir, list_files, write_beside
from apdm.core.launcher import is_launched, launched_as
from apdm.core.logging import get_logger
from apdm.data.photo_files import is_litter
from apdm.export.layout import CONFIG
from apdm.jobs.common.first_checks import has_only_begun
from apdm.portraits import ADAPTER, DEMO, PIPELINE
from apdm.portraits.subjects import subject_files, write_subjects

logger = get_logger(__name__)

GRACE = 20.0  # seconds until this process stops, if the other one has failed and nothing was heard of it
# {size: options that differ from demo.yaml}. `full` is demo.yaml as it is.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "short": {
        "validation.probe_steps": 0,
        # Beyond the nominal 700 steps, as far as the demo's model takes to the likeness of the base.
        "audit.max_train_steps": 900,
        "audit.eval_steps": [100, 300, 500],
        "audit.other_data_dir": None,
        "audit.photo_training": False,
    },
    "full": {},
    "long": {"max_train_steps": 460, "validation.steps": 460},
    "tiny": {
        "max_train_steps": 2,
        "train_batch_size": 2,
        "num_class_images": 4,
        "num_inference_steps": 2,
        "pool.stride": 1,
        "pool.size": 1,
        "pool.benign_size": 1,
        "validation.steps": 2,
        "validation.probe_steps": 0,
        "validation.num_images": 2,
        "validation.num_inference_steps": 2,
        "image_layer.dladiff.static_steps": 1,
        "image_layer.dladiff.rounds": 1,
        "image_layer.dladiff.attention_steps": 1,
        "image_layer.dladiff.conditional_steps": 1,
        "image_layer.dladiff.surrogate_steps": 1,
        "image_layer.zero_shot.max_steps": 2,
        "audit.max_train_steps": 4,
        "audit.nominal_step": 2,
        "audit.eval_steps": [1],
        "audit.num_images": 2,
        "audit.num_inference_steps": 2,
        "audit.num_class_images": 4,
        "audit.other_data_dir": None,
        "audit.photo_training": False,
    },
}


def next_step() -> list[str]:
    """Return the command that does the same to Stable Diffusion 1.5."""
    model = "--config configs/sd15.yaml"
    if not Path("configs/sd15.yaml").exists():  # without the repository
        model = "--pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5"
    return [
        f"for Stable Diffusion 1.5: apdm harden {model} \\",
        "    --preset 24gb --faces FACE_PACK --image_layer.method none --instance_data_dir PHOTOS --output_dir out",
    ]


def subjects_dir(config: DemoConfig) -> Path:
    """Return the folder of the drawn people."""
    output = Path(config.output_dir)
    return output.with_name(f"{output.name}-subjects")


def prepare(config: DemoConfig) -> None:
    """Draw the people. Only the process that a user started does so.

    Raises:
        UserError: the output folder cannot be used, or the demo would replace what it did not make.
    """
    if is_launched():
        return
    output, people = Path(config.output_dir), subjects_dir(config)
    check_output_dir(output, overwrite=True)
    _require_demo(output, people)
    _require_drawn(people)
    with write_beside(people, folder=True) as partial:
        write_subjects(partial)


def _require_demo(output: Path, people: Path) -> None:
    """Raise UserError if an output folder holds the run of another command, whose result a demo would replace."""
    if not (output / MARKER).is_file() or has_only_begun(output):
        return
    made_of = None
    with suppress(UserError):  # a damaged configuration says nothing
        made_of = read_yaml(str(output / CONFIG)).get("instance_data_dir")
    if not isinstance(made_of, str) or Path(made_of).parent.name != people.name:
        raise UserError(f"{output} holds a run that is no demo, which would be replaced: choose another output_dir")


def _require_drawn(people: Path) -> None:
    """Raise UserError if the folder for the drawn people holds anything that the demo does not draw."""
    if people.exists() and not people.is_dir():
        raise UserError(
            f"{people} is a file, and the demo draws its people there: move it, or choose another output_dir"
        )
    drawn = subject_files()
    for file in list_files(people):
        name = file.relative_to(people)
        if name.as_posix() not in drawn and not any(map(is_litter, name.parts)):
            raise UserError(
                f"{file} is nothing that the demo draws, and it draws its people in {people}: move the folder, or "
                "choose another output_dir"
            )


def harden_config(config: DemoConfig) -> HardenConfig:
    """Return the options of the hardening run."""
    people = subjects_dir(config)
    options: dict[str, Any] = {
        "pretrained_model_name_or_path": PIPELINE,
        "instance_data_dir": people / "protected",
        "pool.benign_data_dir": people / "consenting",
        "audit.attack_data_dir": people / "attacker",
        "audit.other_data_dir": people / "other",
        "audit.holdout_data_dir": people / "holdout",
        "audit.strangers_data_dir": people / "strangers",
        "audit.faceid_adapter": ADAPTER,
        "output_dir": config.output_dir,
        "overwrite_output_dir": config.resume_from_checkpoint is None,
        "resume_from_checkpoint": config.resume_from_checkpoint,
    }
    return make_config(HardenConfig, {**options, **SIZES[config.size]}, file=DEMO)


@contextmanager
def other_process(config: DemoConfig, argv: Sequence[str]) -> Iterator[None]:
    """Run the other process of the demo while the block runs. It runs the same command.

    Nothing happens if a launcher started this process, or if there is to be only one.
    """
    size = config.num_processes or min(2, available_cpus())
    if is_launched() or size == 1:
        yield
        return
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "ACCELERATE_USE_CPU": "true",
    }
    words = [sys.executable, "-m", "apdm", "demo", *argv]
    other = subprocess.Popen(words, env={**os.environ, **shared, "RANK": "1", "LOCAL_RANK": "1"})
    over = threading.Event()
    threading.Thread(target=_watch, args=(other, over), daemon=True).start()
    try:
        with launched_as({**shared, "RANK": "0", "LOCAL_RANK": "0"}):
            yield
        over.set()
        other.wait(timeout=GRACE)
    except subprocess.TimeoutExpired:
        logger.warning("the other process of the demo does not end, and is stopped")
    finally:
        over.set()
        if other.poll() is None:
            other.terminate()


def _watch(other: subprocess.Popen[bytes], over: threading.Event) -> None:
    """Stop this process if the other one has failed; it may wait for the other one's work."""
    if other.wait() != 0 and not over.wait(GRACE):
        logger.error("the other process of the demo has ended with exit code %d", other.returncode)
        os.kill(os.getpid(), signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
