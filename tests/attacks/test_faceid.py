"""The zero-shot adapter: diffusers' format, and a model that stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from apdm.attacks.faceid import FaceIDAdapter
from apdm.attacks.registry import make_zero_shot
from apdm.core.errors import UserError
from apdm.faces import load_encoder
from apdm.families import Family, load_family
from apdm.portraits import PIPELINE
from tools.portraits.train_adapter import adapter_state, new_adapter


@pytest.fixture(scope="module")
def family() -> Family:
    return load_family(PIPELINE)


@pytest.fixture
def untrained(family: Family, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    state = new_adapter(family.denoiser, 128)
    flat = {f"{part}.{key}": value.contiguous() for part, values in state.items() for key, value in values.items()}
    save_file(flat, tmp_path / "adapter.safetensors")
    return tmp_path / "adapter.safetensors"


def attack(path: Path, **changes: object) -> FaceIDAdapter:
    return FaceIDAdapter(**{"path": path, "encoder": load_encoder("portrait-a"), **changes})


def test_diffusers_loads_the_file_and_what_is_loaded_can_be_written_again(untrained: Path):
    pipeline = StableDiffusionPipeline.from_pretrained(PIPELINE, local_files_only=True)
    pipeline.load_ip_adapter(str(untrained.parent), subfolder="", weight_name=untrained.name, image_encoder_folder=None)
    again, known = adapter_state(pipeline.unet), load_file(untrained)
    assert again.keys() == known.keys()
    assert all(torch.equal(again[key], known[key].half()) for key in known)


def test_the_photo_decides_and_without_guidance_too(family: Family, untrained: Path):
    adapter = attack(untrained)
    attacked = adapter.with_adapter(family)
    one, other = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).split(1)
    for guidance in (1.0, 3.0):
        options = {"seed": 5, "num_inference_steps": 2, "guidance_scale": guidance, "batch_size": 2}
        first, again, second = (
            adapter.run(attacked, photo, ["a photo of a person"] * 3, **options) for photo in (one, one, other)
        )
        assert first.shape == (3, 3, 64, 64)
        assert torch.equal(first, again) and not torch.equal(first, second)


def test_without_guidance_pictures_are_those_of_hardly_any(family: Family, untrained: Path):
    """Above 1 the denoiser is also asked without prompt and face, and the answer counts for nothing near 1."""
    adapter = attack(untrained)
    attacked, photo = adapter.with_adapter(family), torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    options = {"seed": 5, "num_inference_steps": 2}
    pictures = [adapter.run(attacked, photo, ["a face"] * 2, guidance_scale=g, **options) for g in (1.0, 1 + 1e-6)]
    torch.testing.assert_close(*pictures, rtol=0, atol=1e-4)


def test_at_scale_nothing_the_adapter_changes_nothing_and_the_model_never_does(family: Family, untrained: Path):
    options = {"seed": 5, "num_inference_steps": 2, "guidance_scale": 3.0}
    plain = family.sample(["a photo of a person"], **options)
    adapter = attack(untrained, scale=0.0)
    silent = adapter.run(adapter.with_adapter(family), torch.rand(1, 3, 64, 64), ["a photo of a person"], **options)
    torch.testing.assert_close(silent, plain, rtol=0, atol=1e-5)
    assert torch.equal(family.sample(["a photo of a person"], **options), plain)
    assert family.denoiser.encoder_hid_proj is None


def test_it_draws_like_every_zero_shot_attack_and_is_made_by_name(family: Family, untrained: Path):
    given = {"path": untrained, "encoder": load_encoder("portrait-a")}
    adapter, photos = make_zero_shot("faceid:scale=0.5", **given), torch.rand(2, 3, 64, 64)
    assert adapter == attack(untrained, scale=0.5, encoder=given["encoder"]) and adapter.assumes
    options = {"seed": 5, "num_inference_steps": 2, "guidance_scale": 3.0}
    drawn = adapter.draw(family, photos, ["a photo of a person"] * 3, **options)
    expected = adapter.run(adapter.with_adapter(family), photos, ["a photo of a person"] * 3, **options)
    assert torch.equal(drawn, expected) and family.denoiser.encoder_hid_proj is None


def test_several_photos_are_one_identity(untrained: Path):
    adapter, photos = attack(untrained), torch.rand(3, 3, 64, 64)
    identity = adapter.identity(photos)
    assert identity.shape == (128,) and identity.norm().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(adapter.identity(photos[:1]), adapter.encoder.embed(photos[:1])[0], rtol=0, atol=1e-5)


def test_on_the_larger_model_the_photo_decides_too_and_the_files_lora_is_applied(
    families: Callable[[str], Family], tmp_path: Path
):
    """Published files bring a LoRA of every attention layer, numbered like the layers."""
    family = families("sdxl")
    torch.manual_seed(0)
    state = new_adapter(family.denoiser, 128)
    plain, lora = state["ip_adapter"], {}
    for i, name in enumerate(family.denoiser.attn_processors):
        layer = family.denoiser.get_submodule(name.removesuffix(".processor"))
        for part, linear in (("q", layer.to_q), ("k", layer.to_k), ("v", layer.to_v), ("out", layer.to_out[0])):
            lora[f"{i}.to_{part}_lora.down.weight"] = torch.randn(2, linear.in_features)
            lora[f"{i}.to_{part}_lora.up.weight"] = torch.randn(linear.out_features, 2)
    photos, drawn = torch.rand(2, 3, 64, 64).split(1), {}
    for name, layers in (("plain", plain), ("lora", plain | lora)):
        state["ip_adapter"] = layers
        flat = {f"{part}.{key}": value.contiguous() for part, held in state.items() for key, value in held.items()}
        save_file(flat, tmp_path / f"{name}.safetensors")
        adapter = attack(tmp_path / f"{name}.safetensors")
        attacked, options = (
            adapter.with_adapter(family),
            {"seed": 5, "num_inference_steps": 2, "guidance_scale": 3.0},
        )
        drawn[name] = [adapter.run(attacked, photo, ["a photo of a person"], **options) for photo in photos]
        assert not torch.equal(*drawn[name])
    assert (drawn["plain"][0] - drawn["lora"][0]).abs().max() > 1e-3
    assert not any("lora" in name for name in family.denoiser.state_dict())


def test_a_file_that_does_not_fit_is_one_clear_line(
    family: Family, untrained: Path, tmp_path: Path, tiny_pipeline: Path
):
    with pytest.raises(UserError, match="does not exist"):
        attack(tmp_path / "none.safetensors").check(family)
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="is no FaceID or InstantID adapter: it lacks image_proj"):
        attack(tmp_path / "other.safetensors").check(family)
    with pytest.raises(UserError, match="text embeddings of 64 numbers"):
        attack(untrained).check(load_family(tiny_pipeline))
    with pytest.raises(UserError, match="takes embeddings of 128 numbers, portrait-b gives 96"):
        attack(untrained, encoder=load_encoder("portrait-b")).check(family)
