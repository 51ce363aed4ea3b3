"""Heat maps of where in a picture the attacked model attends to the subject's identifier (DLADiff, figure 7)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from apdm.families import Family
from apdm.families.attention import watch_attention
from apdm.families.encoding import encode_images
from apdm.families.prompts import own_tokens

SHARE_OF_NOISE = 0.5  # of the noise schedule: the outline of the picture is visible, its details are not
MAX_POSITIONS = 4096  # layers with more positions are left out, because their maps would take much memory
HEAT = (
    (0.0, 0.0, 0.1),
    (0.45, 0.1, 0.45),
    (0.95, 0.4, 0.2),
    (1.0, 0.95, 0.7),
)  # from dark to light, so that colour-blind readers see it too


@torch.no_grad()
def identifier_maps(
    model: Family, images: Tensor, prompt: str, class_prompt: str, *, batch_size: int = 4
) -> Tensor | None:
    """Draw how strongly each place of some pictures attends to the prompt's identifier.

    Half of the noise schedule is applied to the pictures, with fixed noise, and the denoiser sees them once. The
    attention probabilities are averaged over the heads and layers of cross-attention, and each map is stretched to its
    own range. The identifier is the tokens of `prompt` that `class_prompt` does not have.

    Args:
        model: the attacked model.
        images: pictures that it drew, [N, 3, H, W] in [0, 1].
        prompt: the prompt with the identifier.
        class_prompt: the prompt without the identifier.
        batch_size: pictures that the model sees at once.

    Returns:
        Heat pictures [N, 3, H, W] in [0, 1], on the CPU. None if the prompt has no identifier, or if the denoiser has
        no cross-attention layer with at most MAX_POSITIONS positions.
    """
    positions = own_tokens(model, prompt, class_prompt)
    if not positions:
        return None
    latents = encode_images(model, images * 2 - 1, batch_size=batch_size).mean
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(latents)
    timesteps = torch.full((len(images),), int(SHARE_OF_NOISE * model.num_train_timesteps), device=latents.device)
    noisy = model.add_noise(latents, noise, timesteps)
    embeds = model.encode_prompts([prompt]).float()
    size = (images.shape[-2], images.shape[-1])
    maps = []
    for part in noisy.split(batch_size):
        attention = _attention_to(model, part, timesteps[: len(part)], embeds, positions, size)
        if attention is None:
            return None
        maps.append(attention)
    attended = torch.cat(maps)
    low, high = attended.amin((1, 2, 3), keepdim=True), attended.amax((1, 2, 3), keepdim=True)
    return _heat((attended - low) / (high - low).clamp(min=1e-12)).cpu()


def _attention_to(
    model: Family, noisy: Tensor, timesteps: Tensor, embeds: Tensor, positions: list[int], size: tuple[int, int]
) -> Tensor | None:
    """The mean attention of all layers to some tokens, [N, 1, H, W] for N noisy latents; None without such a layer."""

    def to_tokens(probabilities: Tensor) -> Tensor:
        """The mean over heads of a map `[N, heads, P, tokens]`: `[N, P]` for P positions of the picture."""
        return probabilities.mean(1)[..., positions].sum(-1)

    layers = model.attention_layers(model.denoiser)
    with watch_attention(layers, max_positions=MAX_POSITIONS, only_cross=True, keep=to_tokens) as maps:
        model.predict(model.denoiser, noisy, timesteps, embeds.expand(len(noisy), -1, -1))
    if not maps.cross:
        return None
    attended = []
    for of_tokens in maps.cross.values():
        height = round((of_tokens.shape[1] * size[0] / size[1]) ** 0.5)
        squares = of_tokens.reshape(len(noisy), 1, height, -1)
        attended.append(interpolate(squares, size=size, mode="bilinear", align_corners=False))
    return torch.stack(attended).mean(0)


def _heat(values: Tensor) -> Tensor:
    """Values [N, 1, H, W] in [0, 1] as colours [N, 3, H, W] in [0, 1]."""
    colours = torch.tensor(HEAT, dtype=values.dtype, device=values.device)
    place = values[:, 0] * (len(HEAT) - 1)
    below = place.floor().long().clamp(max=len(HEAT) - 2)
    share = (place - below)[..., None]
    return torch.lerp(colours[below], colours[below + 1], share).permute(0, 3, 1, 2)
