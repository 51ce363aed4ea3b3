"""An adapter that was trained on one model and is loaded into another: a LoRA file or an embedding from the Hub."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from apdm.attacks import AttackResult, Callback, Evaluate, Material
from apdm.attacks.fine_tuning import FineTuning
from apdm.attacks.parts.latents import encode_again
from apdm.attacks.staged import Staged, check_needs
from apdm.core.errors import UserError
from apdm.families import Family


@dataclass(frozen=True, kw_only=True)
class Transfer(Staged):
    """Train `attack` on the model `trained_on`, then load the adapter into the attacked model without training there.

    If the attacked model is the model `trained_on`, the result is the same as the result of `attack`. So the audit
    always shows the plain attack beside the transferred attack.
    """

    trained_on: Literal["base", "hardened", "sibling"] = "base"

    name: ClassVar[str] = "transfer"

    @property
    def assumes(self) -> str:
        """What the attacker must have, as half a sentence for the report."""
        return f"an adapter that somebody trained on the {self.trained_on} model"

    @property
    def own_needs(self) -> tuple[str, ...]:
        """The keys of `Material.models` that `prepare` reads."""
        return (self.trained_on,)

    def run(
        self,
        model: Family,
        material: Material,
        *,
        eval_steps: Collection[int] = (),
        evaluate: Evaluate | None = None,
        callback: Callback | None = None,
    ) -> AttackResult:
        """Train on the model `trained_on` and evaluate on `model`. `FineTuning.run` explains the arguments.

        Raises:
            UserError: the model `trained_on` was not given, or `attack` trains no adapter.
        """
        check_needs(self, material)
        attack, source = self.attack, material.models[self.trained_on]
        if not isinstance(attack, FineTuning):
            raise UserError(f"{attack.name} cannot be carried to another model; name an attack that trains an adapter")
        trained, loaded = attack.begin(source, material), attack.begin(model, material)
        if not trained.adapter:
            raise UserError(f"{attack.name} trains no adapter that another model could load; use lora, for example")

        @torch.no_grad()
        def load() -> None:
            for own, learned in zip(loaded.adapter, trained.adapter, strict=True):
                own.copy_(learned)

        def evaluate_loaded(step: int, _: Family) -> None:
            load()
            loaded.train(False)
            if evaluate is not None:
                evaluate(step, loaded.model)

        same_vae = source.pipeline.vae is model.pipeline.vae
        material = material if same_vae else encode_again(replace(material, models={}), model, source)
        losses = attack.train(trained, material, eval_steps=eval_steps, evaluate=evaluate_loaded, callback=callback)
        load()
        loaded.train(False)
        loaded.finish()
        return AttackResult(loaded.model, losses)
