"""The attention maps of the families that read prompt and picture together, against the same blocks by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from apdm.families.attention import AttentionMaps, watch_attention


def test_joint_attention_gives_maps_of_positions_over_tokens_and_over_each_other(families):
    """The first block by hand, from its own projections; the pass is not changed by being watched."""
    family = families("sd3")
    denoiser, inputs = family.denoiser, {}
    layer = denoiser.transformer_blocks[0].attn
    handle = layer.register_forward_pre_hook(lambda _, args, kwargs: inputs.update(kwargs), with_kwargs=True)
    noisy, embeds = torch.randn(2, 16, 8, 8), family.encode_prompts(["a photo of sks person", "a dog"])
    timesteps = torch.tensor([10, 700])
    plain = family.predict(denoiser, noisy, timesteps, embeds)
    with watch_attention(family.attention_layers(denoiser), max_positions=16) as maps:
        assert torch.equal(family.predict(denoiser, noisy, timesteps, embeds), plain)
    handle.remove()
    positions, tokens = inputs["hidden_states"].shape[1], inputs["encoder_hidden_states"].shape[1]
    assert (positions, tokens) == (16, 16 + 256)

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (layer.heads, -1)).transpose(1, 2)

    query = layer.norm_q(heads(layer.to_q(inputs["hidden_states"])))
    own = layer.norm_k(heads(layer.to_k(inputs["hidden_states"])))
    words = layer.norm_added_k(heads(layer.add_k_proj(inputs["encoder_hidden_states"])))
    root = query.shape[-1] ** -0.5
    name = "transformer_blocks.0.attn"
    torch.testing.assert_close(maps.self_[name], (root * query @ own.mT).softmax(-1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(maps.cross[name], (root * query @ words.mT).softmax(-1), rtol=1e-4, atol=1e-6)
    assert maps.cross.keys() == {"transformer_blocks.0.attn", "transformer_blocks.1.attn"}
    assert maps.self_.keys() - maps.cross.keys() == {"transformer_blocks.0.attn2"}
    with watch_attention(family.attention_layers(denoiser), max_positions=15) as none:
        family.predict(denoiser, noisy, timesteps, embeds)
    assert not none.cross and not none.self_


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd3", "flux", "flux2", "zimage"])
def test_maps_over_the_prompt_alone_are_the_same_and_can_be_made_smaller_at_once(families, kind: str):
    family = families(kind)
    layers, embeds = family.attention_layers(family.denoiser), family.encode_prompts(["a photo of a dog", "a dog"])
    noisy = torch.randn(2, family.latent_channels, 8, 8)

    def watched(**options: Any) -> AttentionMaps:
        with torch.no_grad(), watch_attention(layers, **options) as maps:
            family.predict(family.denoiser, noisy, torch.tensor([10, 700]), embeds)
        return maps

    both, small = watched(), watched(only_cross=True, keep=lambda probabilities: probabilities.mean(1)[..., 1])
    assert both.self_ and both.cross and not small.self_ and small.cross.keys() == both.cross.keys()
    for name, whole in both.cross.items():  # other shapes of a product may round otherwise
        torch.testing.assert_close(small.cross[name], whole.mean(1)[..., 1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["flux", "flux2"])
def test_joint_attention_with_the_prompt_first_gives_the_same_maps_and_mixed_sequences_none(families, kind: str):
    family = families(kind)
    denoiser, inputs = family.denoiser, {}
    layer = denoiser.transformer_blocks[0].attn
    handle = layer.register_forward_pre_hook(lambda _, args, kwargs: inputs.update(kwargs), with_kwargs=True)
    with watch_attention(family.attention_layers(denoiser)) as maps:
        family.predict(
            denoiser, torch.randn(2, 16, 8, 8), torch.tensor([10, 700]), family.encode_prompts(["a photo", "a dog"])
        )
    handle.remove()
    parts = ((layer.to_q, layer.norm_q), (layer.to_k, layer.norm_k), (layer.add_k_proj, layer.norm_added_k))
    picture, prompt, (cosine, sine) = (
        inputs[name] for name in ("hidden_states", "encoder_hidden_states", "image_rotary_emb")
    )
    query, own, words = (
        norm(project(x).unflatten(-1, (layer.heads, -1))).transpose(1, 2)
        for (project, norm), x in zip(parts, (picture, picture, prompt), strict=True)
    )
    tokens = prompt.shape[1]
    query, own = (apply_rotary_emb(x, (cosine[tokens:], sine[tokens:])) for x in (query, own))
    words = apply_rotary_emb(words, (cosine[:tokens], sine[:tokens]))
    root = query.shape[-1] ** -0.5
    (name,) = maps.cross
    torch.testing.assert_close(maps.cross[name], (root * query @ words.mT).softmax(-1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(maps.self_[name], (root * query @ own.mT).softmax(-1), rtol=1e-4, atol=1e-6)
    assert list(maps.self_) == [name] == ["transformer_blocks.0.attn"]


def test_joint_attention_in_one_sequence_gives_maps_without_what_fills_the_sequence_up(families):
    """A block of Z-Image by hand: picture positions first, each part filled up to a multiple of 32, prompts masked."""
    family = families("zimage")
    denoiser, seen = family.denoiser, {}
    layer = denoiser.layers[1].attention
    handle = layer.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs, x=args[0]), with_kwargs=True)
    prompts = ["a photo of the dog" + " of the dog" * 12, "a dog"]
    noisy, timesteps = torch.randn(2, 16, 8, 12), torch.tensor([10, 700])
    lengths = [len(family.tokens(prompt)["tokenizer"]) for prompt in prompts]
    embeds = family.encode_prompts(prompts)
    plain = family.predict(denoiser, noisy, timesteps, embeds)
    with watch_attention(family.attention_layers(denoiser)) as maps:
        assert torch.equal(family.predict(denoiser, noisy, timesteps, embeds), plain)
    handle.remove()
    longest, turned = max(lengths), seen["freqs_cis"][:, None]
    assert lengths[1] < 32 < longest and seen["x"].shape[1] == 32 + 64

    def rotated(x: Tensor) -> Tensor:
        x = x.unflatten(-1, (layer.heads, -1))
        x = x.transpose(1, 2).unflatten(-1, (-1, 2)).contiguous()
        return torch.view_as_real(torch.view_as_complex(x) * turned).flatten(-2)

    def project(linear: torch.nn.Module, norm: torch.nn.Module) -> Tensor:
        return rotated(norm(linear(seen["x"]).unflatten(-1, (layer.heads, -1))).flatten(-2))

    query, key = project(layer.to_q, layer.norm_q)[:, :, :24], project(layer.to_k, layer.norm_k)
    scores = query.shape[-1] ** -0.5 * query @ key.mT
    scores = scores.masked_fill(~seen["attention_mask"][:, None, None], -torch.inf)
    name = "layers.1.attention"
    torch.testing.assert_close(maps.self_[name], scores[..., :24].softmax(-1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(maps.cross[name], scores[..., 32 : 32 + longest].softmax(-1), rtol=1e-4, atol=1e-6)
    assert not maps.cross[name][1, ..., 32:].any()  # the second prompt ends before
    assert maps.cross.keys() == maps.self_.keys() == {"layers.0.attention", name}
    with watch_attention(family.attention_layers(denoiser), max_positions=23) as none:
        family.predict(denoiser, noisy, timesteps, embeds)
    assert not none.cross and not none.self_
