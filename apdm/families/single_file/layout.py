"""What a family states about its single-file layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Weights = dict[str, Tensor]
DENOISER = "model.diffusion_model."  # start of the names of the denoiser's weights in the files of whole pipelines


@dataclass(frozen=True, kw_only=True)
class SingleFileLayout:
    """The names of a family's weights in a single-file checkpoint.

    The VAE has the same layout in all families that have it in the file, so it is not described here.

    Args:
        marker: start of a weight's name that only the single files of this family have. It tells families apart.
        input_layer: name of the weight through which the denoiser takes the latents, [.., channels, ..]. It is compared
            with the VAE in the file.
        text_encoders: the text encoders in the file and the transformers class of each, by the pipeline's names.
        prefixes: start of the names of each part's weights in the file, by the pipeline's names for the parts. If it
            names the denoiser alone, the file holds nothing else, and the other parts come from the pipeline folder.
        optional: text encoders that a pipeline may lack.
        unread: weights that some files of the denoiser alone have, and that the denoiser does not need.
        left_in_training: parts that diffusers' `from_single_file` leaves in training mode, where dropout is active.
        denoiser_weights: (weights by diffusers' names, the denoiser's configuration) -> weights by the file's names.
        text_weights: (pipeline, weights of each text encoder by transformers' names) -> weights by the file's names.
            A text encoder that the pipeline lacks is passed as an empty dictionary.
        narrow: (the denoiser's configuration) -> the configuration of a small denoiser with the same kinds of blocks.
            Equal widths must stay equal. It makes the check of the layout cheap.
    """

    marker: str
    input_layer: str = ""
    prefixes: Mapping[str, str]
    text_encoders: Mapping[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    left_in_training: tuple[str, ...] = ()
    denoiser_weights: Callable[[Mapping[str, Tensor], Any], Weights]
    text_weights: Callable[..., Weights] = lambda _: {}
    narrow: Callable[[dict[str, Any]], dict[str, Any]]

    @property
    def holds_pipeline(self) -> bool:
        """Whether the file holds the whole pipeline, and not the denoiser alone."""
        return len(self.prefixes) > 1

    def marks(self, name: str) -> bool:
        """Whether only a single file of this family has a weight of this name."""
        return (name if self.holds_pipeline else without_prefix(name)).startswith(self.marker)


def without_prefix(name: str) -> str:
    """A weight's name in a file of the denoiser alone: some tools write it with the prefix of a whole pipeline."""
    return name.removeprefix(DENOISER)
