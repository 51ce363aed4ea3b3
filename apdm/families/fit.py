"""Checks, made before any work, that the parts of a pipeline fit each other, and that it can draw in so many steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from apdm.core.errors import UserError

if TYPE_CHECKING:
    from apdm.families.base import Family

ANOTHER_SCHEDULER = (
    "name another scheduler in model_index.json and scheduler_config.json, such as the one the model came with"
)
SHORTEST = 3  # tokens of a prompt: its start, a word and its end


def check_fit(family: Family) -> None:
    """Check that the denoiser, the VAE, the text encoders and the tokenizers of a pipeline fit each other.

    Raises:
        UserError: they do not. The message names the parts.
    """
    name = family.denoiser_name
    taken, given = family.latent_channels, family.pipeline.vae.config.latent_channels
    if taken != given:
        raise UserError(f"{family.location}: {wrong_channels(name, taken, given)}")
    try:
        widths = family.prompt_widths()
    except AttributeError:  # the configuration of another class of text encoders has other entries
        raise UserError(
            f"{family.location}: the text encoders are of other kinds than those of {family.name}; use parts that "
            "belong to one model"
        ) from None
    for what, (taken, given) in widths.items():
        if taken != given:
            raise UserError(
                f"{family.location}: the {name} takes {what} of width {taken} and the text encoders give width "
                f"{given}; use parts that belong to one model"
            )
    lengths = {family.tokenizer_name(part): _prompt_length(family, part) for part in family.trainable_text_encoders}
    if len({*lengths.values()} - {None}) > 1:
        raise UserError(
            f"{family.location}: {' and '.join(lengths)} have different values of model_max_length, and their prompts "
            "cannot be joined; write the same into both files tokenizer_config.json"
        )


def wrong_channels(denoiser: str, taken: int, given: int) -> str:
    """The message on a denoiser that takes other channels than the VAE gives, such as an inpainting model's."""
    return (
        f"the {denoiser} takes {taken} channels and the VAE gives {given}; use a text-to-image model, not an "
        "inpainting model"
    )


def _prompt_length(family: Family, part: str) -> int | None:
    """The number of tokens that a prompt gets for a text encoder; None for a T5, which takes any number.

    Raises:
        UserError: there is no room for a word, or there are more tokens than the encoder takes.
    """
    name = family.tokenizer_name(part)
    encoder, tokenizer = getattr(family.pipeline, part), getattr(family.pipeline, name)
    if encoder is None or tokenizer is None:
        return None
    most = getattr(encoder.config, "max_position_embeddings", None)
    if most is None:
        return None
    # A pipeline with a T5 cuts the prompts for all CLIP encoders at one length.
    length = getattr(family.pipeline, "tokenizer_max_length", tokenizer.model_max_length)
    # transformers hands on whatever the file holds, even a text.
    if not (isinstance(length, int) and SHORTEST <= length <= most):
        raise UserError(
            f"{family.location}: the {name} has no model_max_length from {SHORTEST} to {most}, which is as many tokens "
            f'as the {part} takes; write "model_max_length": {most} into {name}/tokenizer_config.json'
        )
    return length


def check_sampler(family: Family) -> None:
    """Raise UserError if the pipeline's sampler does not draw right with such a model."""
    if (fault := family.sampler_fault()) is not None:
        raise UserError(f"{family.location}: a {type(family.pipeline.scheduler).__name__} {fault}; {ANOTHER_SCHEDULER}")


def check_steps(family: Family, steps: Mapping[str, int]) -> None:
    """Check that a model's sampler can draw in so many sampling steps.

    Args:
        steps: {option: sampling steps}.

    Raises:
        UserError: an option asks for more steps than there are timesteps, or than the sampler of a consistency model
            was made for, or for so many that the first one would be at a timestep beyond those of training. Or the
            sampler fails in so many steps.
    """
    total, most = family.num_train_timesteps, _most_steps(family)
    sampler = type(family.pipeline.scheduler).__name__
    for option, number in steps.items():
        if number > most:
            raise UserError(
                f"{option} is {number}; {family.name} has {total} timesteps and draws with {sampler}, "
                f"give at most {most}"
            )
        if (fault := family.sampler_fault(number)) is not None:
            raise UserError(f"{option} is {number}, and a {sampler} {fault}; give another number, or another scheduler")


def _most_steps(family: Family) -> int:
    """The number of sampling steps in which every timestep is one of training.

    A sampler with leading spacing puts its steps at multiples of T // steps, and then moves all of them up by an
    offset. Samplers of higher order count one step more. The samplers of consistency models (LCM, TCD) choose among the
    timesteps of the distillation.
    """
    config = family.pipeline.scheduler.config
    if (distilled := config.get("original_inference_steps")) is not None:
        return distilled
    moved = config.get("steps_offset", 0) + ("solver_order" in config)
    return family.num_train_timesteps - (moved if config.get("timestep_spacing") == "leading" else 0)
