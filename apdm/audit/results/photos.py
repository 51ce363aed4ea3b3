"""The content of results.json about protected photos, as dataclasses. An audit of models may have it as a part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from apdm.audit.results.common import (
    Check,
    IdentityByEncoder,
    ModelFile,
    PhotoCounts,
    Prompts,
    SchemaNumber,
    State,
    Status,
    Verdict,
    WorstPerson,
)
from apdm.image_layer.results import Perturbation
from apdm.metrics.judges import JudgesDescription
from apdm.metrics.utility import StrangersLikeness


@dataclass(frozen=True, kw_only=True)
class PhotoThresholds:
    """The thresholds that judge protected photos, as in `Thresholds`."""

    max_match_rate: float
    max_likeness_over_strangers: float


@dataclass(frozen=True, kw_only=True)
class PhotoAttackRow:
    """One attack with the photos of one person, on the base model.

    Attributes:
        photos: whether the attacker has the clean or the protected photos.
        purifier: spec of the purifier that changed the photos first; None: no purifier.
        identity: likeness of all pictures to the person; empty if the attack failed.
        by_prompt: {prompt: likeness of the pictures that were drawn with it}; None in results of older versions. An
            attack that draws captions has one entry, "captions", and no caption is told.
        quality: {name of a quality figure: value}, None if it could not be measured. The whole is None in results of
            older versions.
        scores: {encoder: likeness of each picture, None if it shows no face}, in the order of `by_prompt`, with as many
            pictures for each prompt; None in results of older versions.
    """

    attack: str
    params: dict[str, Any]
    photos: Literal["clean", "protected"]
    purifier: str | None
    subject: str
    seed: int
    identity: IdentityByEncoder
    by_prompt: dict[str, IdentityByEncoder] | None = None
    quality: dict[str, float | None] | None = None
    scores: dict[str, list[float | None]] | None = None
    seconds: float
    status: Status
    error: str | None


@dataclass(frozen=True, kw_only=True)
class PhotoComparison:
    """As `Comparison`, of the clean and the protected photos in place of the base and the hardened model.

    Attributes:
        clean_match_rate, protected_match_rate: mean share of the pictures that match the person.
    """

    clean: float
    protected: float
    clean_interval: list[float] | None
    protected_interval: list[float] | None
    difference: float
    difference_interval: list[float] | None
    worst: WorstPerson
    pairs: int
    clean_match_rate: float
    protected_match_rate: float


@dataclass(frozen=True, kw_only=True)
class PhotoQuality:
    """Mean of one quality figure with clean and with protected photos; None if it was not measured."""

    clean: float | None
    protected: float | None


@dataclass(frozen=True, kw_only=True)
class PhotoOutcome:
    """The result of one attack on protected photos over all people and seeds.

    Attributes:
        purifier: spec of the purifier that changed the protected photos first; None: no purifier.
        state: as in `AttackOutcome`, with clean photos in place of the base.
        cells: number of rows with these protected photos.
        failed: number of rows whose attack failed, with clean or with protected photos.
        void: number of people and seeds for which the attack does not work with clean photos.
        comparison: {encoder: comparison}; empty if there is no pair of rows.
        quality: {name of a quality figure: its means}. "face_rate" is the share of the pictures that show a face.
        unreliable: reasons why the attack proves nothing, one clause each.
    """

    attack: str
    purifier: str | None
    state: State
    cells: int
    failed: int
    void: int
    checks: list[Check]
    comparison: dict[str, PhotoComparison]
    quality: dict[str, PhotoQuality]
    unreliable: list[str]

    @property
    def spec(self) -> str:
        """The attack and the purifier in one text."""
        return self.attack if self.purifier is None else f"{self.attack} after {self.purifier}"


@dataclass(frozen=True, kw_only=True)
class ImageLayer(Perturbation):
    """How the photos were protected, and the attacks with clean and with protected photos.

    Attributes:
        attacks: one row for each attack, person, seed and kind of photos.
        by_attack: the result of each attack; None in results of older versions.
        misled_judges: names of the judging encoders that the zero-shot layer misled. After an attack, their figures may
            only show that they are still misled. None in results of older versions.
    """

    attacks: list[PhotoAttackRow]
    by_attack: list[PhotoOutcome] | None = None
    misled_judges: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class PhotoResults:
    """The content of results.json after an audit of photos alone. Fields of the same name are as in `Results`.

    Attributes:
        kind: that this is an audit of photos.
        models: the attacked model, {"base": its file and hash}.
        subjects: ids of the people whose photos were attacked.
        photos: how many photos were attacked and held out.
        image_layer: how the photos were protected, the rows of the attacks, and the result of each attack.
    """

    schema: SchemaNumber
    kind: Literal["photos"]
    command: str | None
    package: dict[str, str]
    seeds: list[int]
    models: dict[str, ModelFile]
    subjects: list[str]
    photos: PhotoCounts
    judges: JudgesDescription
    strangers: dict[str, StrangersLikeness]
    strangers_matched: dict[str, float]
    prompts: Prompts
    image_layer: ImageLayer
    thresholds: PhotoThresholds
    verdict: Verdict

    @property
    def encoders(self) -> list[str]:
        """The names of the face encoders."""
        return [encoder.name for encoder in self.judges.encoders]
