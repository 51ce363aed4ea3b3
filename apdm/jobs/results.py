"""What each job returns to Python code that called it.

Nothing here imports torch, so that `apdm.HardenResult` and the others cost nothing to name in annotations.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apdm.audit.results import Results, Verdict
    from apdm.image_layer.results import Perturbation


@dataclass(frozen=True, kw_only=True)
class HardenResult:
    """A finished hardening run.

    Attributes:
        output_dir: the run's folder, with the manifest and the resolved configuration.
        model_dir: the hardened pipeline folder; diffusers loads it like the original.
        steps: outer steps that the weights have behind them. A run that was resumed counts those of the earlier run.
        image_dir: the protected photos, one folder per subject; None unless `image_layer.enabled` is true.
        results: the content of results.json; None unless `audit.enabled` is true, and in all processes of a distributed
            run but the main one.
    """

    output_dir: Path
    model_dir: Path
    steps: int
    image_dir: Path | None = None
    results: Results | None = None

    @property
    def protected(self) -> bool | None:
        """What the audit's verdict says; None where no audit was made."""
        return None if self.results is None else self.results.verdict.protected


@dataclass(frozen=True, kw_only=True)
class PerturbResult:
    """Protected photos.

    Attributes:
        output_dir: the run's folder, with the manifest and the resolved configuration.
        image_dir: the protected photos, one folder per subject, with the names of the originals.
        figures: the content of perturbation.json: how visible each photo's change is, and each face encoder's cosine to
            the original. `figures.most_visible` is the photo that was changed most. None in all processes of a
            distributed run but the main one.
    """

    output_dir: Path
    image_dir: Path
    figures: Perturbation | None = None


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """A finished audit.

    Attributes:
        output_dir: the audit's folder, with results.json and report.html.
        verdict: whether the subjects are protected (`protected`), and why (`reasons`, `unreliable`, `notes`, `checks`);
            the same in every process of a distributed run.
        results: the content of results.json; None in all processes of a distributed run but the main one.
    """

    output_dir: Path
    verdict: Verdict
    results: Results | None = None

    @property
    def protected(self) -> bool:
        """Whether the audit shows protection. False also means that it could not show it."""
        return self.verdict.protected


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """What is wrong with a folder that a run wrote.

    Attributes:
        output_dir: the folder.
        problems: one sentence for each problem; empty if all is well.
    """

    output_dir: Path
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems
