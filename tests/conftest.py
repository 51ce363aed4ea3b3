"""Fixtures shared by all tests: a Stable Diffusion pipeline of the real classes at toy size, and float64."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WORDS = ("a", "photo", "of", "sks", "person", "portrait", "dog", "the", "man", "woman")


@pytest.fixture
def float64() -> Iterator[None]:
    """New tensors and modules are float64 for the length of the test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """A byte-level CLIP tokenizer that knows WORDS whole and spells everything else letter by letter."""
    letters = [chr(code) for code in range(33, 127)]
    symbols = letters + [letter + "</w>" for letter in letters]
    merges: list[str] = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            if (merge := f"{parts[0]} {parts[1]}") not in merges:
                merges.append(merge)
            parts = [parts[0] + parts[1], *parts[2:]]
            symbols.extend(parts[:1])
    vocab = {s: i for i, s in enumerate(dict.fromkeys([*symbols, "<|startoftext|>", "<|endoftext|>"]))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=16, local_files_only=True)


def build_pipeline(folder: Path, prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    """Real classes with random weights: 16x16 pictures, 4x8x8 latents, prompts of at most 16 tokens."""
    tokenizer = write_tokenizer(folder / "vocabulary")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            latent_channels=4,
            sample_size=16,
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=32,
            attention_head_dim=4,
        )
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=CLIPTextModel(text),
            tokenizer=tokenizer,
            unet=unet,
            scheduler=DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
                prediction_type=prediction_type,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


@pytest.fixture(scope="session")
def make_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_pipeline(prediction_type="epsilon") -> a fresh folder with such a pipeline in it."""

    def make(prediction_type: str = "epsilon") -> Path:
        folder = tmp_path_factory.mktemp("pipeline")
        build_pipeline(folder, prediction_type).save_pretrained(folder / "model")
        return folder / "model"

    return make


@pytest.fixture(scope="session")
def tiny_pipeline(make_pipeline: Callable[..., Path]) -> Path:
    """The folder of one tiny epsilon pipeline, written once per session: read it, never write into it."""
    return make_pipeline()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """folders(kind) -> the folder of that pipeline, written once: read it, never write into it."""
    written: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        from tiny_pipelines import BUILDERS

        if kind not in written:
            written[kind] = tmp_path_factory.mktemp(kind) / "model"
            BUILDERS[kind](written[kind].parent).save_pretrained(written[kind])
        return written[kind]

    return folder


@pytest.fixture(scope="session")
def families(folders: Callable[[str], Path]) -> Callable[[str], Any]:
    """families(kind) -> that pipeline loaded, once: read it, never change it."""
    loaded: dict[str, Any] = {}

    def family(kind: str) -> Any:
        if kind not in loaded:
            from apdm.families import load_family

            loaded[kind] = load_family(folders(kind))
        return loaded[kind]

    return family


@pytest.fixture(scope="session")
def noise_people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One subject with three photos of noise."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("people") / "subjects"
    (folder / "s01").mkdir(parents=True)
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / "s01" / f"{number}.png")
    return folder
