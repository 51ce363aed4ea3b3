"""Writing of single-file checkpoints: the name of each weight, and a check that diffusers can read the file back."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from apdm.core.errors import UserError
from apdm.families.single_file.layout import SingleFileLayout, Weights
from apdm.families.single_file.markers import marker_tensors
from apdm.families.single_file.renaming import ADVICE
from apdm.families.single_file.vae import vae_weights

if TYPE_CHECKING:
    from apdm.families.base import Family


def check_single_file(family: Family) -> None:
    """Check that a single file can hold the model and that diffusers can read it back.

    The check is cheap, so call it before long work. In a small copy of the denoiser and in the VAE, if it is in the
    file, each weight gets a different number. The numbers go through diffusers' own loader, and each must come back in
    its place.

    Raises:
        UserError: the family has no single-file layout, or this pipeline does not fit it.
    """
    layout = _layout(family)
    _text_weights(family, layout)
    checked = [(_narrow(family.denoiser, layout), layout.denoiser_weights)]
    checked += [(family.pipeline.vae, vae_weights)] * layout.holds_pipeline
    for model, rename in checked:
        numbered = {
            name: torch.tensor(float(number)).expand(weight.shape)
            for number, (name, weight) in enumerate(model.state_dict().items())
        }
        if not _comes_back(model, rename, numbered):
            raise UserError(f"this {type(model).__name__} does not fit a single file; {ADVICE}")


def single_file_weights(family: Family) -> Weights:
    """The weights of all parts in the single file by their names there, in the float types of `family.dtypes`.

    Tensors without content, which UIs look for, say what the model predicts; see `apdm.families.single_file.markers`.

    A tensor that is not converted shares its memory with the pipeline.

    Raises:
        UserError: a weight has no place in the file; see `check_single_file`.
    """
    layout, pipeline = _layout(family), family.pipeline
    return {
        **layout.denoiser_weights(_state(family, family.denoiser_name), family.denoiser.config),
        **(vae_weights(_state(family, "vae"), pipeline.vae.config) if layout.holds_pipeline else {}),
        **_text_weights(family, layout),
        **marker_tensors(family),
    }


def single_file_dtypes(family: Family) -> set[torch.dtype]:
    """The float types of the weights that `single_file_weights` gives."""
    parts = {part: getattr(family.pipeline, part) for part in _layout(family).prefixes}
    return {family.dtypes.get(name, part.dtype) for name, part in parts.items() if part is not None}


def _layout(family: Family) -> SingleFileLayout:
    if family.single_file_layout is None:
        raise UserError(f"the family {family.name} has no layout for a single file; {ADVICE}")
    return family.single_file_layout


def _state(family: Family, part: str) -> Weights:
    dtype = family.dtypes.get(part)
    weights = getattr(family.pipeline, part).state_dict()
    return {name: w.to(dtype) if dtype and w.is_floating_point() else w for name, w in weights.items()}


def _text_weights(family: Family, layout: SingleFileLayout) -> Weights:
    pipeline = family.pipeline
    states: list[Weights] = []
    for part, wanted in layout.text_encoders.items():
        encoder = getattr(pipeline, part)
        if encoder is None and part in layout.optional:
            states.append({})
        elif type(encoder).__name__ == wanted:
            states.append(_state(family, part))
        else:
            kind = type(pipeline).__name__
            raise UserError(f"a single file of a {kind} holds a {wanted}, not this {type(encoder).__name__}; {ADVICE}")
    # Loaders tell the two encoders of a file apart by their width alone.
    if len(states) > 1 and pipeline.text_encoder.config.hidden_size == pipeline.text_encoder_2.config.hidden_size:
        raise UserError(f"a single file cannot hold two text encoders of one width; {ADVICE}")
    return layout.text_weights(pipeline, *states)


def _narrow(model: Any, layout: SingleFileLayout) -> Any:
    """A model with the same blocks and few channels: the real one may have billions of weights."""
    config = dict(model.config)
    config.pop("_use_default_values", None)  # from_config would put the defaults back
    with torch.device("meta"):  # only the names and the shapes of its weights are needed
        return type(model).from_config(layout.narrow(config))


def _comes_back(model: Any, rename: Callable[[Weights, Any], Weights], expected: Weights) -> bool:
    """Whether diffusers' loader turns the renamed weights into exactly `expected` for a model like `model`."""
    original = rename(expected, model.config)
    with tempfile.TemporaryDirectory() as config:
        model.save_config(config)
        try:
            loaded = type(model).from_single_file(original, config=config, local_files_only=True).state_dict()
        except Exception:  # whatever error the loader raises, it cannot read these blocks
            return False
    return loaded.keys() == expected.keys() and all(
        weight.shape == expected[name].shape and bool((weight == expected[name]).all())
        for name, weight in loaded.items()
    )
