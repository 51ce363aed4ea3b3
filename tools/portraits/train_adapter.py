"""Training of the FaceID adapter, which turns an identity embedding into tokens that the denoiser attends to.

The adapter has the parts and the file format of diffusers' IP-Adapter FaceID (decoupled cross-attention, Ye et al.
2023), so that `load_ip_adapter` can load it. The denoiser is not trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from apdm.core.pictures import as_images
from apdm.faces.portrait import PortraitEncoder
from apdm.portraits.people import TRAIN_PEOPLE
from tools.portraits.train_encoders import fit
from tools.portraits.train_pipeline import coarse_error, posteriors, reworded
from tools.portraits.training_sets import load_or_render

ENCODER = "portrait-a"
TOKENS = 4  # the only number that diffusers accepts for FaceID
GENERIC = "a photo of a person"  # the caption that says nothing about the person


def new_adapter(unet: UNet2DConditionModel, dimension: int, hidden: int = 4) -> dict[str, dict[str, Tensor]]:
    """The weights of an untrained adapter: an embedding becomes 4 tokens, which become keys and values.

    As in IP-Adapter, the matrices for keys and values start as those of the prompt. The first layer is scaled so that a
    unit vector acts as a standard normal one.

    Args:
        unet: the denoiser.
        dimension: length of the identity embedding.
        hidden: width of the hidden layer, as a multiple of `dimension`.
    """
    width, wide = unet.config.cross_attention_dim, hidden * dimension
    first, second = nn.Linear(dimension, wide), nn.Linear(wide, TOKENS * width)
    first.weight.data *= dimension**0.5
    projection = {"proj.0": first, "proj.2": second, "norm": nn.LayerNorm(width)}
    state: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, layer in projection.items():
        state["image_proj"] |= {f"{name}.{key}": value.detach() for key, value in layer.state_dict().items()}
    for key_id, attention in cross_attentions(unet):
        for part in ("to_k", "to_v"):
            state["ip_adapter"][f"{key_id}.{part}_ip.weight"] = getattr(attention, part).weight.detach().clone()
    return state


def cross_attentions(unet: UNet2DConditionModel) -> list[tuple[int, Any]]:
    """The cross-attention layers with the numbers that the file format gives them: 1, 3, 5 and so on."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]
    return [(2 * i + 1, unet.get_submodule(name)) for i, name in enumerate(names)]


def adapter_state(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The weights of the adapter that is loaded in `unet`, by their names in the file, in half precision."""
    layer = unet.encoder_hid_proj.image_projection_layers[0]
    names = {"ff.net.0.proj": "proj.0", "ff.net.2": "proj.2", "norm": "norm"}
    state = {
        f"image_proj.{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value
        for key, value in layer.state_dict().items()
    }
    for key_id, attention in cross_attentions(unet):
        for part in ("to_k_ip", "to_v_ip"):
            state[f"ip_adapter.{key_id}.{part}.weight"] = getattr(attention.processor, part)[0].weight
    return {key: value.detach().half().contiguous() for key, value in state.items()}


def train_adapter(work_dir: Path, directory: Path, *, steps: int = 4000) -> dict[str, Tensor]:
    """Train the adapter on 24,000 people with two photos each.

    It gets the embedding of one photo of a person and learns to draw the other one.

    Args:
        work_dir: the work folder with the training sets.
        directory: the pipeline.
        steps: training steps.

    Returns:
        The weights, as in `adapter_state`.
    """
    training = AdapterTraining(StableDiffusionPipeline.from_pretrained(directory), work_dir)
    fit(training.parameters, training.loss, steps=steps, learning_rate=1e-3, name="adapter")
    return adapter_state(training.pipeline.unet)


class AdapterTraining:
    """The pipeline with an untrained adapter as its only trainable part, and the training loss.

    Half of the captions say nothing about the person, so that the adapter must use the embedding. One embedding in ten
    is zero, for guidance. An identity loss on decoded predictions was tried and left out: it raised the likeness for
    the adapter's own encoder, but not for the other one.

    Args:
        pipeline: the pipeline, into which the adapter is loaded.
        work_dir: the work folder with the training sets.
        people: how many people to train on.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, work_dir: Path, people: int = 24_000) -> None:
        self.pipeline = pipeline
        self.process = DDPMScheduler.from_config(pipeline.scheduler.config)
        data = load_or_render(work_dir, "people", range(TRAIN_PEOPLE.start, TRAIN_PEOPLE.start + people), 2)
        pixels, self.captions, encoder = torch.as_tensor(data.pixels), data.captions, PortraitEncoder(ENCODER)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            self.mean, self.std = (part.float() for part in posteriors(pipeline.vae, pixels))
        with torch.no_grad():
            self.embeddings = torch.cat([encoder.embed(as_images(part)) for part in pixels.split(512)])
        for part in (pipeline.unet, pipeline.text_encoder):
            part.requires_grad_(False)
        untrained = new_adapter(pipeline.unet, self.embeddings.shape[1])
        pipeline.load_ip_adapter(untrained, subfolder="", weight_name="", image_encoder_folder=None)
        self.parameters = [*pipeline.unet.encoder_hid_proj.parameters()]
        for _, attention in cross_attentions(pipeline.unet):
            self.parameters += attention.processor.parameters()
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.rng = np.random.default_rng(12)

    def loss(self, step: int, batch: int = 64) -> Tensor:
        """The denoising loss of a random batch. `step` is not used."""
        index = torch.randint(len(self.mean), (batch,))
        known = self.embeddings[index ^ 1] * (torch.rand(batch, 1) >= 0.1)
        latents = self.mean[index] + self.std[index] * torch.randn_like(self.mean[index])
        noise, timesteps = torch.randn_like(latents), torch.randint(1000, (batch,))
        texts = [GENERIC if self.rng.random() < 0.5 else reworded(self.captions[i], self.rng) for i in index.tolist()]
        tokens = self.pipeline.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        prediction = self.pipeline.unet(
            self.process.add_noise(latents, noise, timesteps),
            timesteps,
            encoder_hidden_states=self.pipeline.text_encoder(tokens)[0],
            added_cond_kwargs={"image_embeds": [known[:, None]]},
        ).sample
        error = prediction - noise
        return error.square().mean() + 0.01 * coarse_error(error).mean()
