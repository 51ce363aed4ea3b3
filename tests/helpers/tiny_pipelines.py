"""Pipelines of the real classes at toy size for every family: 16x16 pictures, latents of 8x8, random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from apdm.portraits import PIPELINE

WORDS = ("a", "photo", "of", "sks", "person", "portrait", "dog", "the", "man", "woman")
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def write_tokenizer(folder: Path, *, miniature: bool = True) -> CLIPTokenizer:
    """A byte-level CLIP tokenizer that takes 16 tokens: the miniature world's, by which models of that world are known.

    The other one knows WORDS whole and spells everything else letter by letter.
    """
    vocab, merges = _miniature_words() if miniature else _plain_words()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=16, local_files_only=True)


def _miniature_words() -> tuple[dict[str, int], list[str]]:
    model = json.loads((PIPELINE / "tokenizer" / "tokenizer.json").read_text())["model"]
    return model["vocab"], [" ".join(pair) for pair in model["merges"]]


def _plain_words() -> tuple[dict[str, int], list[str]]:
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
    return {s: i for i, s in enumerate(dict.fromkeys([*symbols, "<|startoftext|>", "<|endoftext|>"]))}, merges


def clip_config(tokenizer: Any, **changes: Any) -> CLIPTextConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return CLIPTextConfig(**{"vocab_size": len(tokenizer), "max_position_embeddings": 16, **sizes, **tokens, **changes})


def t5_config(width: int) -> T5Config:
    return T5Config(
        vocab_size=128, d_model=width, d_ff=32, d_kv=8, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu"
    )


def qwen_config(tokenizer: Any, **sizes: Any) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        **sizes,
    )


def small_vae(kind: Any = AutoencoderKL, **changes: Any) -> Any:
    sizes = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "latent_channels": 4,
        "sample_size": 16,
    }
    return kind(**{**sizes, **changes})


def small_unet(**changes: Any) -> UNet2DConditionModel:
    sizes = {
        "sample_size": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
    }
    return UNet2DConditionModel(**{**sizes, **changes})


def build_pipeline(
    folder: Path, prediction_type: str = "epsilon", *, miniature: bool = True
) -> StableDiffusionPipeline:
    """As 1.5: 16x16 pictures, 4x8x8 latents, prompts of at most 16 tokens. Always the same random weights."""
    tokenizer = write_tokenizer(folder / "vocabulary", miniature=miniature)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae, unet = small_vae(), small_unet()
        encoder = CLIPTextModel(clip_config(tokenizer, intermediate_size=37))
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(
            **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction_type
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_sd21(folder: Path, *, miniature: bool = True) -> StableDiffusionPipeline:
    """As 2.1-768: v-prediction, linear projections, an OpenCLIP text encoder of width 1024 with GELU."""
    pipeline = build_pipeline(folder, "v_prediction", miniature=miniature)
    wide = {"hidden_size": 1024, "num_hidden_layers": 1, "hidden_act": "gelu"}
    encoder = CLIPTextModel(clip_config(pipeline.tokenizer, **wide))
    unet = small_unet(cross_attention_dim=1024, use_linear_projection=True, attention_head_dim=(2, 4))
    pipeline.register_modules(text_encoder=encoder, unet=unet)
    return pipeline


def build_sdxl(folder: Path, *, miniature: bool = True) -> StableDiffusionXLPipeline:
    """As the base model: blocks of several transformer layers, two encoders of different width, size conditions."""
    tokenizer = write_tokenizer(folder / "vocabulary", miniature=miniature)
    second = clip_config(tokenizer, hidden_size=40, projection_dim=40, hidden_act="gelu")
    unet = small_unet(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        layers_per_block=2,
        use_linear_projection=True,
        cross_attention_dim=72,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=40 + 6 * 8,
    )
    return StableDiffusionXLPipeline(
        vae=small_vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=CLIPTextModel(clip_config(tokenizer)),
        text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )


def t5_tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -3.0) for word in WORDS if len(word) > 1]
    pieces += [(chr(code), -6.0) for code in range(33, 127)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=16)


def build_sd3(folder: Path, *, with_t5: bool = True, miniature: bool = True) -> StableDiffusion3Pipeline:
    """As 3.5 medium: dual attention in the first block, normalised queries and keys, three text encoders."""
    tokenizer = write_tokenizer(folder / "vocabulary", miniature=miniature)
    first = clip_config(tokenizer, hidden_size=32, projection_dim=32)
    second = clip_config(tokenizer, hidden_size=40, projection_dim=40, hidden_act="gelu")
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=80,
        caption_projection_dim=32,
        pooled_projection_dim=72,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    encoder = CLIPTextModelWithProjection(first)
    torch.nn.init.eye_(encoder.text_projection.weight)  # as in the release
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=small_vae(
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=encoder,
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer_2=tokenizer,
        text_encoder_3=T5EncoderModel(t5_config(80)) if with_t5 else None,
        tokenizer_3=t5_tokenizer() if with_t5 else None,
    )


def build_flux(folder: Path, *, miniature: bool = True) -> FluxPipeline:
    """As dev: guidance as a condition, double and single blocks, sigmas shifted by size when sampling."""
    tokenizer = write_tokenizer(folder / "vocabulary", miniature=miniature)
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=small_vae(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=CLIPTextModel(clip_config(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(t5_config(24)),
        tokenizer_2=t5_tokenizer(),
    )


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def qwen_tokenizer(*, miniature: bool = True) -> Qwen2Tokenizer:
    """A byte-level tokenizer as Qwen's, which knows WORDS whole. The miniature world's words can come first."""
    vocab = dict(_miniature_words()[0]) if miniature else {}
    symbols, merges = sorted(bytes_to_unicode().values()), list[tuple[str, str]]()
    for word in ("user", "assistant", *(f"Ġ{word}" for word in WORDS), *WORDS):
        start = word[0]
        for letter in word[1:]:
            if (merge := (start, letter)) not in merges:
                merges.append(merge)
            start += letter
            symbols.append(start)
    for symbol in (*symbols, "<|endoftext|>"):
        vocab.setdefault(symbol, len(vocab))
    extra = {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "chat_template": CHAT}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, model_max_length=2048, **extra)
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


def build_flux2(folder: Path, *, miniature: bool = True) -> Flux2KleinPipeline:
    """As klein's base model: guided by the empty prompt, statistics of latents, states of a language model's layers."""
    tokenizer = qwen_tokenizer(miniature=miniature)
    transformer = Flux2Transformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    text = qwen_config(
        tokenizer,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=28,  # the pipeline reads the states after 9, 18 and 27 layers
        num_attention_heads=1,
        initializer_range=0.2,  # so that tokens change what follows them
        tie_word_embeddings=True,
    )
    vae = small_vae(AutoencoderKLFlux2, latent_channels=16)
    torch.nn.init.normal_(vae.bn.running_mean)
    torch.nn.init.uniform_(vae.bn.running_var, 0.5, 3.0)
    return Flux2KleinPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=vae,
        text_encoder=Qwen3ForCausalLM(text),
        tokenizer=tokenizer,
    )


def build_zimage(folder: Path, *, miniature: bool = True) -> ZImagePipeline:
    """As the release: refiners of picture and of prompt before the joint blocks, prompts read by a language model."""
    tokenizer = qwen_tokenizer(miniature=miniature)
    transformer = ZImageTransformer2DModel(
        in_channels=16,
        dim=24,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=3,
        n_kv_heads=3,
        cap_feat_dim=16,
        axes_dims=[4, 2, 2],
        axes_lens=[640, 32, 32],
    )
    torch.nn.init.normal_(transformer.x_pad_token)
    torch.nn.init.normal_(transformer.cap_pad_token)
    text = qwen_config(tokenizer, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    return ZImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=small_vae(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=Qwen3Model(text),
        tokenizer=tokenizer,
    )


def seeded(build: Callable[..., Any]) -> Callable[..., Any]:
    """The same weights at every call, whatever was drawn before."""

    def built(folder: Path, **options: Any) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return build(folder, **options)

    return built


BUILDERS: dict[str, Callable[..., Any]] = {
    "sd15": build_pipeline,
    "sd21": seeded(build_sd21),
    "sdxl": seeded(build_sdxl),
    "sd3": seeded(build_sd3),
    "flux": seeded(build_flux),
    "flux2": seeded(build_flux2),
    "zimage": seeded(build_zimage),
}
