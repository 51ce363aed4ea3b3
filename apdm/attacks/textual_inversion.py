"""Textual Inversion (Gal et al. 2022): the only thing that is trained is the embedding of one new word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from apdm.attacks import Material
from apdm.attacks.fine_tuning import FineTuning, frozen_copy
from apdm.attacks.parts.attacked_model import AttackedModel
from apdm.attacks.parts.tokens import add_word, check_word, rename_subject
from apdm.config.options import option
from apdm.families import Family


@dataclass(frozen=True, kw_only=True)
class TextualInversion(FineTuning):
    """Train the word `placeholder_token`, which takes the place of the identifier in all prompts.

    The options have the names and values of diffusers' script: 3000 steps, no prior preservation, and a learning rate
    of 5e-4 times the batch size. The batch size here is 1. The script's README accumulates gradients over 4 photos and
    so arrives at 2e-3; `train_batch_size=4` does the same here. The script writes many templates around the word; here
    the prompt is always the instance prompt. Gradients are clipped as in all attacks, which changes very little under
    AdamW.

    SDXL and SD3 have two CLIP text encoders, and both learn the word. T5 (SD3, FLUX) is not trained; its tokenizer
    splits the word into pieces that it knows.

    Attributes:
        placeholder_token: the new word. If the model already knows the word as one token, as it may know the
            identifier, the embedding of this token is trained.
        initializer_token: one word whose embedding the new word starts with. None takes the class noun,
            or the mean of its embeddings if the noun is several tokens.
        num_vectors: number of tokens that the new word consists of.
        scale_lr: whether the learning rate is multiplied by the batch size.
    """

    learning_rate: float = 5e-4
    max_train_steps: int = 3000
    prior_loss_weight: float = 0.0
    placeholder_token: str = "<subject>"
    initializer_token: str | None = None
    num_vectors: int = option(1, at_least=1)
    scale_lr: bool = True

    name: ClassVar[str] = "textual_inversion"
    assumes: ClassVar[str] = "the weights, photos and a small GPU; the weights stay as they are"

    def __post_init__(self) -> None:
        super().__post_init__()
        rename_subject(self, self.placeholder_token, self.num_vectors)

    def check_prompt(self, model: Family) -> None:
        """Raise UserError if `model` cannot learn the word from the instance prompt; see `check_word`."""
        check_word(model, self.placeholder_token, self.num_vectors, self.initializer_token, self.instance_prompt)

    def begin(self, model: Family, material: Material) -> AttackedModel:
        """Add the word to copies of the CLIP text encoders."""
        self.check_fits(model)
        noun = self.initializer_token or self.class_prompt.split()[-1]
        model = model.with_denoiser(frozen_copy(model.denoiser))
        word = add_word(model, self.placeholder_token, self.num_vectors, noun)
        return AttackedModel(
            word.model,
            word.encoders,
            list(word.embeddings),
            trains_text=True,
            finish=word.write_back,
            adapter=word.embeddings,
        )

    def rate(self, step: int) -> float:
        """The learning rate, times the number of photos in a step if `scale_lr` is set."""
        photos = self.train_batch_size * self.gradient_accumulation_steps
        return self.learning_rate * (photos if self.scale_lr else 1)
