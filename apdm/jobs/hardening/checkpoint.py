"""Checkpoints of a hardening run: folders `checkpoint-<step>/` with safetensors files and one JSON file.

Between two outer steps, the state of a run is theta, its AdamW moments, the attackers of a pool, a few counters and the
state of the random generator. A checkpoint holds all of this. It is either complete or absent, never half written. It
holds no photos and no prompts. Texts of the configuration may name people, so only their hashes are stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from apdm.config import HardenConfig
from apdm.config.continuation import CONTINUATION_OPTIONS
from apdm.config.options import options_by_path
from apdm.core.errors import UserError
from apdm.core.files import CHECKPOINT, delete, list_files, sha256_file, write_beside
from apdm.core.logging import get_logger
from apdm.core.signals import how_to_go_on, is_part_of_command

logger = get_logger(__name__)

FORMAT = 4
FACTS = "checkpoint.json"
LATEST = "latest"

# Options that may differ when a run is resumed, because they change nothing that is trained.
IGNORED_OPTIONS = (
    *CONTINUATION_OPTIONS,
    *("preset", "checkpointing_steps", "checkpoints_total_limit", "dry_run", "gradient_checkpointing", "cuda_graphs"),
)
# Options that may differ too, but the user is told. They change how the run continues, how numbers are rounded, or what
# is done with the result. Folders of models and photos are listed here because `check` compares their content.
# If any other option differs, the run is not resumed.
REPORTED_OPTIONS = (
    *("output_dir", "class_data_dir", "seed", "num_threads", "max_train_steps", "gradient_accumulation_steps"),
    *("mixed_precision", "channels_last", "memory.offload", "save_variant", "save_dtype", "single_file", "faces"),
    *("pretrained_model_name_or_path", "reference_model_name_or_path"),
    *("instance_data_dir", "pool.benign_data_dir", "rehearsal_data_dir", "dataset_name", "class_dataset_name"),
    "dataset_subjects",
)
COUNTED = ("photos", "consenting", "earlier")  # facts of a checkpoint that are {id of a person: number of photos}
REPORTED_GROUPS = ("audit.", "validation.", "image_layer.")


class Section(NamedTuple):
    """One safetensors file of a checkpoint.

    Attributes:
        name: the file's name without its suffix.
        tensors: the tensors in the file.
        keys: the names of the tensors in the file; None means the names of the model's parameters.
    """

    name: str
    tensors: list[Tensor]
    keys: Sequence[str] | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        folder: the checkpoint's folder.
        facts: the content of the JSON file: step, counters, state of the random generator, hashes of the files.
    """

    folder: Path
    facts: dict[str, Any]

    @property
    def step(self) -> int:
        """The outer step after which the checkpoint was written."""
        return int(self.facts["step"])

    @staticmethod
    def open(path: str | Path) -> Checkpoint:
        """Read a checkpoint and compare all its files with their hashes.

        Raises:
            UserError: the folder is not a checkpoint, is damaged, or was written by a version with another format.
        """
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
        """Return the tensors of one section, on the CPU.

        Args:
            name: the section's name.
            keys: names of the wanted tensors, in the wanted order; None means the names of the model's parameters.

        Raises:
            UserError: the file does not have these tensors, because it was written for another model.
        """
        file = self.folder / f"{name}.safetensors"
        try:
            with safe_open(file, framework="pt") as tensors:
                return [tensors.get_tensor(key) for key in keys or self.facts["parameters"]]
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file} does not fit this model: {error}; resume with the same model") from None


def find(output: Path, wanted: str | None) -> Checkpoint | None:
    """Return the checkpoint to resume from.

    Args:
        wanted: the option `resume_from_checkpoint`: a checkpoint's folder, also as a name in `output`; "latest"; or
            None to start a new run.

    Returns:
        The checkpoint; None if `wanted` is None, or if it is "latest" and there is no checkpoint.

    Raises:
        UserError: the checkpoint is damaged, or there is no such folder, or it is not a checkpoint.
    """
    if wanted is None:
        return None
    folders = find_all(output)
    if wanted == LATEST:
        return Checkpoint.open(folders[-1]) if folders else None
    places = [Path(wanted), output / wanted]
    if step := re.fullmatch(r"checkpoint-(\d+)/*", wanted):
        places.append(folder_of(output, int(step[1])))
    for folder in places:
        if folder.is_dir():
            if inner := find_all(folder):
                raise UserError(f"{folder} is the folder of a run; give one of its checkpoints, such as {inner[-1]}")
            return Checkpoint.open(folder)
    held = ", ".join(folder.name for folder in folders) or "no checkpoints"
    raise UserError(
        f"resume_from_checkpoint {wanted} is no folder, neither here nor in {output}, which holds {held}; "
        "give one of these, or latest"
    )


