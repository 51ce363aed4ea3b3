"""Folders of pipelines that are damaged, incomplete or of another kind: one line says what is wrong."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from apdm.core.errors import UserError
from apdm.families import load_family

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copied(tiny_pipeline, tmp_path):
    return shutil.copytree(tiny_pipeline, tmp_path / "copied")


@pytest.mark.parametrize(
    "missing",
    ["model_index.json", "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json",
     "tokenizer/tokenizer_config.json", "text_encoder/config.json", UNET, "text_encoder/model.safetensors"],
)  # fmt: skip
def test_a_missing_file_is_named(copied, missing):
    (copied / missing).unlink()
    wanted = missing if missing.endswith(".json") else missing.split("/")[0]
    with pytest.raises(UserError) as error:
        load_family(copied)
    assert wanted in str(error.value) and str(copied) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_folder_of_a_part_is_named(copied):
    shutil.rmtree(copied / "unet")
    with pytest.raises(UserError, match="unet/config.json is missing"):
        load_family(copied)


def test_a_missing_vocabulary_is_named(copied):
    for path in (copied / "tokenizer").glob("*"):
        if path.name != "tokenizer_config.json":
            path.unlink()
    with pytest.raises(UserError, match="tokenizer"):
        load_family(copied)


def test_an_index_without_a_part_is_refused(copied):
    index = json.loads((copied / "model_index.json").read_text())
    index["unet"] = [None, None]
    (copied / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="names no unet"):
        load_family(copied)


def test_weights_that_come_only_as_a_pickle_are_refused_unless_allowed(copied):
    weights = load_file(copied / UNET)
    (copied / UNET).unlink()
    torch.save(weights, copied / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.bin is a pickle.*--allow_pickle"):
        load_family(copied)
    family = load_family(copied, allow_pickle=True)
    assert torch.equal(family.denoiser.conv_in.bias, weights["conv_in.bias"])
    family.save(copied.parent / "saved")
    assert not list((copied.parent / "saved").rglob("*.bin"))
    assert torch.equal(load_family(copied.parent / "saved").denoiser.conv_in.bias, weights["conv_in.bias"])


def test_a_variant_that_a_part_has_only_as_a_pickle_is_refused_or_read_and_kept(copied, tmp_path):
    for path in sorted(copied.glob("*/*.safetensors")):
        half = {name: (weight * 1.5).half() for name, weight in load_file(path).items()}
        name = "pytorch_model" if path.stem == "model" else path.stem
        torch.save(half, path.with_name(f"{name}.fp16.bin"))
    with pytest.raises(
        UserError, match=r"fp16\.bin is a pickle.*no safetensors file of the variant fp16; leave --vari"
    ):
        load_family(copied, variant="fp16")
    family = load_family(copied, variant="fp16", allow_pickle=True)
    expected = StableDiffusionPipeline.from_pretrained(copied, variant="fp16", local_files_only=True)
    family.save(tmp_path / "saved")
    again = load_family(tmp_path / "saved")
    assert set(again.dtypes.values()) == {torch.float16}
    for part in ("unet", "vae", "text_encoder"):
        for name, weight in getattr(expected, part).state_dict().items():
            for loaded in (family, again):
                assert torch.equal(getattr(loaded.pipeline, part).state_dict()[name], weight.float())


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin"])
def test_weights_from_a_pickle_are_saved_in_the_float_type_that_they_had(copied, name):
    weights = {key: weight.half() for key, weight in load_file(copied / UNET).items()}
    (copied / UNET).unlink()
    torch.save(weights, copied / "unet" / name)
    (copied / "unet/scheduler.bin").write_bytes(b"what a training has left")
    family = load_family(copied, allow_pickle=True, variant="fp16" if "fp16" in name else None)
    assert family.denoiser.dtype == torch.float32
    family.save(copied.parent / "saved")
    assert load_file(copied.parent / "saved" / UNET)["conv_in.bias"].dtype == torch.float16


@pytest.mark.parametrize("broken", ["model_index.json", "unet/config.json", UNET, "text_encoder/model.safetensors"])
def test_a_truncated_file_is_a_user_error_of_one_line(copied, broken):
    (copied / broken).write_bytes((copied / broken).read_bytes()[:40])
    with pytest.raises(UserError) as error:
        load_family(copied)
    assert str(copied) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("part", "values"),
    [("unet", {"block_out_channels": [8, 32]}), ("vae", {"block_out_channels": [8, 32]}),
     ("text_encoder", {"hidden_size": 64}), ("text_encoder", {"num_hidden_layers": 3})],
)  # fmt: skip
def test_weights_that_do_not_fit_their_configuration_are_a_user_error(copied, part, values):
    path = copied / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(UserError, match=str(copied)):
        load_family(copied)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_with_a_tensor_missing_are_a_user_error_and_not_random(copied, part):
    (path,) = (copied / part).glob("*.safetensors")
    weights = load_file(path)
    del weights[sorted(weights)[3]]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{part} lack 1 tensor"):
        load_family(copied)


def test_a_denoiser_with_a_tensor_that_its_config_has_no_place_for_is_refused(copied):
    (path,) = (copied / "unet").glob("*.safetensors")
    more = {"time_embedding.cond_proj.weight": torch.zeros(2, 2)}  # as in a model distilled to few steps
    save_file(load_file(path) | more, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"unet have 1 tensor that its config\.json has no place for, .*cond_proj"):
        load_family(copied)


def test_names_of_earlier_versions_in_the_other_parts_are_read_as_before(copied, tiny_pipeline):
    """The files of Stable Diffusion 1.5: text encoders had their positions, and attention of VAEs had other names."""
    (encoder,) = (copied / "text_encoder").glob("*.safetensors")
    positions = {"text_model.embeddings.position_ids": torch.arange(16)[None]}
    save_file(load_file(encoder) | positions, encoder, metadata={"format": "pt"})
    (vae,) = (copied / "vae").glob("*.safetensors")
    earlier = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    weights = load_file(vae)
    for now, then in earlier.items():
        weights = {name.replace(now, then): weight for name, weight in weights.items()}
    assert weights.keys() != load_file(vae).keys()
    save_file(weights, vae, metadata={"format": "pt"})
    older, newer = (load_family(folder).pipeline for folder in (copied, tiny_pipeline))
    for part in ("text_encoder", "vae"):
        expected = getattr(newer, part).state_dict()
        found = getattr(older, part).state_dict()
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_is_no_pipeline_folder_is_said_to_be_none(tmp_path, tiny_pipeline):
    with pytest.raises(UserError, match="no such folder"):
        load_family(tmp_path / "nothing")
    with pytest.raises(UserError, match="not a diffusers pipeline folder"):
        load_family(tmp_path)
    with pytest.raises(UserError, match="single file"):
        load_family(tiny_pipeline / UNET)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [("model_index.json", {"_class_name": "CogView4Pipeline"}, "CogView4Pipeline"),
     ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "prediction_type is 'sample'"),
     ("model_index.json", {"vae": ["diffusers", "NoSuchAutoencoder"]}, "NoSuchAutoencoder")],
)  # fmt: skip
def test_an_unsupported_pipeline_is_refused(copied, file, values, message):
    content = json.loads((copied / file).read_text())
    (copied / file).write_text(json.dumps(content | values))
    with pytest.raises(UserError, match=message):
        load_family(copied)
