"""Custom Diffusion (Kumari et al. 2023): keys and values of cross-attention, and the embedding of a new word."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

from apdm.attacks import VARIES, Material
from apdm.attacks.fine_tuning import AttackedModel, FineTuning
from apdm.attacks.parts import clip_encoders, tokenizer_name, with_denoiser
from apdm.attacks.tokens import call, learn_words
from apdm.families import Family


@dataclass(frozen=True, kw_only=True)
class CustomDiffusion(FineTuning):
    """`modifier_token` stands for the identifier in all prompts, and starts as `initializer_token`.

    Names are those of diffusers' script, and so are 1e-5 times the batch of 2 (scale_lr), 250 steps and prior 1 of its
    README. With a prior the script doubles the scaled rate, to 4e-5, which is not done here: learning_rate=2e-5 is
    that. For faces its README takes 5e-6 and 1000 to 2000 steps, and trains all of cross-attention. All tokens' keys
    and values get gradients (the release stops those of the first one).

    initializer_token: None for the identifier that it replaces, a rare token in the paper too; if that is several
    tokens, the class noun. SDXL and SD3 have two CLIPs, and each learns the word; T5 (SD3, FLUX) is left alone, and
    reads it spelt out.
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

    def begin(self, model: Family, material: Material) -> AttackedModel:
        start = self.initializer_token or self._rare_token(model)
        denoiser = copy.deepcopy(model.denoiser).requires_grad_(False)
        tokens = learn_words(with_denoiser(model, denoiser), self.modifier_token, 1, start)
        weights = [p for name, p in denoiser.named_parameters() if name.endswith(model.keys_and_values)]
        return AttackedModel(
            tokens.model,
            (denoiser, *tokens.encoders),
            [*(p.requires_grad_(True) for p in weights), *tokens.embeddings],
            trains_text=True,
            after_step=tokens.put_back,
        )

    def rate(self, step: int) -> float:
        return self.learning_rate * (self.train_batch_size if self.scale_lr else 1)

    def _rare_token(self, model: Family) -> str:
        """The identifier that the modifier replaces, which comes first in what is renamed; or the class noun."""
        asked = self.renamed[0].split()[0] if self.renamed else ""
        tokenizers = [getattr(model.pipeline, tokenizer_name(name)) for name in clip_encoders(model)]
        is_one = all(len(t(asked, add_special_tokens=False).input_ids) == 1 for t in tokenizers)
        return asked if is_one else self.class_prompt.split()[-1]
