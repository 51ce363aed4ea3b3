"""The plan of an audit: the models, the people, the attacks and the judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from apdm.attacks.faceid import FaceIDAdapter
from apdm.audit.inputs.attack_factory import AttackFactory
from apdm.audit.inputs.people import AuditSubjects
from apdm.audit.inputs.search_space import SearchOptions
from apdm.audit.inputs.suites import NOMINAL, Entry, available_entries
from apdm.audit.results.common import SCHEMA, ModelFile, Prompts
from apdm.audit.results.models import LeftOut, Thresholds
from apdm.audit.results.store import tensor_hash
from apdm.config import AuditOptions
from apdm.config.prompts import default_audit_prompts
from apdm.core.errors import UserError
from apdm.core.versions import package_versions
from apdm.data.edit_prompts import Edit
from apdm.families import Family
from apdm.families.configuration import configuration_hash
from apdm.metrics.judges import Judges

ONLY_NOMINAL = (replace(NOMINAL, placebo=False),)  # the attacks of a hardening job's audit
SAMPLE_BATCH_SIZE = 16  # pictures at once, where nothing else is asked for
MAX_BUDGETS = 4  # columns of the table of operators and budgets, besides the nominal attack
ATTACK_NOISE, CLASS_NOISE, SECOND_CLASS_NOISE = range(3)  # each kind of pictures has random numbers of its own
CELL_FORMAT = 3  # version of the cells in the store; cells of another version are run again


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How the attacker's pictures are drawn: `num_images` for each of `prompts`, `batch_size` at once."""

    prompts: Sequence[str]
    num_images: int
    num_inference_steps: int
    guidance_scale: float
    batch_size: int

    @property
    def number(self) -> int:
        """How many pictures are drawn at one step with one seed."""
        return len(self.prompts) * self.num_images

    def options(self, like: Tensor) -> dict[str, Any]:
        """How `Family.sample` draws pictures of the height and width of the photos `like`."""
        return {
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "height": like.shape[-2],
            "width": like.shape[-1],
            "batch_size": self.batch_size,
        }

    def draw(self, family: Family, prompts: Sequence[str], seed: int, stream: int, *, like: Tensor) -> Tensor:
        """Draw one picture for each of N prompts, which need not be those of this object.

        The noise of picture i depends only on `seed`, `stream` and i. So two models start picture i from the same
        noise.

        Args:
            prompts: N prompts.
            stream: number of the stream of noise, such as ATTACK_NOISE.
            like: photos whose height and width the pictures get.

        Returns:
            Pictures [N, 3, H, W] in [0, 1].
        """
        return family.sample(
            prompts,
            seed=np.random.SeedSequence((seed, stream)).generate_state(len(prompts)).tolist(),
            **self.options(like),
        )

    @staticmethod
    def of(options: AuditOptions, instance_prompt: str, *, batch_size: int = SAMPLE_BATCH_SIZE) -> Drawing:
        """Take the values from the options of an audit. Without prompts there, they follow from the instance prompt.

        `batch_size` is how many pictures are drawn at once.
        """
        return Drawing(
            prompts=options.prompts or default_audit_prompts(instance_prompt),
            num_images=options.num_images,
            num_inference_steps=options.num_inference_steps,
            guidance_scale=options.guidance_scale,
            batch_size=batch_size,
        )


