"""Adapters that travel: a LoRA or a token trained on one model, and loaded on another."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from apdm.attacks import Attacked, Callback, Evaluate, Material
from apdm.attacks.fine_tuning import FineTuning
from apdm.attacks.parts import encoded_anew
from apdm.attacks.staged import Staged, check_needs
from apdm.core.errors import UserError
from apdm.families import Family


@dataclass(frozen=True, kw_only=True)
class Transfer(Staged):
    """What `attack` learns on the model `trained_on`, loaded on the model that is attacked, which nobody trained.

    On `trained_on` itself it is `attack`: so one of the audit's arms is always the plain attack.
    """

    trained_on: Literal["base", "hardened", "sibling"] = "base"

    name: ClassVar[str] = "transfer"

    @property
    def assumes(self) -> str:
        return f"an adapter that somebody trained on the {self.trained_on} model"

    @property
    def own_needs(self) -> tuple[str, ...]:
        return (self.trained_on,)

    def prepare(self, model: Family, material: Material) -> tuple[Family, Material]:
        return model, material

    def run(
        self,
        model: Family,
        material: Material,
        *,
        eval_steps: Collection[int] = (),
        evaluate: Evaluate | None = None,
        callback: Callback | None = None,
    ) -> Attacked:
        """Train on the one and evaluate on the other. Raises UserError for an attack that leaves no adapter behind."""
        check_needs(self, material)
        attack, source = self.attack, material.models[self.trained_on]
        if not isinstance(attack, FineTuning):
            raise UserError(f"{attack.name} cannot be carried to another model: name an attack that trains an adapter")
        there, here = attack.begin(source, material), attack.begin(model, material)
        if not there.adapter:
            raise UserError(f"{attack.name} trains no adapter that could be loaded elsewhere: use lora, for instance")

        @torch.no_grad()
        def load() -> None:
            for own, learnt in zip(here.adapter, there.adapter, strict=True):
                own.copy_(learnt)

        def evaluate_here(step: int, _: Family) -> None:
            load()
            here.train(False)
            if evaluate is not None:
                evaluate(step, here.model)

        same_vae = source.pipeline.vae is model.pipeline.vae
        material = material if same_vae else encoded_anew(replace(material, models={}), model, source)
        losses = attack.train(there, material, eval_steps=eval_steps, evaluate=evaluate_here, callback=callback)
        load()
        here.train(False)
        return Attacked(here.model, losses)
