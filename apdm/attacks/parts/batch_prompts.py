"""The prompts of the pictures that an attack trains on in each step: one for all photos, or a caption for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from apdm.attacks import Material
from apdm.attacks.parts.attacked_model import AttackedModel
from apdm.attacks.parts.batches import Batch
from apdm.core.devices import send

if TYPE_CHECKING:
    from apdm.attacks.fine_tuning import FineTuning

DROPPED = 1  # number of the stream of random numbers that drops captions


class BatchPrompts:
    """Encodes the prompt of each picture of a batch. Prompts are encoded once unless text encoders are trained.

    Args:
        attack: says whether there are captions and class pictures, and how many pictures get the empty prompt.
        attacked: the model in training.
        material: the captions.

    Raises:
        ValueError: the attack trains on captions, and the material does not have one for each photo.
    """

    def __init__(self, attack: FineTuning, attacked: AttackedModel, material: Material) -> None:
        learnt = _learnt(attack, material)
        self._class_prompt = [attack.class_prompt] * bool(attack.prior_loss_weight)
        self.texts = [*learnt, *self._class_prompt, *[""] * bool(attack.caption_dropout)]
        self.model, self.trained, self.dropout = attacked.model, attacked.trains_text, attack.caption_dropout
        self._learnt = len(learnt)
        (seed,) = np.random.SeedSequence((attack.seed, DROPPED)).generate_state(1).tolist()
        self._generator = torch.Generator().manual_seed(seed)
        self._encoded: Tensor | None = None

    def __call__(self, batch: Batch) -> Tensor:
        """Return the prompt of each picture, `[B, L, D]`, with gradients if text encoders are trained."""
        rows = self._rows(batch)
        if self.trained and self._learnt > 1:  # of many captions only those of the batch
            used, rows = rows.unique(return_inverse=True)
            encoded = self._encode([self.texts[row] for row in used.tolist()])
            return encoded[send(rows, encoded.device)]
        if self._encoded is None or self.trained:
            self._encoded = self._encode(self.texts)
        if self._learnt == 1 and not self.dropout:
            return self._encoded.repeat_interleave(len(rows) // len(self._encoded), dim=0)
        return self._encoded[send(rows, self._encoded.device)]

    def _rows(self, batch: Batch) -> Tensor:
        """The number of each picture's prompt among the texts, `[B]`. Class pictures are the second half of a batch."""
        photos = batch.numbers[: len(batch.numbers) // (1 + len(self._class_prompt))]
        own = photos if self._learnt > 1 else torch.zeros_like(photos)
        rows = torch.cat([own, torch.full((len(batch.numbers) - len(own),), self._learnt)])
        if not self.dropout:
            return rows
        dropped = torch.rand(len(rows), generator=self._generator) < self.dropout
        return rows.where(~dropped, len(self.texts) - 1)

    def _encode(self, texts: Sequence[str]) -> Tensor:
        with torch.set_grad_enabled(self.trained):
            return self.model.encode_prompts(texts).float()


def _learnt(attack: FineTuning, material: Material) -> list[str]:
    """The prompt of each photo, as the attacker writes it; without captions the instance prompt alone."""
    if attack.caption_column is None:
        return [attack.instance_prompt]
    captions = material.captions.get(attack.caption_column, ())
    if len(captions) != len(material.instance):
        raise ValueError(
            f"{len(material.instance)} photos have {len(captions)} captions in the column {attack.caption_column}; "
            "give one for each photo"
        )
    return [attack.prompt(caption) for caption in captions]
