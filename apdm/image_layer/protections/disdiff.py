"""DisDiff (Liu et al., ACM Multimedia 2024, arXiv 2405.20584): the word for the subject loses its attention.

DisDiff is ASPL with two additions. Cross-Attention Erasure (CAE) adds a term to the ascent that takes cross-attention
away from the subject's identifier. The Merit Sampling Scheduler (MSS) makes the step on a photo smaller the more noise
its timestep has.

This is written after the authors' program and the paper's abstract; the paper's sections could not be read. CAE takes
the maps of 16 x 16 positions, averages them over layers and heads, and applies a softmax to 100 times the values of the
prompt's words. With S the result and s its share on the identifier, s = sum S_identifier^2 / sum S^2 over positions,
the term is 0.1 (1 - s)^2. MSS multiplies the step with (1 + cos(pi t / (T - 1))) / 2. The program also chooses
timesteps as SimAC does (here the option greedy_timesteps) and trains the text encoder (here train_text_encoder).

For models without maps of 16 x 16 positions, the largest maps with at most 256 positions are taken. The identifier is
every token that the class prompt does not have; the program takes the fourth token. Numbers of steps and learning rates
are those of ASPL.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from apdm.config.options import option
from apdm.core.devices import send
from apdm.core.errors import UserError
from apdm.families import Family
from apdm.families.attention import watch_attention
from apdm.families.prompts import own_tokens, word_tokens
from apdm.image_layer.pgd import PGD, PhotoObjective
from apdm.image_layer.protections.aspl import ASPL
from apdm.image_layer.surrogate import Surrogate
from apdm.image_layer.task import ProtectionTask

SHARPNESS = 100.0  # what attention is multiplied with before the softmax over the words


class MeritPGD(PGD):
    """`PGD` whose step on each photo is multiplied with its merit.

    Attributes:
        merits: {index of a photo: its merit, a scalar}. An objective sets them. A photo without one takes whole steps.
    """

    @cached_property
    def merits(self) -> dict[int, Tensor]:
        """See the class. The dictionary is made when it is first asked for."""
        return {}

    def direction(self, gradient: Tensor, index: int) -> Tensor:
        """Return what one step adds to the photo, before it is multiplied by `step_size`."""
        step = super().direction(gradient, index)
        return step * self.merits[index] if index in self.merits else step


@dataclass(frozen=True, kw_only=True)
class DisDiff(ASPL):
    """Raise the error of a copy of the surrogate, and take its attention away from the word for the subject.

    Attributes:
        attention_weight: weight of the erasure of attention. 0 leaves it out.
        attention_max_positions: the largest cross-attention maps with at most so many positions are used. 256 is
            16 x 16, as in the release.
        merit_sampling: whether steps are smaller at timesteps with more noise.
    """

    attention_weight: float = option(0.1, at_least=0)
    attention_max_positions: int = option(256, at_least=1)
    merit_sampling: bool = True

    name: ClassVar[str] = "disdiff"
    loop: ClassVar[type[PGD]] = MeritPGD

    def check_fits(self, family: Family, prompt: str, class_prompt: str) -> None:
        """Raise UserError if attention cannot be taken away from a word of its own."""
        super().check_fits(family, prompt, class_prompt)
        if any(layer.prompt for layer in family.attention_layers(family.denoiser)):
            raise UserError(
                f"image_layer.method disdiff needs cross-attention, and {family.name} has one attention for picture "
                "and prompt; choose another method, such as aspl"
            )
        if not own_tokens(family, prompt, class_prompt):
            raise UserError(
                f'image_layer.method disdiff needs a word for the subject, and instance_prompt "{prompt}" has none '
                f'that class_prompt "{class_prompt}" does not have; add a rare word, such as "sks"'
            )

    def protect(self, task: ProtectionTask, pgd: PGD) -> None:
        """Run all rounds on all photos of a subject at once.

        Raises:
            UserError: the model has no cross-attention layer that is small enough.
        """
        task.check_attention(self.attention_max_positions, self.name)
        super().protect(task, pgd)

    def objective(self, task: ProtectionTask, surrogate: Surrogate, pgd: PGD) -> PhotoObjective:
        """Return L_cond plus the weighted erasure as an objective. It sets the merits of the photos."""
        places = word_tokens(task.family, task.prompt)
        named = own_tokens(task.family, task.prompt, task.class_prompt)
        words, own = (send(torch.tensor(each), task.device) for each in (places, [place in named for place in places]))
        prompts, layers = surrogate.prompt_embeds, task.family.attention_layers(surrogate.denoiser)

        def loss(photos: list[Tensor], which: list[int]) -> Tensor:
            draw = task.draw(len(photos), which)
            if self.merit_sampling and isinstance(pgd, MeritPGD):
                shares = merit(draw.timesteps, task.family.num_train_timesteps)
                pgd.merits.update(zip(which, shares, strict=True))
            with watch_attention(layers, max_positions=self.attention_max_positions, only_cross=True) as maps:
                error = task.denoising_error(surrogate.denoiser, task.latents(photos, draw), draw, prompts)
            return error + self.attention_weight * erasure(maps.cross, words=words, own=own)

        return loss


def merit(timesteps: Tensor, total: int) -> Tensor:
    """Return (1 + cos(pi t / (total - 1))) / 2 of timesteps `[B]`: 1 without noise, 0 for noise alone."""
    return (1 + torch.cos(math.pi * timesteps / (total - 1))) / 2


def erasure(cross: dict[str, Tensor], *, words: Tensor, own: Tensor) -> Tensor:
    """Measure how little attention some tokens have among all words, for each sample, `[B]`: from 0, all, to 1, none.

    Args:
        cross: {layer: attention map `[B, heads, positions, tokens]`}. Only those with the most positions are used.
        words: which W tokens are words, `[W]`.
        own: whether each of these belongs to the word for the subject, `[W]`.
    """
    most = max(attention.shape[2] for attention in cross.values())
    largest = torch.cat([attention for attention in cross.values() if attention.shape[2] == most], dim=1)
    squares = (SHARPNESS * largest.mean(1).index_select(-1, words)).softmax(dim=-1).square()
    share = (squares * own).sum(dim=(1, 2)) / squares.sum(dim=(1, 2))
    return (1 - share).square()
