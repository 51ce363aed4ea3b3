"""Custom Diffusion (Kumari et al. 2023): keys and values of cross-attention, and the embedding of a new word."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

from apdm.attacks import VARIES, Material
from apdm.attacks.fine_tuning import FineTuning, Victim
from apdm.attacks.parts import with_denoiser
from apdm.attacks.tokens import call, learn_words
from apdm.families import Family


@dataclass(frozen=True, kw_only=True)
class CustomDiffusion(FineTuning):
    """`modifier_token` stands for the identifier in all prompts, and starts as `initializer_token`.

    Defaults and names are diffusers': 1e-5 times the batch of 2 (scale_lr), 250 steps, prior 1. initializer_token: None
    for the identifier that it replaces, a rare token in the paper too; if that is several tokens, the class noun. All
    tokens' keys and values get gradients (the release stops those of the first one).
    """

    learning_rate: float = 1e-5
    max_train_steps: int = 250
    train_batch_size: int = 2
    modifier_token: str = "<new1>"
    initializer_token: str | None = None
    scale_lr: bool = True

    name: ClassVar[str] = "custom_diffusion"
    assumes: ClassVar[str] = "the weights, photos and a small GPU"
    varies: ClassVar[tuple[str, ...]] = tuple(name for name in VARIES if name != "identifier")  # its token is its own

    def __post_init__(self) -> None:
        call(self, self.modifier_token, 1)

    def begin(self, model: Family, material: Material) -> Victim:
        start = self.initializer_token or self._rare_token(model)
        denoiser = copy.deepcopy(model.denoiser).requires_grad_(False)
        tokens = learn_words(with_denoiser(model, denoiser), self.modifier_token, 1, start)
        weights = [p for name, p in denoiser.named_parameters() if name.endswith(model.keys_and_values)]
        return Victim(
            tokens.model,
            (denoiser, tokens.model.pipeline.text_encoder),
            [*(p.requires_grad_(True) for p in weights), tokens.embedding],
            trains_text=True,
            after_step=tokens.put_back,
        )

    def rate(self, step: int) -> float:
        return self.learning_rate * (self.train_batch_size if self.scale_lr else 1)

    def _rare_token(self, model: Family) -> str:
        asked = self.renamed[0] if self.renamed else ""
        ids = model.pipeline.tokenizer(asked, add_special_tokens=False).input_ids
        return asked if len(ids) == 1 else self.class_prompt.split()[-1]
