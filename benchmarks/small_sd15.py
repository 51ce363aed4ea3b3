"""A small Stable Diffusion 1.5 for real photos: real blocks and a real latent space, trained on the spot.

No weights of Stable Diffusion are needed. The U-Net has 1.5's blocks with few channels, TAESD is the VAE, and a small
CLIP text encoder with a vocabulary of its own reads the prompts. After a short training on a few photos the model draws
something of their colours and shapes. It is good for trying the software on photos. It tells nothing about protection
in the real Stable Diffusion.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from apdm.core.pictures import to_signed
from apdm.data.subjects import load_images

WORDS = (
    "a",
    "photo",
    "portrait",
    "of",
    "sks",
    "person",
    "man",
    "woman",
    "cat",
    "dog",
    "clock",
    "teapot",
    "toy",
    "bowl",
)
TOKENS = 16  # of a prompt, at most
WIDTH = 64  # of the text embeddings
CHANNELS = (16, 32, 64, 128)  # 1.5 has (320, 640, 1280, 1280)
LEFT_OUT = 0.1  # share of the captions that are left out in training, for classifier-free guidance


def build_pipeline(taesd: Path, resolution: int, *, channels: Sequence[int] = CHANNELS, layers: int = 1) -> Any:
    """Build the pipeline. Everything but the VAE has random weights, which are the same in every call.

    Args:
        taesd: TAESD's weights for Stable Diffusion 1, as one .safetensors file.
        resolution: side of the pictures that it draws, in pixels.
        channels: of the U-Net's four blocks.
        layers: ResNets in each of these blocks; 1.5 has 2.
    """
    vae = AutoencoderTiny(latent_channels=4)
    vae.load_state_dict({name: weight.float() for name, weight in load_file(taesd).items()})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = make_tokenizer()
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        unet = UNet2DConditionModel(
            sample_size=resolution // 8,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            block_out_channels=tuple(channels),
            layers_per_block=layers,
            norm_num_groups=8,
            cross_attention_dim=WIDTH,
            attention_head_dim=1,
        )
        return StableDiffusionPipeline(
            vae=vae.eval(),
            text_encoder=CLIPTextModel(text).eval(),
            tokenizer=tokenizer,
            unet=unet.eval(),
            scheduler=DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
                prediction_type="v_prediction",  # draws coarse shapes after far fewer training steps than epsilon
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def make_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that knows WORDS whole and spells everything else letter by letter."""
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    symbols = letters + [f"{letter}</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        start, rest = word[0] + ("</w>" if len(word) == 1 else ""), [*word[1:-1], f"{word[-1]}</w>"]
        for part in rest if len(word) > 1 else []:
            merges.append((start, part))
            start += part
            symbols.append(start)
    names = [*symbols, "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return CLIPTokenizer(vocab=vocabulary, merges=list(dict.fromkeys(merges)), model_max_length=TOKENS)


@torch.no_grad()
def encode_photos(pipeline: Any, photos: Mapping[str, Iterable[Path]], resolution: int) -> dict[str, Tensor]:
    """{caption: latents [N, 4, R / 8, R / 8]} of photos {caption: files}, as squares of R pixels."""
    images = {caption: to_signed(load_images(list(files), resolution)) for caption, files in photos.items()}
    return {
        caption: torch.cat([pipeline.vae.encode(image[None]).latents for image in pixels])
        for caption, pixels in images.items()
    }


def train(
    pipeline: Any,
    latents: Mapping[str, Tensor],
    steps: int,
    *,
    batch_size: int = 4,
    learning_rate: float = 2e-3,
    seed: int = 0,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train the U-Net to draw the photos for their captions.

    Args:
        pipeline: the pipeline; its U-Net is trained in place.
        latents: {caption: latents of its photos}, from `encode_photos`. They may be smaller than those that the
            pipeline draws; a training that begins with small ones learns the coarse shapes sooner.
        steps: training steps.
        batch_size: photos in each step.
        learning_rate: the highest; it falls to 0 in a straight line.
        seed: of all draws.
        progress: is told the number of each step and its loss.
    """
    generator = torch.Generator().manual_seed(seed)
    unet, scheduler = pipeline.unet.train(), pipeline.scheduler
    captions = [caption for caption, group in latents.items() for _ in group]
    pictures = torch.cat(list(latents.values()))
    prompts = embed_prompts(pipeline, ["", *latents])
    rows = torch.tensor([1 + list(latents).index(caption) for caption in captions])
    optimizer = torch.optim.AdamW(unet.parameters(), learning_rate, betas=(0.9, 0.99), weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 20) * (1 - step / steps))
    for step in range(steps):
        chosen = torch.randint(len(pictures), (batch_size,), generator=generator)
        times = torch.randint(len(scheduler.alphas_cumprod), (batch_size,), generator=generator)
        noise = torch.randn(batch_size, *pictures.shape[1:], generator=generator)
        left_out = torch.rand(batch_size, generator=generator) < LEFT_OUT
        given = prompts[rows[chosen].masked_fill(left_out, 0)]
        seen = scheduler.add_noise(pictures[chosen], noise, times)
        target = scheduler.get_velocity(pictures[chosen], noise, times)
        loss = (unet(seen, times, given).sample - target).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress(step, loss.item())
    unet.eval()


@torch.no_grad()
def embed_prompts(pipeline: Any, prompts: Sequence[str]) -> Tensor:
    """Embeddings `[N, TOKENS, WIDTH]` of the prompts."""
    tokens = pipeline.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids
    embeddings: Tensor = pipeline.text_encoder(tokens)[0]
    return embeddings
