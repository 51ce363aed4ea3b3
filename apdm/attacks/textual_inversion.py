"""Textual Inversion (Gal et al. 2022): nothing is trained but the embedding of one new word, in every CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from apdm.attacks import VARIES, Material
from apdm.attacks.fine_tuning import AttackedModel, FineTuning
from apdm.attacks.parts import frozen, with_denoiser
from apdm.attacks.tokens import call, learn_words
from apdm.families import Family


@dataclass(frozen=True, kw_only=True)
class TextualInversion(FineTuning):
    """`placeholder_token` stands for the identifier in all prompts, and starts as `initializer_token`.

    Names are diffusers', and so are 3000 steps, no prior, and 5e-4 times the batch size (scale_lr). The batch is 1:
    its README takes 4 photos per step (by accumulation), and so 2e-3, which here is train_batch_size=4. Its prompts are
    templates around the word, here it is always the instance prompt. Gradients are clipped, as everywhere here, which
    changes next to nothing under AdamW.

    initializer_token: one word, None for the class noun. A placeholder that the model knows as one token (the
    identifier itself) is trained where it is. num_vectors: tokens that the placeholder is made of. SDXL and SD3 have
    two CLIPs, and each learns the word; T5 (SD3, FLUX) is left alone, and reads it spelt out.
    """

    learning_rate: float = 5e-4
    max_train_steps: int = 3000
    prior_loss_weight: float = 0.0
    placeholder_token: str = "<subject>"
    initializer_token: str | None = None
    num_vectors: int = 1
    scale_lr: bool = True

    name: ClassVar[str] = "textual_inversion"
    assumes: ClassVar[str] = "the weights, photos and a small GPU; the weights stay as they are"
    varies: ClassVar[tuple[str, ...]] = tuple(name for name in VARIES if name != "identifier")  # its token is its own

    def __post_init__(self) -> None:
        call(self, self.placeholder_token, self.num_vectors)

    def begin(self, model: Family, material: Material) -> AttackedModel:
        noun = self.initializer_token or self.class_prompt.split()[-1]
        model = with_denoiser(model, frozen(model.denoiser))
        tokens = learn_words(model, self.placeholder_token, self.num_vectors, noun)
        return AttackedModel(
            tokens.model,
            tokens.encoders,
            tokens.embeddings,
            trains_text=True,
            after_step=tokens.put_back,
            adapter=tokens.learnt,
        )

    def rate(self, step: int) -> float:
        return self.learning_rate * (self.train_batch_size if self.scale_lr else 1)