@dataclass(frozen=True, kw_only=True)
class AuditPlan:
    """Everything that determines an audit. What follows from the attributes are properties.

    Attributes:
        options: the options of the audit: numbers of steps, pictures and seeds, the nominal attack, the thresholds.
        instance_prompt: the prompt that attacks learn a person with, such as "a photo of sks person".
        class_prompt: the prompt of the class, such as "a photo of person".
        models: {name: model}: "base" and "hardened", and optionally "placebo" (hardened against other people),
            "sibling" and "hardened_sibling" (some attacks need them). They are only read; attacks train copies.
        subjects: the people, with their photos.
        judges: the networks that look at the pictures.
        seed: seed of the first repeat.
        batch_size: how many pictures are drawn or encoded at once.
        entries: the attacks, and on whom each is run. By default the nominal attack alone.
        files: {model: its file and hash}; empty if they are not known.
        command: the command line, for the results.
        search: an attacker's own search; None for no search.
        guidance: whether to try what the models draw before any attack, at several guidance scales.
        class_images: how the attacker's class pictures for prior preservation were drawn; empty if it is not known.
        adapter: the adapter that attacks without training draw with; None if there is none.
        edits: {person: what is asked of each photo}, for attacks that edit photos; empty for the prompts of `drawing`.

    Raises:
        UserError: there is nobody to protect, or two people have the same id.
    """

    options: AuditOptions
    instance_prompt: str
    class_prompt: str
    models: Mapping[str, Family]
    subjects: AuditSubjects
    judges: Judges
    seed: int = 0
    batch_size: int = SAMPLE_BATCH_SIZE
    entries: Sequence[Entry] = ONLY_NOMINAL
    files: Mapping[str, ModelFile] = field(default_factory=dict)
    command: str | None = None
    search: SearchOptions | None = None
    guidance: bool = False
    class_images: Mapping[str, Any] = field(default_factory=dict)
    adapter: FaceIDAdapter | None = None
    edits: Mapping[str, Sequence[Edit]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.subjects.protected:
            raise UserError("there is nobody to audit: give at least one protected subject")
        ids = sorted(person.id for person in [*self.subjects.protected, *self.subjects.others])
        if twice := [a for a, b in zip(ids, ids[1:], strict=False) if a == b]:
            raise UserError(f'two people have the id "{twice[0]}": rename one folder')

    @cached_property
    def factory(self) -> AttackFactory:
        """Makes the attacks from their specs."""
        return AttackFactory(self.options, self.instance_prompt, self.class_prompt)

    @cached_property
    def configurations(self) -> dict[str, str]:
        """{model: a hash of the configurations of its parts}."""
        return {name: configuration_hash(model) for name, model in self.models.items()}

    @cached_property
    def drawing(self) -> Drawing:
        """How the attacker's pictures are drawn."""
        return Drawing.of(self.options, self.instance_prompt, batch_size=self.batch_size)

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds of the verdict's checks."""
        return Thresholds(**{each.name: getattr(self.options, each.name) for each in fields(Thresholds)})

    @property
    def prompts(self) -> Prompts:
        """What the nominal attack learns, and what the audit then asks for."""
        return Prompts(
            instance_prompt=self.instance_prompt,
            class_prompt=self.class_prompt,
            asked=list(self.drawing.prompts),
        )

    @property
    def attacked(self) -> list[str]:
        """The names of the attacked models: "base", "hardened" and, if it is given, "placebo"."""
        return [name for name in ("base", "hardened", "placebo") if name in self.models]

    @property
    def repeats(self) -> int:
        """The number of seeds."""
        return self.options.seeds

    @property
    def seeds(self) -> list[int]:
        """The seeds of all repeats."""
        return list(range(self.seed, self.seed + self.repeats))

    @property
    def budgets(self) -> list[int]:
        """The budgets of the table of operators, in steps of the nominal attack: at most MAX_BUDGETS measured steps."""
        nominal = self.factory.nominal_step
        steps = sorted({nominal, *(step for step in self.options.measured_steps if step > 0)})
        if len(steps) <= MAX_BUDGETS:
            return steps
        places = {round(i * (len(steps) - 1) / (MAX_BUDGETS - 1)) for i in range(MAX_BUDGETS)}
        return sorted({nominal, *(steps[place] for place in places)})

    @property
    def adapter_hash(self) -> str | None:
        """The sha256 of the adapter's files, in hex; None without an adapter."""
        return None if self.adapter is None else self.adapter.file_hash()

    def sha256(self, model: str) -> str | None:
        """The sha256 of a model's weights; None if it is not known."""
        return self.files[model].sha256 if model in self.files else None

    def facts_of(self, model: str) -> list[str | None]:
        """What decides what a model does: the hashes of its weights and of its configurations, as far as known."""
        return [self.sha256(model), self.configurations.get(model)]

    def available(self) -> tuple[list[Entry], list[LeftOut]]:
        """The attacks that can be run with these models and people, and those that are left out."""
        return available_entries(self.entries, self.models, self.factory, self.models["base"], self.subjects)

    def common_facts(self) -> dict[str, Any]:
        """The facts that influence every cell. If one of them changes, all cells are run again."""
        drawing = self.drawing
        return {
            "schema": SCHEMA,
            "cells": CELL_FORMAT,
            "package": package_versions(),
            "judges": _without_answers(asdict(self.judges.describe())),
            "drawing": [drawing.prompts, drawing.num_images, drawing.num_inference_steps, drawing.guidance_scale],
            "class": [self.class_prompt, self.options.num_class_images, self.seed],
            "class_images": dict(self.class_images),
            "base": self.facts_of("base"),
            "models": {name: self.facts_of(name) for name in self.models if name not in ("hardened", "placebo")},
            "consenting": tensor_hash(self.subjects.consenting),
        }


def _without_answers(judges: dict[str, Any]) -> dict[str, Any]:
    """A description of judges without the encoders' answers, which differ in the last digits between machines."""
    return judges | {"encoders": [{**encoder, "answer": None} for encoder in judges["encoders"]]}
