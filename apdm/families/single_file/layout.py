"""What a family states about its single-file layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class SingleFileLayout:
    """The names of a family's weights in a single-file checkpoint.

    The VAE has the same layout in all families, so it is not described here.

    Args:
        marker: start of a weight's name that only the single files of this family have. It tells families apart.
        input_layer: name of the weight through which the denoiser takes the latents, [.., channels, ..].
        text_encoders: the text encoders in the file and the transformers class of each, by the pipeline's names.
        prefixes: start of the names of each part's weights in the file, by the pipeline's names for the parts.
        optional: text encoders that a pipeline may lack.
        left_in_training: parts that diffusers' `from_single_file` leaves in training mode, where dropout is active.
        denoiser_weights: (weights by diffusers' names, the denoiser's configuration) -> weights by the file's names.
        text_weights: (pipeline, weights of each text encoder by transformers' names) -> weights by the file's names.
            A text encoder that the pipeline lacks is passed as an empty dictionary.
        narrow: (the denoiser's configuration) -> the configuration of a denoiser with the same blocks and few channels.
            Equal widths must stay equal. It makes the check of the layout cheap.
    """

    marker: str
    input_layer: str
    text_encoders: Mapping[str, str]
    prefixes: Mapping[str, str]
    optional: tuple[str, ...] = ()
    left_in_training: tuple[str, ...] = ()
    denoiser_weights: Callable[[Mapping[str, Tensor], Any], Weights]
    text_weights: Callable[..., Weights]
    narrow: Callable[[dict[str, Any]], dict[str, Any]]
