"""The results that each job returns to the Python code that called it.

This file does not import torch, so a program can use `apdm.HardenResult` in annotations without loading torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from apdm.audit.results.common import Verdict
    from apdm.audit.results.models import Results
    from apdm.audit.results.one_model import AttackResults
    from apdm.audit.results.photos import PhotoResults
    from apdm.audit.tables import Table
    from apdm.image_layer.results import Perturbation

# Fields with so much in them that `repr` leaves them out.
LONG = ("results", "verdict", "figures", "table")


class JobResult:
    """What results of jobs have in common: a `repr` that fits into a notebook."""

    also_shown: ClassVar[tuple[str, ...]] = ()  # properties

    def __repr__(self) -> str:
        names = [field.name for field in fields(self) if field.name not in LONG]  # type: ignore[arg-type]
        shown = [f"{name}={getattr(self, name)!r}" for name in (*names, *self.also_shown)]
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, kw_only=True, repr=False)
class HardenResult(JobResult):
    """A finished hardening run.

    Attributes:
        output_dir: the run's folder, with the manifest and the resolved configuration.
        model_dir: the hardened pipeline folder; diffusers loads it like the original.
        steps: number of outer steps that the weights were trained for. In a resumed run, earlier steps count too.
        seconds: time of the training; None in a resumed run, which does not know how long the earlier steps took.
        peak_memory_bytes: the largest memory of this process up to the end of the training: of the accelerator if it
            works on one, else of the CPU; None if the accelerator does not say.
        moved: share of the denoiser's weights that differ from the base's in `model_dir`, where they may be rounded to
            half precision. None in all processes of a distributed run but the main one.
        image_dir: the protected photos, one folder per subject; None unless `image_layer.enabled` is true.
        results: the content of results.json; None unless `audit.enabled` is true, and in all processes of a distributed
            run but the main one.
        pushed: the model's address on the Hugging Face Hub; None unless `push_to_hub` is true, and in all processes of
            a distributed run but the main one.
    """

    output_dir: Path
    model_dir: Path
    steps: int
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    moved: float | None = None
    image_dir: Path | None = None
    results: Results | None = None
    pushed: str | None = None

    also_shown: ClassVar[tuple[str, ...]] = ("protected",)

    @property
    def protected(self) -> bool | None:
        """Whether the audit shows protection; None if `results` is None."""
        return None if self.results is None else self.results.verdict.protected


@dataclass(frozen=True, kw_only=True, repr=False)
class PerturbResult(JobResult):
    """Protected photos.

    Attributes:
        output_dir: the run's folder, with the manifest and the resolved configuration.
        image_dir: the protected photos, one folder per subject, with the names of the originals.
        figures: the content of perturbation.json: for each photo, how visible the change is, and the cosine between
            protected photo and original by each face encoder. `figures.most_visible` is the photo that was changed
            most. None in all processes of a distributed run but the main one.
    """

    output_dir: Path
    image_dir: Path
    figures: Perturbation | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class AuditResult(JobResult):
    """A finished audit.

    Attributes:
        output_dir: the audit's folder, with results.json and report.html.
        verdict: whether the subjects are protected (`protected`), and why (`reasons`, `unreliable`, `notes`, `checks`);
            the same in every process of a distributed run.
        results: the content of results.json, which has another type after an audit of photos alone; None in all
            processes of a distributed run but the main one.
    """

    output_dir: Path
    verdict: Verdict
    results: Results | PhotoResults | None = None

    also_shown: ClassVar[tuple[str, ...]] = ("protected",)

    @property
    def protected(self) -> bool:
        """Whether the audit shows protection. It is also False if the audit is too weak to show protection."""
        return self.verdict.protected


@dataclass(frozen=True, kw_only=True, repr=False)
class AttackResult(JobResult):
    """What attacks made of one model.

    Attributes:
        output_dir: the folder, with attack.json, report.html, likeness.svg and pictures/<attack>/<person>/: after.png,
            and course.png, in which each line starts from one noise and each column is a measured step.
        results: the content of attack.json: for each attack and person a row with its likeness curve; None in all
            processes of a distributed run but the main one.
        models_dir: the attacked models, as pipeline folders <attack>/<person>/; None unless `save_model` is true.
    """

    output_dir: Path
    results: AttackResults | None = None
    models_dir: Path | None = None

    also_shown: ClassVar[tuple[str, ...]] = ("failed",)

    @property
    def failed(self) -> list[str]:
        """One sentence for each attack that failed."""
        rows = [] if self.results is None else self.results.attacks
        return [f"{row.spec} on {row.subject} failed: {row.error}" for row in rows if row.error is not None]


@dataclass(frozen=True, kw_only=True, repr=False)
class PushResult(JobResult):
    """What `apdm push` sent.

    Attributes:
        output_dir: the folder of the run.
        repository: the repository on the Hub, OWNER/NAME; NAME alone after a dry run that could not ask for the owner.
        address: where the model is now; None after a dry run.
        files: the names of the files in the repository.
    """

    output_dir: Path
    repository: str
    address: str | None
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class ReproduceResult(JobResult):
    """A table of a paper, made again.

    Attributes:
        output_dir: the folder, with table.json, table.md and table.html.
        table: the content of table.json: ours beside the published figures, and what differs; None in all processes of
            a distributed run but the main one.
    """

    output_dir: Path
    table: Table | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class VerifyResult(JobResult):
    """The problems that `apdm verify` found in the folder of a run.

    Attributes:
        output_dir: the folder.
        problems: one sentence for each problem; empty if there is none.
        files: how many files of the folder were looked at.
        ids: how many ids of subjects were looked for.
        photos: how many photos of subjects were looked for.
        with_model: whether the folder holds a model, which was loaded.
    """

    output_dir: Path
    problems: tuple[str, ...]
    files: int = 0
    ids: int = 0
    photos: int = 0
    with_model: bool = True

    also_shown: ClassVar[tuple[str, ...]] = ("ok",)

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems
