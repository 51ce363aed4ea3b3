"""Checkpoints: `checkpoint-<step>/`, safetensors and one JSON file, written beside and renamed.

At the end of an outer step theta, its AdamW, the attackers of a pool, a few counters and the state of the random
generator are the whole of a run. Texts of the configuration, which may name people, are kept as hashes; photos and
prompts are in none of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from apdm.core.errors import UserError
from apdm.core.files import delete, list_files, sha256_file, write_beside
from apdm.core.logging import get_logger

logger = get_logger(__name__)

FORMAT = 3
FACTS = "checkpoint.json"
LATEST = "latest"

# Options that may differ on resuming. Those of the first kind change nothing that is trained; those of the second
# change where a run goes from here on, its rounding, or what is made of its result, and are told of. All others are
# refused; what lies in the folders of model and photos is compared apart.
FREE = (
    *("overwrite_output_dir", "resume_from_checkpoint", "preset", "checkpointing_steps", "checkpoints_total_limit"),
    *("report_to", "logging_dir", "gradient_checkpointing"),
)
TOLD = (
    *("output_dir", "class_data_dir", "seed", "num_threads", "max_train_steps", "gradient_accumulation_steps"),
    *("mixed_precision", "memory.offload", "save_variant", "single_file"),
    *("pretrained_model_name_or_path", "reference_model_name_or_path"),
    *("instance_data_dir", "pool.benign_data_dir", "rehearsal_data_dir"),
)
TOLD_GROUPS = ("audit.", "validation.", "image_layer.")


class Section(NamedTuple):
    """One file of a checkpoint. keys: of its tensors, where they are not the model's parameters."""

    name: str
    tensors: list[Tensor]
    keys: Sequence[str] | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder and what its JSON file says."""

    folder: Path
    facts: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.facts["step"])

    @staticmethod
    def open(path: str | Path) -> Checkpoint:
        """Read and verify a checkpoint, every byte of it. Raises UserError if it is none or has been damaged."""
        folder, advice = Path(path), "choose an earlier one with --resume_from_checkpoint PATH"
        try:
            facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
            known = facts["format"] == FORMAT and isinstance(facts["step"], int)
            files: Mapping[str, str] = facts["files"]
        except OSError as error:
            raise UserError(f"{folder} is no checkpoint ({FACTS}: {error.strerror}); {advice}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{folder / FACTS} is damaged or not from this program; {advice}") from None
        if not known:
            raise UserError(f"{folder} has format {facts['format']}, this version reads {FORMAT}; {advice}")
        for name, digest in files.items():
            file = folder / name
            if not file.is_file() or sha256_file(file) != digest:
                raise UserError(f"{file} is missing or damaged; {advice}")
        return Checkpoint(folder, facts)

    def read(self, name: str, keys: Sequence[str] | None = None) -> list[Tensor]:
        """One section's tensors, in the order of its keys or the model's parameters, on the CPU."""
        file = self.folder / f"{name}.safetensors"
        try:
            with safe_open(file, framework="pt") as tensors:
                return [tensors.get_tensor(key) for key in keys or self.facts["parameters"]]
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file} does not fit this model: {error}; resume with the same model") from None


def find(output: Path, wanted: str | None) -> Checkpoint | None:
    """The checkpoint that `--resume_from_checkpoint` names; `latest` may find none. Raises UserError for a bad one."""
    if wanted is None:
        return None
    if wanted != LATEST:
        return Checkpoint.open(wanted)
    folders = _folders(output)
    return Checkpoint.open(folders[-1]) if folders else None


def write(
    output: Path,
    facts: Mapping[str, Any],
    parameters: Sequence[str],
    sections: Iterable[Section],
    *,
    main: bool = True,
    limit: int | None = None,
) -> None:
    """Write `output/checkpoint-<facts["step"]>/`; once it is complete, older ones beyond `limit` go, and later ones,
    which are of a course that was left for an earlier checkpoint.

    Every process must call it, to take part in the gathering that `sections` does on its way; `main` writes.
    Raises UserError, on the main process, if the disk does not take it; earlier checkpoints stay.
    """
    if not main:
        for _ in sections:
            pass
        return
    sections = iter(sections)
    target = output / f"checkpoint-{facts['step']:06d}"
    try:
        with write_beside(target, folder=True) as partial:
            for section in sections:
                keys = section.keys or parameters
                named = {key: t.contiguous() for key, t in zip(keys, section.tensors, strict=True)}
                save_file(named, partial / f"{section.name}.safetensors")
            files = {path.name: sha256_file(path) for path in list_files(partial)}
            text = {"format": FORMAT, **facts, "parameters": list(parameters), "files": files}
            (partial / FACTS).write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
        folders = _folders(output)
        now = folders.index(target)
        for folder in [*folders[now + 1 :], *folders[: max(0, now + 1 - limit) if limit else 0]]:
            _remove(folder)
    except (OSError, SafetensorError) as error:
        for _ in sections:  # the others are still gathering
            pass
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{target} cannot be written: {reason}; make room and go on from the last checkpoint") from None


def is_checkpoint(name: str) -> bool:
    """Whether a folder of this name in an output folder is a checkpoint's."""
    return re.fullmatch(r"checkpoint-\d+", name) is not None


