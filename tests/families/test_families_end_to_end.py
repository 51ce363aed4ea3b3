"""Every family on disk and from photos to pictures: what is exported, and the whole job end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline
from PIL import Image
from real_assets import ASSETS, needs_assets
from safetensors.torch import load_file
from tiny_pipelines import BUILDERS

from apdm.attacks import Material
from apdm.attacks.dreambooth import DreamBooth
from apdm.attacks.parts.batches import probe_loss
from apdm.config import HardenConfig, L2PConfig, PerturbConfig
from apdm.config.groups.image_layer import DLADiffConfig, ImageLayerConfig, ZeroShotConfig
from apdm.core.files import list_files
from apdm.core.pictures import to_signed
from apdm.data.subjects import load_images
from apdm.export.pipeline import export_model
from apdm.families import load_family
from apdm.families.encoding import encode_images
from apdm.families.pipeline_folder import stored_dtype
from apdm.jobs.harden import harden
from apdm.jobs.perturb import perturb
from apdm.jobs.planning.resources import drawing_passes

FACTS = {"config_hash": "0" * 64, "method": "apdm", "steps": 2}
SIZE = {"height": 16, "width": 16}  # FLUX has no size of its own
EVERY = pytest.mark.parametrize("kind", BUILDERS)


def passes_of_drawing(family: Any, guidance_scale: float) -> int:
    """Forward passes of the denoiser for two pictures of three steps."""
    passes = []
    hook = family.denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(len(args[0] if args else kwargs["hidden_states"])), with_kwargs=True
    )
    with hook:
        family.sample(["a dog", "a cat"], seed=0, num_inference_steps=3, guidance_scale=guidance_scale, **SIZE)
    return sum(passes)


@EVERY
@pytest.mark.parametrize("guidance_scale", [3.5, 1.0])
def test_a_sampling_step_takes_as_many_passes_as_a_plan_counts(families, kind: str, guidance_scale: float):
    family = families(kind)
    assert passes_of_drawing(family, guidance_scale) == drawing_passes(2, 3, guidance_scale, family)


def test_a_distilled_model_takes_one_pass_whatever_the_guidance(folders):
    family = load_family(folders("flux2"))
    assert passes_of_drawing(family, 3.5) == drawing_passes(2, 3, 3.5, family) == 12
    family.pipeline.register_to_config(is_distilled=True)
    assert passes_of_drawing(family, 3.5) == drawing_passes(2, 3, 3.5, family) == 6


# -- what is written -----------------------------------------------------------------------------------------


def layout(folder: Path) -> dict[str, dict[str, tuple[torch.Size, torch.dtype]]]:
    """Name, shape and type of every tensor in every weight file."""
    return {
        path.relative_to(folder).as_posix(): {k: (w.shape, w.dtype) for k, w in load_file(path).items()}
        for path in list_files(folder)
        if path.suffix == ".safetensors"
    }


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_exported_weights_have_the_names_shapes_and_types_of_the_input_s(folders, tmp_path, kind: str, dtype):
    source = folders(kind)
    if dtype != torch.float32:
        source = tmp_path / "half"
        DiffusionPipeline.from_pretrained(folders(kind), local_files_only=True, dtype=dtype).save_pretrained(source)
    family = load_family(source)
    assert family.denoiser.dtype == torch.float32
    with torch.no_grad():
        for weight in family.denoiser.parameters():
            weight.mul_(1.01)
    export_model(family, tmp_path / "model", base_path=source, **FACTS)
    assert layout(tmp_path / "model") == layout(source)
    names = [path.relative_to(source).as_posix() for path in list_files(source)]
    found = [path.relative_to(tmp_path / "model").as_posix() for path in list_files(tmp_path / "model")]
    assert sorted(found) == sorted([*names, "README.md"])
    weights = layout(source)  # configurations lose the path that they were loaded from
    changed = {name for name in weights if (source / name).read_bytes() != (tmp_path / "model" / name).read_bytes()}
    assert changed == {f"{family.denoiser_name}/diffusion_pytorch_model.safetensors"}
    assert f"{type(family.pipeline).__name__}.from_pretrained" in (tmp_path / "model/README.md").read_text()


def test_what_is_judged_in_memory_is_what_ships_in_half_precision(folders, tmp_path):
    half = tmp_path / "half"
    DiffusionPipeline.from_pretrained(folders("sd3"), local_files_only=True, dtype=torch.bfloat16).save_pretrained(half)
    family = load_family(half)
    with torch.no_grad():
        for weight in family.denoiser.parameters():
            weight.add_(torch.randn_like(weight) * 1e-3)
    before = family.denoiser.proj_out.weight.clone()
    family.round_weights()
    assert not torch.equal(family.denoiser.proj_out.weight, before)
    family.save(tmp_path / "model")
    shipped = load_family(tmp_path / "model").denoiser.state_dict()
    assert all(torch.equal(weight, shipped[name]) for name, weight in family.denoiser.state_dict().items())


def test_a_folder_that_has_only_a_half_precision_variant_is_exported_with_the_same_weights_as_that_variant(
    folders, tmp_path
):
    pipeline = DiffusionPipeline.from_pretrained(folders("sdxl"), local_files_only=True, dtype=torch.float16)
    pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    load_family(tmp_path / "half", variant="fp16").save(tmp_path / "model")
    assert layout(tmp_path / "model") == layout(tmp_path / "half")
    again = DiffusionPipeline.from_pretrained(tmp_path / "model", variant="fp16", local_files_only=True)
    assert torch.equal(again.text_encoder_2.text_projection.weight, pipeline.text_encoder_2.text_projection.weight)
    assert torch.equal(again.unet.conv_in.weight, pipeline.unet.conv_in.weight)


def test_the_float_type_of_files_is_the_widest_of_their_weights(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2).half(), "b": torch.arange(3)}, tmp_path / "a.safetensors")
    save_file({"a": torch.ones(2).bfloat16()}, tmp_path / "b.safetensors")
    assert stored_dtype([tmp_path / "a.safetensors"]) == torch.float16
    assert stored_dtype([tmp_path / "a.safetensors", tmp_path / "b.safetensors"]) == torch.float32
    assert stored_dtype([]) is None


# -- end to end ----------------------------------------------------------------------------------------------


def options(source: Path, people: Path, output: Path) -> dict[str, Any]:
    return {
        "pretrained_model_name_or_path": str(source),
        "instance_data_dir": str(people),
        "output_dir": str(output),
        "resolution": 16,
        "num_class_images": 2,
        "num_inference_steps": 2,
        "num_threads": 1,
    }


def probes_of_an_attack(folder: Path, people: Path) -> list[float]:
    """DreamBooth on the subject's photos: the error on fixed draws of them, before and after."""
    model = load_family(folder)
    photos = encode_images(model, load_images(sorted((people / "s01").glob("*.png")), 16))
    attack = DreamBooth(
        instance_prompt="a photo of sks person",
        class_prompt="a photo of person",
        max_train_steps=8,
        train_batch_size=4,
        learning_rate=1e-3,
    )
    attacked = attack.run(model, Material(photos, class_images=photos[:1])).model
    return [
        probe_loss(attacked_model, photos, attack.instance_prompt, draws=32) for attacked_model in (model, attacked)
    ]


