"""Reading of prompts: the tokenizers and the text encoders of a family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from apdm.core.errors import UserError
from apdm.core.logging import muted


class TextReader(ABC):
    """The part of `apdm.families.base.Family` that reads prompts. There its attributes are explained."""

    name: ClassVar[str]
    pipeline: Any
    trainable_text_encoders: ClassVar[tuple[str, ...]]

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Encode prompts as one tensor `[B, L, D]`. Pooled vectors and similar inputs of the denoiser are extra rows.

        A prompt that is too long for a text encoder is cut, as the pipeline does.
        """

    def _quietly_encoded(self, *args: Any, **options: Any) -> Any:
        """What the pipeline's `encode_prompt` returns. It logs what it cuts off, and captions must not be logged."""
        with muted(self.pipeline.encode_prompt.__module__):
            return self.pipeline.encode_prompt(*args, **options)

    @property
    def token_limits(self) -> dict[str, int]:
        """How many tokens of a prompt each tokenizer passes on, under the pipeline's name for the tokenizer."""
        limits = {}
        for name, tokenizer in self.pipeline.components.items():
            encoder = self.pipeline.components.get(name.replace("tokenizer", "text_encoder"))
            if name.startswith("tokenizer") and tokenizer is not None and encoder is not None:
                places = getattr(encoder.config, "max_position_embeddings", None)
                limits[name] = min(tokenizer.model_max_length, places or tokenizer.model_max_length)
        return limits

    def tokens(self, prompt: str, *, cut: bool = True) -> dict[str, list[int]]:
        """The tokens of a prompt, under the pipeline's name for the tokenizer that gives them.

        Args:
            cut: leave out the tokens of a long prompt that the text encoder does not get.
        """
        text = self.tokenized(prompt)
        return {
            name: getattr(self.pipeline, name)(
                text, truncation=cut, max_length=limit if cut else None, verbose=False
            ).input_ids
            for name, limit in self.token_limits.items()
        }

    def tokenized(self, prompt: str) -> str:
        """The text that the pipeline gives to the tokenizers for a prompt. Some pipelines put a template around it."""
        return prompt

    @staticmethod
    def tokenizer_name(encoder: str) -> str:
        """The pipeline's name for the tokenizer of a text encoder: "tokenizer_2" for "text_encoder_2"."""
        return encoder.replace("text_encoder", "tokenizer")

    def text_encoders(self, asked_by: str = "this method") -> dict[str, Any]:
        """The text encoders that attacks may train, under the pipeline's names for them, sorted by name.

        Args:
            asked_by: the option, or the thing, that needs them, as the message names it.

        Raises:
            UserError: there is none.
        """
        parts = {name: getattr(self.pipeline, name) for name in sorted(self.trainable_text_encoders)}
        found = {name: part for name, part in parts.items() if part is not None}
        if not found:
            raise UserError(
                f"{asked_by} needs a text encoder that can be trained, and {self.name} has none; leave it out"
            )
        return found
