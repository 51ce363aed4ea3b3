"""Tiny pipelines laid out as the published ones: file names, names and types of tensors, and entries of configurations.

They are made from the pipelines of `tiny_pipelines`. What is special of each published model stands in `PUBLISHED`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig

Weights = dict[str, Tensor]
BETAS: dict[str, Any] = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
}
PNDM: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
PNDM |= BETAS | {"trained_betas": None, "clip_sample": False}
EULER: dict[str, Any] = BETAS | {"interpolation_type": "linear", "prediction_type": "epsilon", "sample_max_value": 1.0}
EULER |= {"set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "clip_sample": False}
EULER |= {"trained_betas": None, "use_karras_sigmas": False}
DEIS: dict[str, Any] = BETAS | {
    "algorithm_type": "deis",
    "solver_type": "logrho",
    "solver_order": 2,
    "lower_order_final": True,
}
DEIS |= {
    "_class_name": "DEISMultistepScheduler",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "trained_betas": None,
}
DEIS |= {"dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0, "set_alpha_to_one": False, "thresholding": False}
DEIS |= {"skip_prk_steps": True, "use_karras_sigmas": False, "timestep_spacing": "leading", "clip_sample": False}
FLOW: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
CHECKER = ("stable_diffusion", "StableDiffusionSafetyChecker")
NONE = (None, None)


@dataclass(frozen=True, kw_only=True)
class Published:
    """What is special of a published pipeline.

    Args:
        kind: the tiny pipeline that it is made from.
        version: of diffusers, in all its configurations.
        scheduler: the content of scheduler_config.json.
        index: further entries of model_index.json.
        absent: entries that its model_index.json lacks.
        old_vae: whether the attention of its VAE has the names of diffusers before 0.17.
        positions: whether its CLIP models hold their positions, as files of transformers before 4.31 do.
        checker: whether it has a safety checker.
        dtypes: the float types of parts that are not stored in float32.
        variants: {variant: the parts that have such files}.
        sharded: parts in two files.
        entries: {part: further entries of its config.json}.
        beside: names of files in it that are no part of the pipeline.
    """

    kind: str
    version: str
    scheduler: Mapping[str, Any]
    index: Mapping[str, Any] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    old_vae: bool = False
    positions: bool = False
    checker: bool = False
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sharded: tuple[str, ...] = ()
    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    beside: tuple[str, ...] = ()


SD_PARTS = ("unet", "vae", "text_encoder", "safety_checker")
XL_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
PICKLES = tuple(
    f"{part}/{'diffusion_' * (part in ('unet', 'vae'))}pytorch_model{middle}.bin"
    for part in SD_PARTS
    for middle in ("", ".fp16")
)
HALF = {part: torch.float16 for part in XL_PARTS}
BRAIN = {part: torch.bfloat16 for part in ("transformer", "vae", "text_encoder", "text_encoder_2")}
EOS: dict[str, Any] = {"eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1, "torch_dtype": "float32"}

PUBLISHED: dict[str, Published] = {
    "stable-diffusion-v1-5": Published(
        kind="sd15",
        version="0.6.0",
        scheduler=PNDM,
        index={"feature_extractor": ("transformers", "CLIPImageProcessor"), "safety_checker": CHECKER},
        absent=("image_encoder", "requires_safety_checker"),
        old_vae=True,
        positions=True,
        checker=True,
        variants={"fp16": SD_PARTS, "non_ema": ("unet",)},
        entries={"text_encoder": EOS},
        beside=(*PICKLES, "unet/diffusion_pytorch_model.non_ema.bin", "v1-5-pruned.ckpt", "v1-inference.yaml"),
    ),
    "openjourney": Published(
        kind="sd15",
        version="0.9.0.dev0",
        scheduler=PNDM | {"prediction_type": "epsilon"},
        index={"feature_extractor": ("transformers", "CLIPFeatureExtractor"), "safety_checker": CHECKER}
        | {"requires_safety_checker": True},
        absent=("image_encoder",),
        old_vae=True,
        positions=True,
        checker=True,
        entries={"text_encoder": EOS},
    ),
    "dreamshaper-8": Published(
        kind="sd15",
        version="0.19.0.dev0",
        scheduler=DEIS,
        index={"feature_extractor": ("transformers", "CLIPFeatureExtractor"), "safety_checker": CHECKER}
        | {"requires_safety_checker": True},
        checker=True,
        dtypes=dict.fromkeys(SD_PARTS, torch.float16),
        variants={"fp16": SD_PARTS},
        entries={"text_encoder": EOS | {"torch_dtype": "float16"}},
    ),
    "stable-diffusion-2-1": Published(
        kind="sd21",
        version="0.10.0.dev0",
        scheduler={**BETAS, "_class_name": "DDIMScheduler", "clip_sample": False, "prediction_type": "v_prediction"}
        | {"set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None},
        index={"feature_extractor": ("transformers", "CLIPImageProcessor"), "requires_safety_checker": False},
        absent=("image_encoder",),
        old_vae=True,
        positions=True,
        variants={"fp16": ("unet", "vae", "text_encoder")},
        entries={"text_encoder": EOS, "unet": {"dual_cross_attention": False, "upcast_attention": True}},
        beside=("LICENSE.md", "text_encoder/pytorch_model.bin", "v2-1_768-ema-pruned.ckpt"),
    ),
    "stable-diffusion-xl-base-1.0": Published(
        kind="sdxl",
        version="0.19.0.dev0",
        scheduler=EULER | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"},
        index={"add_watermarker": None, "force_zeros_for_empty_prompt": True},
        absent=("image_encoder", "feature_extractor"),
        positions=True,
        variants={"fp16": XL_PARTS},
        entries={"text_encoder": EOS | {"torch_dtype": "float16"}, "text_encoder_2": EOS | {"torch_dtype": "float16"}},
        beside=(
            *("text_encoder/flax_model.msgpack", "text_encoder/model.onnx", "text_encoder/openvino_model.bin"),
            *("text_encoder/openvino_model.xml", "text_encoder_2/model.onnx_data", "unet/diffusion_flax_model.msgpack"),
            *("unet/openvino_model.bin", "vae_1_0/config.json", "vae_1_0/diffusion_pytorch_model.safetensors"),
            *("vae_decoder/config.json", "vae_decoder/model.onnx", "LICENSE.md", "01.png"),
            *("sd_xl_base_1.0.safetensors", "sd_xl_offset_example-lora_1.0.safetensors"),
        ),
    ),
    "sdxl-turbo": Published(
        kind="sdxl",
        version="0.24.0.dev0",
        scheduler=EULER | {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"},
        index={"force_zeros_for_empty_prompt": True},
        dtypes=HALF,
        variants={"fp16": XL_PARTS},
        entries={"text_encoder": EOS | {"torch_dtype": "float16"}, "text_encoder_2": EOS | {"torch_dtype": "float16"}},
    ),
    "stable-diffusion-3-medium-diffusers": Published(
        kind="sd3",
        version="0.29.0.dev0",
        scheduler=FLOW,
        index={"tokenizer_3": ("transformers", "T5TokenizerFast")},
        absent=("image_encoder", "feature_extractor"),
        dtypes=dict.fromkeys(("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"), torch.float16),
        variants={"fp16": ("text_encoder", "text_encoder_2", "text_encoder_3")},
        sharded=("text_encoder_3",),
        entries={"text_encoder": EOS | {"torch_dtype": "float16"}},
        beside=("LICENSE",),
    ),
    "stable-diffusion-3.5-large": Published(
        kind="sd3",
        version="0.30.3.dev0",
        scheduler=FLOW,
        index={"tokenizer_3": ("transformers", "T5TokenizerFast")},
        dtypes={"transformer": torch.bfloat16, "vae": torch.bfloat16}
        | dict.fromkeys(("text_encoder", "text_encoder_2", "text_encoder_3"), torch.float16),
        variants={"fp16": ("text_encoder", "text_encoder_2", "text_encoder_3")},
        sharded=("transformer", "text_encoder_3"),
        beside=("sd3.5_large.safetensors", "text_encoders/clip_g.safetensors", "text_encoders/t5xxl_fp16.safetensors"),
    ),
    "FLUX.1-schnell": Published(
        kind="flux",
        version="0.30.0.dev0",
        scheduler=FLOW
        | {"shift": 1.0, "base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096}
        | {"max_shift": 1.15, "use_dynamic_shifting": False},
        index={"tokenizer_2": ("transformers", "T5TokenizerFast")},
        absent=("image_encoder", "feature_extractor"),
        dtypes=BRAIN,
        sharded=("transformer", "text_encoder_2"),
        entries={"text_encoder": EOS | {"torch_dtype": "bfloat16"}},
        beside=("ae.safetensors", "flux1-schnell.safetensors", "schnell_grid.jpeg"),
    ),
    "FLUX.2-klein-4B": Published(
        kind="flux2",
        version="0.37.0.dev0",
        scheduler=FLOW | {"use_dynamic_shifting": True},
        index={"is_distilled": True, "tokenizer": ("transformers", "Qwen2TokenizerFast")},
        dtypes=BRAIN,
        sharded=("text_encoder",),
        beside=("flux-2-klein-4b.safetensors",),
    ),
    "Z-Image-Turbo": Published(
        kind="zimage",
        version="0.36.0.dev0",
        scheduler=FLOW | {"use_dynamic_shifting": False},
        dtypes={"text_encoder": torch.bfloat16, "vae": torch.bfloat16},
        sharded=("transformer", "text_encoder"),
        beside=("assets/showcase.jpg",),
    ),
}


def publish(name: str, plain: Callable[[str], Path], folder: Path) -> Path:
    """Write the published layout of this name into `folder`.

    Args:
        plain: kind -> the folder of that tiny pipeline; see `tests/conftest.py`.
    """
    facts = PUBLISHED[name]
    shutil.copytree(plain(facts.kind), folder)
    if facts.checker:
        _write_checker(folder)
    if facts.index.get("feature_extractor", NONE) != NONE:
        _write_feature_extractor(folder)
    for path in sorted(folder.glob("*/*.safetensors")):
        _write_weights(path, facts)
    for path in sorted(folder.glob("tokenizer*/tokenizer.json")):
        _write_tokenizer(path, facts.kind)
    for part in sorted(path.parent for path in folder.glob("*/config.json")):
        edit(part / "config.json", "dtype", **({"_diffusers_version": facts.version} if _of_diffusers(part) else {}))
        edit(part / "config.json", **facts.entries.get(part.name, {}))
    scheduler = {"_diffusers_version": facts.version, **facts.scheduler}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    entries = {"_diffusers_version": facts.version, "scheduler": ("diffusers", scheduler["_class_name"]), **facts.index}
    edit(folder / "model_index.json", *facts.absent, **entries)
    for file in facts.beside:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(b"{}")
    return folder


def edit(path: Path, *without: str, **values: Any) -> None:
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in without}))


def _of_diffusers(part: Path) -> bool:
    return "_class_name" in json.loads((part / "config.json").read_text())


def _write_weights(path: Path, facts: Published) -> None:
    part, weights = path.parent.name, load_file(path)
    if part == "vae" and facts.old_vae:
        weights = earlier_vae(weights)
    if part.startswith("text_encoder") and "CLIP" in (path.parent / "config.json").read_text():
        weights = earlier_clip(weights, positions=facts.positions)
    if facts.kind == "zimage" and part == "text_encoder":  # stored as a language model
        weights = {f"model.{name}": weight for name, weight in weights.items()}
    path.unlink()
    _save(path, weights, facts.dtypes.get(part), sharded=part in facts.sharded)
    for variant, parts in facts.variants.items():
        half = torch.float16 if variant == "fp16" else None
        if part in parts:
            _save(path, weights, half, variant=variant, sharded=part in facts.sharded)


def _save(path: Path, weights: Weights, dtype: Any, *, sharded: bool = False, variant: str | None = None) -> None:
    weights = {name: w.to(dtype) if dtype and w.is_floating_point() else w for name, w in weights.items()}
    stem = f"{path.stem}.{variant}" if variant else path.stem
    if not sharded:
        save_file(weights, path.with_name(f"{stem}.safetensors"), metadata={"format": "pt"})
        return
    names, places = sorted(weights), dict[str, str]()
    for number, chosen in enumerate((names[::2], names[1::2]), 1):
        shard = f"{stem}-{number:05d}-of-00002.safetensors"
        save_file({name: weights[name] for name in chosen}, path.with_name(shard), metadata={"format": "pt"})
        places |= dict.fromkeys(chosen, shard)
    middle = f".{variant}" if variant else ""
    index = {"metadata": {"total_size": 1}, "weight_map": dict(sorted(places.items()))}
    path.with_name(f"{path.stem}.safetensors.index{middle}.json").write_text(json.dumps(index))


def earlier_vae(weights: Weights) -> Weights:
    """A VAE's weights by the names that the attention had in diffusers before 0.17."""
    earlier = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    for now, then in earlier.items():
        weights = {name.replace(now, then): weight for name, weight in weights.items()}
    return weights


