"""Bases as users have them: folders of links, files that hold something else than their names say, parts that do not
fit each other. What can be used gives the same model; what cannot is refused in one line before any work.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from safetensors.torch import load_file, save_file

from apdm.core.errors import UserError
from apdm.core.files import model_hash
from apdm.families import load_family
from apdm.families.prompts import own_tokens
from apdm.families.single_file.write import single_file_weights

VAE = "vae/diffusion_pytorch_model.safetensors"
UNET = "unet/diffusion_pytorch_model.safetensors"
VOCABULARY = "tokenizer/tokenizer.json"
INDEX = f"{UNET}.index.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 3438167534\n"
PAGE = "\n<!DOCTYPE html><html><body>Sign in</body></html>"


def edit(path: Path, *without: str, **values: Any) -> None:
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in without}))


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        load_family(path, **options)
    assert "\n" not in str(error.value) and "None" not in str(error.value)
    return str(error.value)


# -- links ---------------------------------------------------------------------------------------------------


def hub_cache(source: Path, cache: Path) -> Path:
    """The snapshot folder of a cache as huggingface_hub makes it: every file is a link into blobs/."""
    snapshot = cache / "snapshots" / "0123abcd"
    (cache / "blobs").mkdir(parents=True)
    for number, path in enumerate(path for path in sorted(source.rglob("*")) if path.is_file()):
        shutil.copyfile(path, cache / "blobs" / str(number))
        link = snapshot / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(cache / "blobs" / str(number), link.parent))
    return snapshot


def test_a_folder_of_links_is_the_model_that_it_links_to(folders, tmp_path: Path):
    plain, links = folders("sd15"), tmp_path / "links"
    links.mkdir()
    for entry in sorted(plain.iterdir()):
        (links / entry.name).symlink_to(entry)
    snapshot = hub_cache(plain, tmp_path / "models--org--name")
    expected = load_family(plain).denoiser.state_dict()
    for folder in (links, snapshot):
        family = load_family(folder)
        assert model_hash(folder) == model_hash(plain)
        assert all(torch.equal(weight, expected[name]) for name, weight in family.denoiser.state_dict().items())
        family.save(tmp_path / "saved")
        assert not [path for path in (tmp_path / "saved").rglob("*") if path.is_symlink()]


def test_a_cache_or_a_part_in_place_of_the_pipeline_is_told_where_the_pipeline_is(folders, tmp_path: Path):
    snapshot = hub_cache(folders("sd15"), tmp_path / "models--org--name")
    for folder in (tmp_path / "models--org--name", snapshot.parent, snapshot / "unet"):
        assert f"name {snapshot}" in refusal(folder)


@pytest.mark.parametrize("gone", ["model_index.json", UNET, "text_encoder/model.safetensors", VOCABULARY])
def test_a_link_that_leads_nowhere_is_called_one(folders, tmp_path: Path, gone: str):
    snapshot = hub_cache(folders("sd15"), tmp_path / "models--org--name")
    (snapshot / gone).resolve().unlink()
    assert f"{gone} is a link to " in refusal(snapshot)


def test_a_linked_folder_or_file_that_is_gone_is_called_a_link(copied, tmp_path: Path):
    folder = copied("sd15")
    shutil.rmtree(folder / "unet")
    (folder / "unet").symlink_to("unet")  # to itself
    assert "unet is a link to unet" in refusal(folder)
    (tmp_path / "file.safetensors").symlink_to("/nowhere/file.safetensors")
    assert "file.safetensors is a link to /nowhere" in refusal(tmp_path / "file.safetensors")


# -- files that hold something else --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [UNET, "text_encoder/model.safetensors", "vae/config.json", VOCABULARY])
@pytest.mark.parametrize(
    ("content", "message"), [(POINTER, "git lfs pull"), (PAGE, "is a web page"), ("", "is empty")], ids=lambda x: x[:9]
)
def test_a_pointer_a_web_page_and_an_empty_file_are_called_what_they_are(copied, name: str, content: str, message: str):
    folder = copied("sd15")
    (folder / name).write_text(content)
    said = refusal(folder)
    assert str(folder / name) in said and message in said


def test_a_damaged_or_a_foreign_file_is_named(copied):
    folder = copied("sd15")
    weights = load_file(folder / UNET)
    (folder / UNET).write_bytes((folder / UNET).read_bytes()[:-100])
    assert f"{folder / UNET} is damaged" in refusal(folder)
    torch.save(weights, folder / UNET)
    assert f"{folder / UNET} is a pickle, although" in refusal(folder)
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.SAFETENSORS")
    assert "rename it in lower case" in refusal(folder)


def test_shards_and_their_index_belong_together(copied, tmp_path: Path):
    folder = copied("sd15")
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    (folder / UNET).unlink()
    unet.save_pretrained(folder / "unet", max_shard_size="50KB")
    assert load_family(folder).denoiser.dtype == torch.float32
    shard = sorted((folder / "unet").glob("*.safetensors"))[1]
    shard.rename(tmp_path / shard.name)
    assert f"{shard} is missing" in refusal(folder)
    (tmp_path / shard.name).rename(shard)
    index = (folder / INDEX).read_text()
    (folder / INDEX).write_text("{}")
    assert f"{folder / INDEX} has no weight_map" in refusal(folder)
    (folder / INDEX).write_text(index[:20])
    assert f"{folder / INDEX} cannot be read as JSON" in refusal(folder)
    (folder / INDEX).unlink()
    assert "no index of them" in refusal(folder)


def test_quantised_weights_are_refused(copied):
    folder = copied("sd15")
    weights = load_file(folder / UNET)
    save_file({name: (w * 50).to(torch.int8) for name, w in weights.items()}, folder / UNET)
    assert "quantised" in refusal(folder)
    save_file({**weights, "conv_in.scale_weight": torch.ones(1)}, folder / UNET)
    assert "quantised" in refusal(folder)
    save_file(weights, folder / UNET, metadata={"format": "pt"})
    edit(folder / "text_encoder/config.json", quantization_config={"load_in_4bit": True})
    assert "text_encoder/config.json has a quantization_config" in refusal(folder)


@pytest.mark.parametrize("name", [UNET, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(copied, name: str, value: float):
    folder = copied("sd15")
    weights = load_file(folder / name)
    first = sorted(weights)[0]
    weights[first].view(-1)[3] = value
    save_file(weights, folder / name, metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=rf"{name.split('/', maxsplit=1)[0]} has values in .*{first.split('.')[-2]}.* no numbers"
    ):
        load_family(folder)


# -- what model_index.json says ------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["safety_checker", "feature_extractor", "image_encoder"])
@pytest.mark.parametrize("value", [None, "none", False])
def test_a_part_that_is_left_out_wrongly_is_told_how(copied, part: str, value: Any):
    folder = copied("sd15")
    edit(folder / "model_index.json", **{part: value})
    with pytest.raises(UserError, match=rf"{json.dumps(value)} for {part}; write \[null, null\]"):
        load_family(folder)
    edit(folder / "model_index.json", **{part: [None, None]})
    load_family(folder)


def test_an_optional_part_that_was_deleted_can_be_left_out(copied):
    folder = copied("sd15")
    edit(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    assert "or write [null, null] for safety_checker in model_index.json" in refusal(folder)


def test_an_index_without_a_pipeline_class_is_said_to_have_none(copied):
    folder = copied("sd15")
    edit(folder / "model_index.json", "_class_name")
    assert "names no pipeline class" in refusal(folder)


# -- parts that do not fit -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "tokenizer"),
    [("sd15", "tokenizer"), ("sdxl", "tokenizer"), ("sdxl", "tokenizer_2"), ("sd3", "tokenizer")]
    + [("flux", "tokenizer")],
)
@pytest.mark.parametrize("length", [None, 512, 2, -1, "16"])
def test_a_tokenizer_that_makes_more_tokens_than_its_encoder_takes_or_none_is_refused(
    copied, kind: str, tokenizer: str, length: int | str | None
):
    folder = copied(kind)
    edit(folder / tokenizer / "tokenizer_config.json", **{"model_max_length": length})
    with pytest.raises(UserError, match=f'write "model_max_length": 16 into {tokenizer}/tokenizer_config.json'):
        load_family(folder)


def test_a_tokenizer_that_has_room_for_one_word_is_enough(copied):
    folder = copied("sd15")
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=3)
    assert load_family(folder).encode_prompts(["a photo"]).shape == (1, 3, 32)


def test_two_tokenizers_of_different_length_are_refused(copied):
    folder = copied("sdxl")
    edit(folder / "tokenizer_2" / "tokenizer_config.json", model_max_length=8)
    with pytest.raises(UserError, match="tokenizer and tokenizer_2 have different values of model_max_length"):
        load_family(folder)


@pytest.mark.parametrize("kind", ["flux2", "zimage"])
def test_a_tokenizer_without_its_chat_template_is_refused(copied, kind: str):
    folder = copied(kind)
    (folder / "tokenizer/chat_template.jinja").unlink()
    assert "the tokenizer has no chat template; copy the folder tokenizer anew" in refusal(folder)


def test_the_editing_pipelines_of_z_image_are_refused(copied):
    folder = copied("zimage")
    for name in ("ZImageOmniPipeline", "ZImageImg2ImgPipeline"):
        edit(folder / "model_index.json", _class_name=name)
        assert f"names a {name}; name its family with --family, or use one of" in refusal(folder)


def test_flux_2_dev_and_the_editing_pipelines_of_klein_are_refused(copied):
    folder = copied("flux2")
    for name in ("Flux2Pipeline", "Flux2KleinKVPipeline", "Flux2KleinInpaintPipeline"):
        edit(folder / "model_index.json", _class_name=name)
        assert f"names a {name}; name its family with --family, or use one of" in refusal(folder)


def test_a_vae_without_the_statistics_of_its_latents_is_refused(copied):
    folder = copied("flux2")
    weights = load_file(folder / VAE)
    bad = {**weights, "bn.running_var": weights["bn.running_var"] * float("nan")}
    save_file(bad, folder / VAE, metadata={"format": "pt"})
    assert "vae has values in bn.running_var that are no numbers" in refusal(folder)
    del weights["bn.running_mean"]
    save_file(weights, folder / VAE, metadata={"format": "pt"})
    assert "vae lack 1 tensor, for example bn.running_mean" in refusal(folder)
    AutoencoderTiny(latent_channels=16).save_pretrained(folder / "vae")
    edit(folder / "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    assert "no statistics to normalise latents with; use the VAE of FLUX.2" in refusal(folder)


@pytest.mark.parametrize(("kind", "tokenizer"), [("sd3", "tokenizer_3"), ("flux", "tokenizer_2")])
def test_a_t5_s_tokenizer_needs_no_length(copied, kind: str, tokenizer: str):
    folder = copied(kind)
    edit(folder / tokenizer / "tokenizer_config.json", "model_max_length")
    family = load_family(folder)
    assert family.encode_prompts(["a photo"]).isfinite().all()
    assert own_tokens(family, "a photo of sks person", "a photo of person")


def with_denoiser(folder: Path, kind: str, **changes: Any) -> Path:
    classes: dict[str, Any] = {
        "sd3": SD3Transformer2DModel,
        "flux": FluxTransformer2DModel,
        "flux2": Flux2Transformer2DModel,
        "zimage": ZImageTransformer2DModel,
    }
    cls, name = (classes[kind], "transformer") if kind in classes else (UNet2DConditionModel, "unet")
    cls.from_config({**cls.load_config(folder / name), **changes}).save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("sd15", {"time_cond_proj_dim": 16}, "the guidance scale as an input"),
        ("sdxl", {"time_cond_proj_dim": 16}, "the guidance scale as an input"),
        ("sd15", {"num_class_embeds": 10}, r"more than latents and a prompt \(num_class_embeds"),
        ("sd15", {"class_embed_type": "timestep"}, r"more than latents and a prompt \(class_embed_type"),
        ("sd15", {"encoder_hid_dim": 32, "encoder_hid_dim_type": "image_proj"}, "encoder_hid_dim_type"),
        ("sd15", {"in_channels": 9}, "takes 9 channels and the VAE gives 4"),
        ("sdxl", {"in_channels": 8}, "takes 8 channels and the VAE gives 4"),
        ("sd15", {"out_channels": 8}, "takes 4 channels and returns 8"),
        ("sd15", {"cross_attention_dim": 64}, "embeddings of width 64 and the text encoders give width 32"),
        ("sdxl", {"cross_attention_dim": 64}, "embeddings of width 64 and the text encoders give width 72"),
        ("sdxl", {"projection_class_embeddings_input_dim": 100}, "pooled embeddings of width 52"),
        ("sd3", {"in_channels": 4}, "the transformer takes 4 channels and the VAE gives 16"),
        ("sd3", {"joint_attention_dim": 64}, "embeddings of width 64 and the text encoders give width 80"),
        ("sd3", {"pooled_projection_dim": 64}, "pooled embeddings of width 64 and the text encoders give width 72"),
        ("flux", {"in_channels": 128}, "the transformer takes 32 channels and the VAE gives 16"),
        ("flux", {"joint_attention_dim": 32}, "embeddings of width 32 and the text encoders give width 24"),
        ("flux", {"pooled_projection_dim": 64}, "pooled embeddings of width 64 and the text encoders give width 32"),
        ("flux2", {"in_channels": 128}, "the transformer takes 32 channels and the VAE gives 16"),
        ("flux2", {"joint_attention_dim": 32}, "embeddings of width 32 and the text encoders give width 24"),
        ("flux2", {"guidance_embeds": True}, "takes the guidance as an input, as FLUX.2 .dev. does"),
        ("zimage", {"in_channels": 33}, "the transformer takes 33 channels and the VAE gives 16"),
        ("zimage", {"cap_feat_dim": 24}, "embeddings of width 24 and the text encoders give width 16"),
        ("zimage", {"siglip_feat_dim": 8}, "takes pictures as conditions .*; use a text-to-image model"),
    ],
)
def test_a_denoiser_of_another_kind_is_refused_before_any_work(
    copied, kind: str, changes: dict[str, Any], message: str
):
    with pytest.raises(UserError, match=message):
        load_family(with_denoiser(copied(kind), kind, **changes))


def test_a_unet_that_projects_the_text_itself_is_none_of_these(copied):
    folder = with_denoiser(copied("sd15"), "sd15", encoder_hid_dim=32, encoder_hid_dim_type="text_proj")
    assert load_family(folder).sample(["a photo"], seed=0, num_inference_steps=1).isfinite().all()


# -- samplers ------------------------------------------------------------------------------------------------


def to_float8(path: Path) -> dict[str, torch.Tensor]:
    """Write the floats of a file anew in float8 without scales, and return what they are worth in float32."""
    plain = load_file(path)
    small = {name: w.to(torch.float8_e4m3fn) if w.is_floating_point() and w.numel() else w for name, w in plain.items()}
    save_file(small, path, metadata={"format": "pt"})
    return {name: weight.float() for name, weight in small.items()}


@pytest.mark.parametrize("kind", ["sd15", "sd3"])
def test_plain_float8_weights_are_read_as_what_they_are_worth_and_saved_in_float32(
    kind: str, folders: Callable[[str], Path], copied: Callable[[str], Path], tmp_path: Path
) -> None:
    file = tmp_path / "one.safetensors"
    save_file({name: w.contiguous() for name, w in single_file_weights(load_family(folders(kind))).items()}, file)
    to_float8(file)
    folder = copied(kind)
    worth = {path.parent.name: to_float8(path) for path in sorted(folder.glob("*/*.safetensors"))}
    family, single = load_family(folder), load_family(file, single_file_config=folder)
    for name, weights in worth.items():
        for loaded in (family, single):
            found = getattr(loaded.pipeline, name).state_dict()
            assert all(torch.equal(found[key], weight) for key, weight in weights.items() if key in found)
    family.save(tmp_path / "saved")
    (saved,) = (tmp_path / "saved" / family.denoiser_name).glob("*.safetensors")
    assert {weight.dtype for weight in load_file(saved).values()} == {torch.float32}
