"""Attacks without training in the form of attacks that take no step, so that one model is attacked with them too."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from apdm.attacks import AttackResult, Callback, Evaluate, Material, ZeroShot
from apdm.attacks.editing import Editing
from apdm.attacks.faceid import FaceIDAdapter
from apdm.config.prompts import without_identifier
from apdm.core.errors import UserError
from apdm.core.pictures import to_unit
from apdm.data.edit_prompts import Edit
from apdm.families import Family


@dataclass(frozen=True, kw_only=True)
class Untrained:
    """Edit the photos, or draw from one of them with an adapter, whenever the attacked model is asked to draw.

    Attributes:
        zero_shot: the attack without training; None for the adapter, which is among the material.
        adapter: the adapter's options as they stand in the results.
        instance_prompt, class_prompt: the audit's prompts. Prompts are drawn without the rare word.
        seed: the adapter gets the photo of this number, counted round.
    """

    zero_shot: ZeroShot | None
    instance_prompt: str
    class_prompt: str
    seed: int = 0
    adapter: Mapping[str, object] = field(default_factory=dict)

    needs: ClassVar[tuple[str, ...]] = ()
    max_train_steps: ClassVar[int] = 0
    preparing_samples: ClassVar[int] = 0

    @property
    def name(self) -> str:
        """The name of the attack without training."""
        return FaceIDAdapter.name if self.zero_shot is None else self.zero_shot.name

    @property
    def assumes(self) -> str:
        """What the attacker must have, as half a sentence for the report."""
        return FaceIDAdapter.assumes if self.zero_shot is None else self.zero_shot.assumes

    def params(self) -> dict[str, object]:
        """The options as they stand in the results."""
        return dict(self.adapter) if self.zero_shot is None else self.zero_shot.params()

    def prompt(self, asked: str) -> str:
        """Write a prompt without the rare word, which nobody has learnt."""
        return without_identifier(asked, self.instance_prompt, self.class_prompt)

    @property
    def edits_photos(self) -> bool:
        """Whether picture i is made from photo i modulo N."""
        return isinstance(self.zero_shot, Editing)

    def check_fits(self, model: Family) -> None:
        """Check that the attack fits a model, but not the adapter. Raises UserError if it does not."""
        check = getattr(self.zero_shot, "check", None)
        if check is not None:
            check(model)

    def check_steps(self, num_inference_steps: int) -> None:
        """Check that an attack that edits photos does something in so many steps. Raises UserError if it does not."""
        if isinstance(self.zero_shot, Editing):
            self.zero_shot.check_steps(num_inference_steps)

    def run(
        self,
        model: Family,
        material: Material,
        *,
        eval_steps: Collection[int] = (),
        evaluate: Evaluate | None = None,
        callback: Callback | None = None,
    ) -> AttackResult:
        """Return a model that draws from the photos. `FineTuning.run` explains the arguments.

        Raises:
            UserError: there are no photos, or no adapter.
        """
        attack = self.zero_shot or material.adapter
        if material.photos is None or attack is None:
            raise UserError(f"{self.name} needs photos" + (", and faceid_adapter" if self.zero_shot is None else ""))
        photos = to_unit(material.photos)
        drawn: Any = model.replace()

        def sample(prompts: Sequence[str], *, seed: int | Sequence[int], **options: Any) -> Tensor:
            seeds = list(range(seed, seed + len(prompts))) if isinstance(seed, int) else list(seed)
            if self.zero_shot is None:
                one = self.seed % len(photos)
                return attack.draw(model, photos[one : one + 1], prompts, seed=seeds, **options)
            if material.edits is None:
                return attack.draw(model, photos, prompts, seed=seeds, **options)
            return draw_edits(attack, model, photos, material.edits, seeds, **options)

        drawn.sample = sample
        if evaluate is not None and 0 in eval_steps:
            evaluate(0, drawn)
        return AttackResult(drawn, [])


def draw_edits(
    attack: ZeroShot, model: Family, photos: Tensor, edits: Sequence[Edit], seeds: Sequence[int], **options: Any
) -> Tensor:
    """Edit photo i modulo N by its own prompt, once for each of B seeds.

    Args:
        attack: the attack. If it has an option `source_prompt` and an edit says what the photo shows, it is told so.
        model: the model that draws.
        photos: `[N, 3, H, W]` in [0, 1].
        seeds: B seeds.
        options: as in `Family.sample`.

    Returns:
        Pictures `[B, 3, H, W]` in [0, 1].
    """
    pictures: dict[int, Tensor] = {}
    for number, (photo, edit) in enumerate(zip(photos, edits, strict=True)):
        places = list(range(number, len(seeds), len(photos)))
        if places:
            told = _told(attack, edit.source)
            chosen = [seeds[place] for place in places]
            drawn = told.draw(model, photo[None], [edit.prompt] * len(places), seed=chosen, **options)
            pictures |= dict(zip(places, drawn, strict=True))
    return torch.stack([pictures[place] for place in range(len(seeds))])


def _told(attack: Any, source: str) -> Any:
    known = {one.name for one in fields(attack)}
    return replace(attack, source_prompt=source) if source and "source_prompt" in known else attack