def earlier_clip(weights: Weights, *, positions: bool) -> Weights:
    """The weights of a CLIP text model as all published files have them: with the level that transformers 5.6 dropped.

    Args:
        positions: whether to add the positions, which transformers before 4.31 stored.
    """
    of_text = ("embeddings.", "encoder.", "final_layer_norm.")
    found = {f"text_model.{name}" if name.startswith(of_text) else name: w for name, w in weights.items()}
    length = found["text_model.embeddings.position_embedding.weight"].shape[0]
    return found | ({"text_model.embeddings.position_ids": torch.arange(length)[None]} if positions else {})


def _write_tokenizer(path: Path, kind: str) -> None:
    """CLIP's tokenizers are published as a list of words and one of merges."""
    model = json.loads(path.read_text())["model"]
    if kind in ("flux2", "zimage") or model["type"] != "BPE":
        return
    config = json.loads(path.with_name("tokenizer_config.json").read_text())
    (path.parent / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    (path.parent / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    added = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    special = {name: config[name] for name in ("bos_token", "eos_token", "unk_token")}
    (path.parent / "special_tokens_map.json").write_text(
        json.dumps({**special, "pad_token": "!" if path.parent.name == "tokenizer_2" else config["pad_token"]})
    )
    old: dict[str, Any] = {name: {**added, "content": token} for name, token in special.items()}
    old |= {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "tokenizer_class": "CLIPTokenizer"}
    old |= {"pad_token": config["pad_token"], "model_max_length": config["model_max_length"]}
    old |= {"name_or_path": "openai/clip-vit-large-patch14"}
    path.with_name("tokenizer_config.json").write_text(json.dumps(old))
    path.unlink()


def _write_checker(folder: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    picture = {"image_size": 28, "patch_size": 14}
    config = CLIPConfig(text_config=sizes, vision_config=sizes | picture, projection_dim=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        checker = StableDiffusionSafetyChecker(config)
    checker.save_pretrained(folder / "safety_checker")
    path = folder / "safety_checker/model.safetensors"
    deeper = re.compile(r"^vision_model\.(?!vision_model)")
    weights = {deeper.sub("vision_model.vision_model.", name): weight for name, weight in load_file(path).items()}
    weights["vision_model.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(weights, path, metadata={"format": "pt"})


def _write_feature_extractor(folder: Path) -> None:
    (folder / "feature_extractor").mkdir()
    preprocessor: dict[str, Any] = {
        "crop_size": 28,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "resample": 3,
    }
    preprocessor |= {"feature_extractor_type": "CLIPFeatureExtractor", "size": 28, "do_convert_rgb": True}
    preprocessor |= {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    (folder / "feature_extractor/preprocessor_config.json").write_text(json.dumps(preprocessor))