def how_to_go_on_from(folder: Path, output: Path) -> str:
    """Say how a run goes on from a checkpoint that a full disk has sent to another place than its output folder.

    A command that runs jobs, such as `apdm reproduce`, looks for their checkpoints in their output folders alone.
    """
    if is_part_of_command():
        return f"move {folder} into {output}; {how_to_go_on()}"
    return f"--resume_from_checkpoint {shlex.quote(str(folder))} goes on"


def folder_of(output: Path, step: int) -> Path:
    """Return the folder in `output` of the checkpoint of a step."""
    return output / f"checkpoint-{step:06d}"


def find_all(output: Path) -> list[Path]:
    """Return the folders of the checkpoints in `output`, sorted by step."""
    if not output.is_dir():
        return []
    return sorted((entry for entry in output.iterdir() if is_checkpoint(entry.name)), key=step_of)


def step_of(folder: Path) -> int:
    """Return the step that stands in the name of a checkpoint's folder."""
    return int(folder.name.partition("-")[2])


def write(
    output: Path,
    facts: Mapping[str, Any],
    parameters: Sequence[str],
    sections: Iterable[Section],
    *,
    main: bool = True,
    limit: int | None = None,
) -> None:
    """Write the checkpoint of one step, and then delete checkpoints that are no longer needed.

    If there are more than `limit` checkpoints, the oldest are deleted. Checkpoints of later steps are deleted too. They
    exist if the run was resumed from an earlier checkpoint, and they do not belong to the present training.

    Every process of a run must call this, because producing `sections` gathers sharded tensors from all processes.

    Args:
        facts: the content of the JSON file; it must have the key "step".
        parameters: names of the model's parameters.
        sections: the files to write. They are produced one after the other, so that only one is in memory.
        main: whether this is the main process, which writes the files.
        limit: how many checkpoints to keep; None keeps all.

    Raises:
        CannotWrite: in the main process, if the disk takes no more. Earlier checkpoints are kept.
    """
    if not main:
        for _ in sections:
            pass
        return
    sections = iter(sections)
    target = folder_of(output, facts["step"])
    try:
        with write_beside(target, folder=True) as partial:
            for section in sections:
                keys = section.keys or parameters
                named = {key: t.contiguous() for key, t in zip(keys, section.tensors, strict=True)}
                save_file(named, partial / f"{section.name}.safetensors")
            files = {path.name: sha256_file(path) for path in list_files(partial)}
            text = {"format": FORMAT, **facts, "parameters": list(parameters), "files": files}
            (partial / FACTS).write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
        folders = find_all(output)
        now = folders.index(target)
        for folder in [*folders[now + 1 :], *folders[: max(0, now + 1 - limit) if limit else 0]]:
            _remove(folder)
    except Exception:
        for _ in sections:  # the other processes go on gathering tensors, and need this process for it
            pass
        raise


def smallest_size(parameters: int, *, average: bool) -> int:
    """Return a lower bound of the bytes of a checkpoint: theta, its two AdamW moments and its running average."""
    return 4 * parameters * (4 if average else 3)


def is_checkpoint(name: str) -> bool:
    """Whether `name` is the name of a checkpoint's folder, such as "checkpoint-000100"."""
    return re.fullmatch(CHECKPOINT, name) is not None


def discard(output: Path) -> None:
    """Delete all checkpoints in an output folder, so that a new run is never resumed from checkpoints of an old one."""
    for folder in find_all(output):
        _remove(folder)


def fingerprint(config: HardenConfig) -> dict[str, Any]:
    """Return {dotted name: value} of all options, with texts and lists replaced by hashes."""
    return {path: _hidden(attrgetter(path)(config)) for path in options_by_path(HardenConfig)}


def default_fingerprint() -> dict[str, Any]:
    """Return the `fingerprint` of all defaults: what a checkpoint of a version without these options was made with."""
    options = options_by_path(HardenConfig).items()
    return {path: _hidden(json.loads(option.default)) for path, option in options if not option.required}