@EVERY
def test_photos_become_a_hardened_model_that_loads_draws_and_is_attacked(
    folders, noise_people, tmp_path, any_flux_width: None, kind: str
):
    source = folders(kind)
    base = load_family(source)
    config = HardenConfig(
        **options(source, noise_people, tmp_path / "hardened"),
        max_train_steps=2,
        learning_rate=1e-3,
        l2p=L2PConfig(inner_steps=2, learning_rate=1e-3),
        single_file=base.single_file_layout is not None,
    )
    model = harden(config).model_dir
    start, end = base.denoiser.state_dict(), load_family(model).denoiser.state_dict()
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert len(moved) > len(start) // 2
    pipeline = DiffusionPipeline.from_pretrained(model, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(prompt="a photo of person", **SIZE, num_inference_steps=2, output_type="np").images
    assert picture.shape == (1, 16, 16, 3) and np.isfinite(picture).all()
    assert (tmp_path / "hardened/model.safetensors").is_file() == config.single_file
    before, after = probes_of_an_attack(model, noise_people)
    assert after < before


@EVERY
def test_photos_are_protected_against_every_family(folders, noise_people, tmp_path, kind: str):
    short = DLADiffConfig(static_steps=1, rounds=1, attention_steps=1, conditional_steps=1, surrogate_steps=1)
    layer = ImageLayerConfig(dladiff=short, zero_shot=ZeroShotConfig(enabled=False))
    output = perturb(
        PerturbConfig(**options(folders(kind), noise_people, tmp_path / "photos"), image_layer=layer)
    ).output_dir
    rows = json.loads((output / "perturbation.json").read_text())["photos"]
    assert len(rows) == 3
    for name in ("0.png", "1.png", "2.png"):
        clean, changed = (
            np.asarray(Image.open(f / "s01" / name)).astype(int) for f in (noise_people, output / "images")
        )
        assert 0 < np.abs(clean - changed).max() <= 7


# -- the real latent spaces ----------------------------------------------------------------------------------


@needs_assets
@pytest.mark.parametrize(("kind", "space"), [("sd15", "sd1"), ("sdxl", "sdxl"), ("sd3", "sd3")])
def test_in_the_real_latent_spaces_photos_survive_and_models_are_hardened(tmp_path, kind: str, space: str):
    """TAESD stands in for the VAE: it knows the real space of each family, at its real factor of 8."""
    vae = AutoencoderTiny(latent_channels=16 if kind == "sd3" else 4)
    weights = load_file(ASSETS / "vae" / f"taesd-{space}-fp8.safetensors")
    vae.load_state_dict({name: weight.float() for name, weight in weights.items()}, strict=True)
    pipeline = BUILDERS[kind](tmp_path / "vocabulary")
    pipeline.register_modules(vae=vae)
    type(pipeline)(**pipeline.components, **EXTRAS.get(kind, {})).save_pretrained(tmp_path / "base")
    family = load_family(tmp_path / "base")
    photo = sorted((ASSETS / "photos/faces/f01").glob("*.jpg"))[0]
    image = to_signed(load_images([photo], 256))
    with torch.no_grad():
        posterior = family.posterior(image)
        error = (family.decode(posterior.mean) - (image / 2 + 0.5)).square().mean()
    assert posterior.mean.shape[2:] == (32, 32) and posterior.std.abs().max() == 0
    assert -10 * error.log10() > 25
    assert 0.3 < posterior.mean.std() < 3  # the denoiser's scale

    people = tmp_path / "people/s01"
    people.mkdir(parents=True)
    Image.open(photo).resize((64, 64)).save(people / "0.png")
    changes = {"resolution": 64, "max_train_steps": 1, "l2p": L2PConfig(inner_steps=1)}
    config = HardenConfig(**options(tmp_path / "base", people.parent, tmp_path / "hardened") | changes)
    hardened = load_family(harden(config).model_dir)
    assert isinstance(hardened.pipeline.vae, AutoencoderTiny)
    assert hardened.sample(["a dog"], seed=0, num_inference_steps=1).shape == (1, 3, 64, 64)


EXTRAS = {"sd15": {"requires_safety_checker": False}}
