"""The parts of the miniature world's training that can be wrong without anybody seeing it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from apdm.config import HardenConfig, load_config
from apdm.portraits import PIPELINE
from tools.portraits.attacks import nominal
from tools.portraits.train_adapter import AdapterTraining, adapter_state, cross_attentions
from tools.portraits.train_pipeline import coarse_error, new_autoencoder, new_scheduler, normalise

ROOT = Path(__file__).parents[2]


def test_normalised_latents_have_mean_0_and_variance_1_and_decode_as_before() -> None:
    torch.manual_seed(0)
    vae = new_autoencoder().double().eval()
    pixels = torch.randint(256, (16, 32, 32, 3), dtype=torch.uint8)
    before = copy.deepcopy(vae)
    images = pixels.permute(0, 3, 1, 2).double() / 127.5 - 1
    with torch.no_grad():
        posterior = before.encode(images).latent_dist
        normalise(vae, posterior.mean, posterior.std)
        after = vae.encode(images).latent_dist
        power = after.mean.var(dim=(0, 2, 3)) + after.std.square().mean(dim=(0, 2, 3))
        assert torch.allclose(after.mean.mean(dim=(0, 2, 3)), torch.zeros(4).double(), atol=1e-9)
        assert torch.allclose(power, torch.ones(4).double(), atol=1e-9)
        assert torch.allclose(vae.decode(after.mean).sample, before.decode(posterior.mean).sample, atol=1e-9)
    assert vae.config.scaling_factor == 1.0


def test_the_coarse_error_of_white_noise_is_that_of_its_pixels_and_of_a_constant_its_size() -> None:
    white = torch.randn(4000, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    assert abs(coarse_error(white).mean().item() - 2) < 0.05  # 1 for each of the two scales
    assert torch.allclose(coarse_error(torch.full((2, 4, 16, 16), 0.5)), torch.full((2,), 0.25 * (4**2 + 16**2)))
    checkered = torch.ones(1, 4, 16, 16)
    checkered[..., ::2] = -1
    assert coarse_error(checkered).item() == 0


def test_the_last_step_of_the_schedule_hides_the_picture_and_sampling_starts_there() -> None:
    scheduler = new_scheduler()
    scheduler.set_timesteps(15)
    assert scheduler.timesteps[0] == 999
    assert scheduler.config.prediction_type == "epsilon"
    assert scheduler.alphas_cumprod[-1].sqrt() < 0.035


def test_the_card_measures_the_attack_that_the_configuration_calls_nominal() -> None:
    arguments = ["--config", str(ROOT / "configs/portrait.yaml"), "--instance_data_dir", "people"]
    config = load_config(HardenConfig, arguments)
    attack: Any = nominal("dreambooth")
    assert attack.max_train_steps == config.audit.nominal_step
    for name in ("learning_rate", "train_batch_size", "prior_loss_weight"):
        assert getattr(attack, name) == getattr(config.audit, name)
    assert (attack.instance_prompt, attack.class_prompt) == (config.instance_prompt, config.class_prompt)


def test_the_adapter_alone_is_trained_and_on_another_photo_of_the_same_person(tmp_path: Path) -> None:
    torch.manual_seed(0)
    training = AdapterTraining(StableDiffusionPipeline.from_pretrained(PIPELINE, local_files_only=True), tmp_path, 8)
    unet, trained = training.pipeline.unet, set(map(id, training.parameters))
    assert all((id(parameter) in trained) == parameter.requires_grad for parameter in unet.parameters())
    training.loss(0, batch=16).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in training.parameters)
    alike = (training.embeddings @ training.embeddings.T).fill_diagonal_(-1)
    assert all(alike[i, i ^ 1] > 0.5 for i in range(16))
    state = adapter_state(unet)
    assert any(key.startswith("image_proj.proj.0") for key in state)
    assert sum(key.startswith("ip_adapter.") for key in state) == 2 * len(cross_attentions(unet))