def discard(output: Path) -> None:
    """Delete all checkpoints: a run that starts anew must not be resumed from another's."""
    for folder in _folders(output):
        _remove(folder)


def fingerprint(config: Any) -> dict[str, Any]:
    """Every option by its dotted name, texts as hashes."""
    return dict(_leaves(dataclasses.asdict(config)))


def check(checkpoint: Checkpoint, facts: Mapping[str, Any], config: Any) -> None:
    """Raise UserError unless a run with this model, photos and options may go on from `checkpoint`."""
    names = {
        "base": "another base model",
        "start": "another model to begin with",
        "photos": "other protected photos",
        "consenting": "other consenting people",
        "earlier": "other people of an earlier hardening",
    }
    for name, what in names.items():
        if checkpoint.facts.get(name) != facts[name]:
            raise UserError(f"{checkpoint.folder} was made with {what}; resume with the same or start anew")
    if checkpoint.step > config.max_train_steps:
        raise UserError(
            f"{checkpoint.folder} is past max_train_steps {config.max_train_steps}; raise it or choose an earlier one"
        )
    compare(checkpoint.facts["config"], fingerprint(config), tell=logger.warning)


def compare(saved: Mapping[str, Any], ours: Mapping[str, Any], *, tell: Callable[[str], None]) -> None:
    """Refuse to resume where options differ that decide what is trained; tell of others that matter.

    Raises UserError, naming every option that forbids it.
    """
    differing = [name for name in sorted({*saved, *ours}) if saved.get(name) != ours.get(name) and name not in FREE]
    refused = [name for name in differing if name not in TOLD and not name.startswith(TOLD_GROUPS)]
    if refused:
        listed = ", ".join(_shown(name, saved.get(name), ours.get(name)) for name in refused)
        raise UserError(f"the checkpoint was made with other options: {listed}; restore them or start anew")
    for name in differing:
        tell(f"resuming with another {_shown(name, saved.get(name), ours.get(name))}")


def _remove(folder: Path) -> None:
    """Delete a checkpoint so that none is ever seen half deleted: renamed first, to what `files.recover` clears."""
    stage = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    os.replace(folder, stage)
    delete(stage)


def _shown(name: str, saved: Any, ours: Any) -> str:
    if any(isinstance(value, str) for value in (saved, ours)):
        return name
    return f"{name} ({json.dumps(saved)} then, {json.dumps(ours)} now)"


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            hidden = isinstance(value, str | list)
            yield prefix + key, hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16] if hidden else value


def _folders(output: Path) -> list[Path]:
    """Checkpoints in the order of their steps."""
    if not output.is_dir():
        return []
    found = [entry for entry in output.iterdir() if is_checkpoint(entry.name)]
    return sorted(found, key=lambda entry: int(entry.name.partition("-")[2]))