def check(checkpoint: Checkpoint, facts: Mapping[str, Any], config: HardenConfig) -> None:
    """Check that a run may go on from a checkpoint.

    Args:
        facts: hashes of the models and numbers of photos of this run: "base", "start", "photos", "consenting" and
            "earlier"; "configurations", hashes of those of the models; "code", the hash of an objective of the user's
            own; "safe", the people with safe partners; "pixels", hashes of what is learnt of each person; and "class",
            hashes of the class pictures of the user's own.

    Raises:
        UserError: the checkpoint was made with another model, other photos or other options, or its step is above
            `max_train_steps`.
    """
    compared = {
        "base": "another base model",
        "start": "another model to begin with",
        "photos": "other protected photos",
        "consenting": "other consenting people",
        "earlier": "other people of an earlier hardening",
        "safe": "safe partners of other people",
    }
    for name, what in compared.items():
        if checkpoint.facts.get(name) != facts[name]:
            how = f" ({_people_in_words(checkpoint.facts.get(name), facts[name])})" if name in COUNTED else ""
            hint = "; an audit and probes hold out the last third" if name == "photos" else ""
            raise UserError(f"{checkpoint.folder} was made with {what}{how}{hint}; resume with the same or start anew")
    ours = facts.get("configurations")
    if checkpoint.facts.get("configurations", ours) != ours:
        raise UserError(
            f"{checkpoint.folder} was made with another configuration of the model, such as its scheduler's; restore "
            "it or start anew"
        )
    if checkpoint.step > config.max_train_steps:
        raise UserError(
            f"{checkpoint.folder} is past max_train_steps {config.max_train_steps}; raise it or choose an earlier one"
        )
    saved, pixels = checkpoint.facts.get("pixels", {}), facts.get("pixels", {})
    begun, then = "that the run was begun with", f"from step {checkpoint.step + 1} on it goes on with what is new"
    if checkpoint.step == config.max_train_steps:
        then = "all steps are done, so the model has learned nothing from what is new"
    if changed := [one.partition("/")[2] for one in pixels if saved.get(one, pixels[one]) != pixels[one]]:
        logger.warning("photos, partners or captions of %s are not those %s; %s", ", ".join(changed), begun, then)
    if checkpoint.facts.get("code", facts.get("code")) != facts.get("code"):
        logger.warning("the objective's file was changed since the run was begun; %s", then)
    if checkpoint.facts.get("class", facts["class"]) != facts["class"]:
        logger.warning("the class pictures are not those %s; %s", begun, then)
    for line in compare({**default_fingerprint(), **checkpoint.facts["config"]}, fingerprint(config)):
        logger.warning("%s", line)


def _people_in_words(saved: Mapping[str, int] | None, ours: Mapping[str, int]) -> str:
    """How the people of a run, {id: number of photos}, differ from those of its checkpoint."""
    saved = saved or {}
    words = [f"{one} is not there now" for one in saved if one not in ours]
    words += [f"{one} is new" for one in ours if one not in saved]
    both = [one for one in ours if one in saved and saved[one] != ours[one]]
    words += [f"{one} had {saved[one]} photos to learn and has {ours[one]} now" for one in both]
    return ", ".join(words[:3]) + " and more" * (len(words) > 3)


def compare(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Compare the options of a checkpoint with those of this run.

    Args:
        saved: the checkpoint's options, as `fingerprint` returns them.
        ours: the options of this run, as `fingerprint` returns them.

    Returns:
        One line for every option of `REPORTED_OPTIONS` or `REPORTED_GROUPS` that differs.

    Raises:
        UserError: an option differs that changes what is trained. The message names all such options.
    """
    differing = [
        name for name in sorted({*saved, *ours}) if saved.get(name) != ours.get(name) and name not in IGNORED_OPTIONS
    ]
    refused = [name for name in differing if name not in REPORTED_OPTIONS and not name.startswith(REPORTED_GROUPS)]
    if refused:
        listed = ", ".join(_shown(name, saved.get(name), ours.get(name)) for name in refused)
        raise UserError(f"the checkpoint was made with other options: {listed}; restore them or start anew")
    return [f"resuming with another {_shown(name, saved.get(name), ours.get(name))}" for name in differing]


def _remove(folder: Path) -> None:
    """Delete a checkpoint. If the process is killed meanwhile, no half-deleted checkpoint remains.

    The folder is first renamed. `apdm.core.files.recover` deletes folders with such a name.
    """
    stage = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    os.replace(folder, stage)
    delete(stage)


def _shown(name: str, saved: Any, ours: Any) -> str:
    """Return one difference in words. Texts are stored as hashes, so of a text only the option's name is shown."""
    if any(isinstance(value, str) for value in (saved, ours)):
        return name
    return f"{name} ({json.dumps(saved)} then, {json.dumps(ours)} now)"


def _hidden(value: Any) -> Any:
    """A value of an option; of a text or a list, only its hash."""
    if isinstance(value, str | list):
        return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
    return value
