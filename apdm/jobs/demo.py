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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apdm.config import DemoConfig, HardenConfig, make_config
from apdm.core.cpus import available_cpus
from apdm.core.launcher import is_launched, launched_as
from apdm.core.logging import get_logger
from apdm.portraits import ADAPTER, DEMO, PIPELINE
from apdm.portraits.subjects import write_subjects

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
    """Draw the people. Only the process that a user started does so."""
    if not is_launched():
        write_subjects(subjects_dir(config))


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
