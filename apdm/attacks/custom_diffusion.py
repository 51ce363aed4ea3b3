"""Custom Diffusion (Kumari et al. 2023): train keys and values of cross-attention and the embedding of a new word."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

from apdm.attacks import Material
from apdm.attacks.fine_tuning import FineTuning
from apdm.attacks.parts.attacked_model import AttackedModel
from apdm.attacks.parts.tokens import WORD, add_word, check_word, rename_subject
from apdm.families import Family


@dataclass(frozen=True, kw_only=True)
class CustomDiffusion(FineTuning):
    """Train cross-attention and the word `modifier_token`, which takes the place of the identifier in all prompts.

    The options have the names and values of diffusers' script and its README: a learning rate of 1e-5 times the batch
    size of 2, 250 steps, prior loss weight 1. With prior preservation the script doubles the scaled rate to 4e-5; this
    class does not, but `learning_rate=2e-5` gives the same. For faces the README takes 5e-6 and 1000 to 2000 steps and
    trains all of cross-attention. Here the keys and values of all tokens receive gradients; the authors' release stops
    the gradients of the first token.

    SDXL and SD3 have two CLIP text encoders, and both learn the word. T5 (SD3, FLUX) is not trained; its tokenizer
    splits the word into pieces that it knows.

    Attributes:
        modifier_token: the new word.
        initializer_token: one word whose embedding the new word starts with. None takes the identifier, which is a rare
            token in the paper too, or the class noun if the identifier is several tokens.
        scale_lr: whether the learning rate is multiplied by the batch size.
    """

    learning_rate: float = 1e-5
    max_train_steps: int = 250
    train_batch_size: int = 2
    modifier_token: str = "<new1>"
    initializer_token: str | None = None
    scale_lr: bool = True

    name: ClassVar[str] = "custom_diffusion"
    assumes: ClassVar[str] = "the weights, photos and a small GPU"

    def __post_init__(self) -> None:
        super().__post_init__()
        rename_subject(self, self.modifier_token, 1)

    def check_prompt(self, model: Family) -> None:
        """Raise UserError if `model` cannot learn the word from the instance prompt; see `check_word`."""
        check_word(model, self.modifier_token, 1, self.initializer_token, self.instance_prompt)

    def begin(self, model: Family, material: Material) -> AttackedModel:
        """Copy the denoiser, and add the word to copies of the CLIP text encoders."""
        self.check_fits(model)
        start = self.initializer_token or self._default_initializer(model)
        denoiser = copy.deepcopy(model.denoiser).requires_grad_(False)
        word = add_word(model.with_denoiser(denoiser), self.modifier_token, 1, start)
        weights = [p for name, p in denoiser.named_parameters() if name.endswith(model.key_value_weights)]
        return AttackedModel(
            word.model,
            (denoiser, *word.encoders),
            [*(p.requires_grad_(True) for p in weights), *word.embeddings],
            trains_text=True,
            finish=word.write_back,
        )

    def rate(self, step: int) -> float:
        """The learning rate, times the number of photos in a step if `scale_lr` is set."""
        photos = self.train_batch_size * self.gradient_accumulation_steps
        return self.learning_rate * (photos if self.scale_lr else 1)

    def _default_initializer(self, model: Family) -> str:
        """The identifier that the modifier replaces, or the class noun if the identifier is several tokens."""
        identifier = self.renamed[0].split()[0] if self.renamed else ""  # `renamed` begins with the identifier
        tokenizers = [getattr(model.pipeline, model.tokenizer_name(name)) for name in model.text_encoders(WORD)]
        is_one = all(len(t(identifier, add_special_tokens=False).input_ids) == 1 for t in tokenizers)
        return identifier if is_one else self.class_prompt.split()[-1]
