"""The parts of results.json that an audit of models and an audit of photos have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from apdm.metrics.identity import IdentityStatistics

SchemaNumber = Literal[2]
(SCHEMA,) = get_args(SchemaNumber)

IdentityByEncoder = dict[str, IdentityStatistics]  # {encoder: likeness}
Status = Literal["ok", "failed"]
State = Literal["protected", "not protected", "unreliable", "void"]
HeldOutFrom = Literal["originals", "folder"]


@dataclass(frozen=True, kw_only=True)
class WorstPerson:
    """The protected person with the highest mean likeness on the hardened model, and this likeness."""

    subject: str
    likeness: float


@dataclass(frozen=True, kw_only=True)
class Check:
    """One condition of the verdict.

    Attributes:
        value: the measured value; None if it could not be measured or did not have to be measured.
        limit: the threshold.
        passed: whether the check passed. It is False if the value had to be measured and could not be. It is None if
            no measurement was asked for; then the check does not count.
        detail: the result in one sentence.
    """

    name: str
    value: float | None
    limit: float
    passed: bool | None
    detail: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the subjects are protected.

    Attributes:
        reasons: the checks that failed or, if none failed, the checks that passed; one sentence each.
        unreliable: reasons why no protection can be claimed, one clause each.
        notes: remarks that the reader needs and that no check covers, one sentence each.
        checks: for each check of an attack the worst result over the required attacks, then the checks of the audit.
    """

    protected: bool
    reasons: list[str]
    unreliable: list[str]
    notes: list[str]
    checks: list[Check]


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """Where an audited model was read from, and the sha256 of its weights."""

    path: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The prompts of the nominal attack. An attack with another identifier writes its own in place of this one.

    Attributes:
        instance_prompt: the prompt that the attack learns a person with.
        class_prompt: the prompt of the class.
        asked: the prompts that the attacker's pictures are drawn with.
    """

    instance_prompt: str
    class_prompt: str
    asked: list[str]


@dataclass(frozen=True, kw_only=True)
class PhotoCounts:
    """How many photos of each person were used, {person: number}.

    Attributes:
        attacked: photos that the attacker trains on.
        held_out: photos that define likeness.
        held_out_from: "originals" if the last third of each person's originals was held out, "folder" if a folder of
            hold-out photos was given.
        left_out: whether the hardened model says that its hardening left out the last third of each person's photos.
    """

    attacked: dict[str, int]
    held_out: dict[str, int]
    held_out_from: HeldOutFrom
    left_out: bool = False
