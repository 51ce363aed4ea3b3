"""Single-file checkpoints of every family: what is written loads in diffusers' classes and comes back as it went."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_pipelines import BUILDERS, build_sd3, build_sdxl, clip_config
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from apdm.audit.inputs.models import load_models
from apdm.config import AuditJobConfig, HardenConfig, L2PConfig
from apdm.core.errors import UserError
from apdm.core.files import model_hash, sha256_file
from apdm.export.loading import ways_to_load
from apdm.export.pipeline import check_single_file, export_model
from apdm.families import Family, StableDiffusion3, StableDiffusionXL, load_family
from apdm.jobs.auditing.plan import model_file
from apdm.jobs.harden import harden

pytestmark = pytest.mark.usefixtures("any_flux_width")
FACTS: dict[str, Any] = {"config_hash": "0" * 64, "method": "apdm", "steps": 2}
ALONE: dict[str, Any] = {  # their files hold the transformer alone
    "flux": diffusers.FluxTransformer2DModel,
    "flux2": diffusers.Flux2Transformer2DModel,
    "zimage": diffusers.ZImageTransformer2DModel,
}
EVERY = pytest.mark.parametrize("kind", BUILDERS)
HALF = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])


def unreachable(*_: Any, **__: Any) -> None:
    raise OSError("the Hub cannot be reached")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, any_flux_width: None) -> Any:
    """exported(kind, dtype) -> (a pipeline folder stored in that type, its single file); read them only."""
    made: dict[Any, tuple[Path, Path]] = {}

    def make(kind: str, dtype: torch.dtype = torch.float32) -> tuple[Path, Path]:
        if (kind, dtype) not in made:
            folder = tmp_path_factory.mktemp(kind)
            BUILDERS[kind](folder / "vocabulary").to(dtype=dtype).save_pretrained(folder / "base")
            family = load_family(folder / "base")
            export_model(family, folder / "model", base_path=folder / "base", single_file=True, **FACTS)
            made[kind, dtype] = folder / "base", folder / "model.safetensors"
        return made[kind, dtype]

    return make


def weights(pipeline: Any) -> dict[str, Tensor]:
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": w for name, module in modules.items() for key, w in module.state_dict().items()}


def read_by_diffusers(kind: str, path: Path, base: Path, dtype: torch.dtype) -> Any:
    """The pipeline of a single file, read with diffusers' calls alone."""
    pipeline_class, options = type(load_family(base).pipeline), {"local_files_only": True, "dtype": dtype}
    if kind not in ALONE:
        return pipeline_class.from_single_file(str(path), config=str(base), **options)
    transformer = ALONE[kind].from_single_file(str(path), config=str(base / "transformer"), **options)
    return pipeline_class.from_pretrained(base, transformer=transformer, **options)


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert ours[name].dtype == weight.dtype and torch.equal(ours[name], weight), name


@EVERY
@HALF
def test_diffusers_reads_the_single_file_with_every_weight_of_the_folder(exported, kind: str, dtype: torch.dtype):
    base, path = exported(kind, dtype)
    assert {weight.dtype for weight in load_file(path).values()} == {dtype}
    loaded = read_by_diffusers(kind, path, base, dtype)
    expected = type(loaded).from_pretrained(base, local_files_only=True, dtype=dtype)
    assert not [name for name, weight in weights(loaded).items() if weight.is_meta]
    assert_equal(weights(loaded), weights(expected))


@EVERY
@HALF
def test_a_single_file_becomes_the_family_of_its_folder(exported, kind: str, dtype: torch.dtype):
    base, path = exported(kind, dtype)
    ours, theirs = load_family(path, single_file_config=base), load_family(base)
    assert type(ours) is type(theirs) and ours.origin == path
    assert ours.source == (base if kind in ALONE else None)
    assert {part: ours.dtypes[part] for part in theirs.dtypes} == theirs.dtypes
    assert_equal(weights(ours.pipeline), weights(theirs.pipeline))
    one, other = (
        family.sample(["a photo of person"], seed=0, num_inference_steps=2, height=16, width=16)
        for family in (ours, theirs)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


@EVERY
def test_a_single_file_that_is_hardened_keeps_its_names_shapes_and_types(exported, tmp_path: Path, kind: str):
    base, path = exported(kind, torch.float16)
    family = load_family(path, single_file_config=base)
    with torch.no_grad():
        for weight in family.denoiser.parameters():
            weight.mul_(1.1)
    export_model(family, tmp_path / "model", base_path=path, single_file=True, **FACTS)
    before, after = load_file(path), load_file(tmp_path / "model.safetensors")
    assert {k: (w.shape, w.dtype) for k, w in before.items()} == {k: (w.shape, w.dtype) for k, w in after.items()}
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert changed and (kind in ALONE or all(name.startswith("model.diffusion_model.") for name in changed))
    again = load_family(tmp_path / "model")
    assert type(again) is type(family) and set(again.dtypes.values()) == {torch.float16}
    with safe_open(str(tmp_path / "model.safetensors"), framework="pt") as file:
        assert file.metadata()["apdm.base_sha256"] == model_hash(path)


def test_the_main_job_takes_a_single_file(exported, tmp_path: Path):
    from PIL import Image

    base, path = exported("sdxl")
    (tmp_path / "people/s01").mkdir(parents=True)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "people/s01/0.png")
    config = HardenConfig(
        pretrained_model_name_or_path=str(path),
        single_file_config=str(base),
        instance_data_dir=str(tmp_path / "people"),
        output_dir=str(tmp_path / "hardened"),
        resolution=16,
        num_class_images=1,
        num_inference_steps=1,
        max_train_steps=1,
        num_threads=1,
        l2p=L2PConfig(inner_steps=1),
    )
    hardened: Family = load_family(harden(config).model_dir)
    assert type(hardened.pipeline).__name__ == "StableDiffusionXLPipeline"


# -- what the file says about its prediction -----------------------------------------------------------------


@pytest.fixture
def marked(exported, tmp_path: Path) -> Any:
    """marked(kind, markers, header, **scheduler) -> (a single file with these markers, a folder of configurations)."""

    def make(kind: str, markers: tuple[str, ...], header: dict[str, str], **scheduler: Any) -> tuple[Path, Path]:
        base, path = exported(kind)
        folder = shutil.copytree(base, tmp_path / "config", ignore=shutil.ignore_patterns("*.safetensors"))
        config = folder / "scheduler/scheduler_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | scheduler))
        content = {name: weight for name, weight in load_file(path).items() if weight.numel()}
        save_file(content | dict.fromkeys(markers, torch.empty(0)), tmp_path / "marked.safetensors", metadata=header)
        return tmp_path / "marked.safetensors", folder

    return make


VELOCITY = {"prediction_type": "v_prediction"}
ZERO_SNR = {**VELOCITY, "rescale_betas_zero_snr": True}


@pytest.mark.parametrize(
    ("kind", "markers", "header", "scheduler", "message"),
    [
        ("sdxl", ("v_pred",), {}, {}, "has the entry v_pred"),
        ("sdxl", ("v_pred", "ztsnr"), {}, {}, "has the entry v_pred"),
        ("sdxl", ("v_pred", "ztsnr"), {}, VELOCITY, 'has the entry ztsnr.*no "rescale_betas_zero_snr": true'),
        ("sdxl", ("edm_vpred.sigma_max",), {}, VELOCITY, "noise schedule of EDM"),
        ("sdxl", (), {"modelspec.prediction_type": "v"}, {}, "predicts v_prediction"),
        ("sdxl", (), {"modelspec.prediction_type": "V-Prediction"}, {}, "predicts v_prediction"),
        ("sdxl", (), {"modelspec.prediction_type": "vpred"}, {}, "predicts v_prediction"),
        ("sdxl", (), {"ss_v_parameterization": "True"}, {}, "ss_v_parameterization in the header"),
        ("sd15", ("v_pred",), {}, {}, "has the entry v_pred"),
        ("sd21", ("v_pred",), {}, {"prediction_type": "epsilon"}, "has the entry v_pred"),
        ("sd21", (), {"modelspec.predict_key": "epsilon"}, {}, "predicts epsilon"),
        ("sd3", ("v_pred",), {}, {}, "has the entry v_pred"),
    ],
)
def test_a_file_that_contradicts_its_configuration_is_bad_input(
    marked, kind: str, markers: tuple[str, ...], header: dict[str, str], scheduler: dict[str, Any], message: str
):
    path, config = marked(kind, markers, header, **scheduler)
    with pytest.raises(UserError, match=message):
        load_family(path, single_file_config=config)


def test_a_yaml_file_beside_it_can_contradict_too(marked):
    path, config = marked("sd15", (), {})
    path.with_suffix(".yaml").write_text("model:\n  params:\n    linear_start: 0.00085\n")
    load_family(path, single_file_config=config)
    path.with_suffix(".yaml").write_text("model:\n  params:\n    parameterization: 'v'\n")
    with pytest.raises(UserError, match=r"marked\.yaml says that .* predicts v_prediction"):
        load_family(path, single_file_config=config)


@pytest.mark.parametrize(
    ("kind", "scheduler", "expected"),
    [("sdxl", {}, set()), ("sdxl", VELOCITY, {"v_pred"}), ("sdxl", ZERO_SNR, {"v_pred", "ztsnr"}),
     ("sd21", {}, {"v_pred"}), ("sd3", {}, set())],
)  # fmt: skip
@pytest.mark.parametrize("says", [True, False], ids=["marked", "silent"])
def test_the_exported_file_carries_the_markers_of_what_it_predicts(
    marked, tmp_path: Path, kind: str, scheduler: dict[str, Any], expected: set[str], says: bool
):
    path, config = marked(kind, tuple(expected) if says else (), {}, **scheduler)
    family = load_family(path, single_file_config=config)
    export_model(family, tmp_path / "model", base_path=path, single_file=True, save_variant="fp16", **FACTS)
    exported = load_file(tmp_path / "model.safetensors")
    assert {name for name, weight in exported.items() if not weight.numel()} == expected
    again = load_family(tmp_path / "model.safetensors", single_file_config=tmp_path / "model")
    assert again.training_target == family.training_target


def test_single_files_are_audited_with_the_folder_of_their_configurations(exported, tmp_path: Path):
    base, path = exported("sdxl")
    content = load_file(path)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    save_file({**content, first: content[first] * 2}, tmp_path / "hardened.safetensors")
    paths = {"base": str(path), "hardened": str(tmp_path / "hardened.safetensors")}
    config = AuditJobConfig(
        base=paths["base"], hardened=paths["hardened"], subjects="", output_dir="", single_file_config=str(base)
    )
    models = load_models(paths, single_file_config=config.single_file_config)
    assert model_file(paths["hardened"], models["hardened"]).sha256 == sha256_file(paths["hardened"])
    with pytest.raises(UserError, match="exactly the weights of the base"):
        load_models({**paths, "hardened": str(base)}, single_file_config=str(base))


# -- the file's name and its content -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["X.SAFETENSORS", "x.sft", "0a1b2c3d", "x.ckpt"])
def test_the_content_and_not_the_name_tells_a_safetensors_file(exported, tmp_path: Path, name: str):
    base, path = exported("sd15", torch.float16)
    shutil.copyfile(path, tmp_path / name)
    family = load_family(tmp_path / name, single_file_config=base)
    assert set(family.dtypes.values()) == {torch.float16}
    assert_equal(weights(family.pipeline), weights(load_family(base).pipeline))
    torch.save(load_file(path), tmp_path / "y.safetensors")
    with pytest.raises(UserError, match=r"y\.safetensors is a pickle, which can run code"):
        load_family(tmp_path / "y.safetensors", single_file_config=base)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"), (b"<html>", "a web page"),
     (b"GGUF\x03\0\0\0" + bytes(64), "GGUF"), (b"hello, world", "neither a safetensors file nor a PyTorch")],
)  # fmt: skip
@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt"])
def test_a_file_that_is_no_model_is_called_what_it_is(
    exported, tmp_path: Path, name: str, content: bytes, message: str
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_family(tmp_path / name, single_file_config=exported("sd15")[0], allow_pickle=True)


def test_a_checkpoint_in_a_pickle_is_recognised_by_its_weights(exported, tmp_path: Path, monkeypatch):
    torch.save({"state_dict": load_file(exported("sd15")[1])}, tmp_path / "x.ckpt")
    monkeypatch.setattr(diffusers.loaders.single_file, "_download_diffusers_model_config_from_hub", unreachable)
    with pytest.raises(UserError, match="name its pipeline's folder with --single_file_config"):
        load_family(tmp_path / "x.ckpt", allow_pickle=True)
    with pytest.raises(UserError, match="holds a StableDiffusionPipeline, but .* is a StableDiffusionXLPipeline"):
        load_family(tmp_path / "x.ckpt", single_file_config=exported("sdxl")[0], allow_pickle=True)


def test_a_file_of_other_weights_is_no_whole_pipeline(exported, tmp_path: Path):
    base, path = exported("sdxl")
    content = load_file(path)
    parts = {
        "lora": {"lora_unet_down_blocks_0.lora_up.weight": torch.ones(2, 2)},
        "unet": {name: weight for name, weight in content.items() if name.startswith("model.diffusion_model.")},
        "refiner": {name.replace("embedders.1", "embedders.0"): weight for name, weight in content.items()},
    }
    for name, part in parts.items():
        save_file(part, tmp_path / f"{name}.safetensors")
        with pytest.raises(UserError, match="is no single file of stable-diffusion-xl"):
            load_family(tmp_path / f"{name}.safetensors", single_file_config=base)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    save_file({**content, first: content[first].repeat(1, 2, 1, 1)}, tmp_path / "more.safetensors")
    with pytest.raises(UserError, match=r"more\.safetensors: the unet takes 8 channels and the VAE gives 4"):
        load_family(tmp_path / "more.safetensors", single_file_config=base)


def test_a_folder_of_configurations_is_checked_before_the_file_is_read(exported, tmp_path: Path):
    base, path = exported("sd15")
    with pytest.raises(UserError, match="single_file_config /nowhere is no folder"):
        load_family(path, single_file_config="/nowhere")
    folder = shutil.copytree(base, tmp_path / "config", ignore=shutil.ignore_patterns("*.safetensors", "vocab*"))
    (folder / "tokenizer/tokenizer.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"vocab\.json is missing"):  # transformers would know three words
        load_family(path, single_file_config=folder)


# -- what does not fit ---------------------------------------------------------------------------------------


def test_a_single_file_that_cannot_be_read_is_bad_input(exported, tmp_path: Path):
    base, path = exported("sdxl")
    other, _ = exported("sd3")
    with pytest.raises(UserError, match="holds a StableDiffusionXLPipeline, but .* is a StableDiffusion3Pipeline"):
        load_family(path, single_file_config=other)
    pickle = tmp_path / "model.ckpt"
    torch.save({}, pickle)
    with pytest.raises(UserError, match=r"model\.ckpt is a pickle.*--allow_pickle"):
        load_family(pickle, single_file_config=base)
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"cut\.safetensors is damaged"):
        load_family(tmp_path / "cut.safetensors", single_file_config=base)
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="no single file of a known model"):
        load_family(tmp_path / "a.safetensors")


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "first_stage_model.", "conditioner.embedders.1."])
def test_a_single_file_with_a_weight_missing_is_bad_input_and_not_random(exported, tmp_path: Path, prefix: str):
    base, path = exported("sdxl")
    content = load_file(path)
    del content[next(name for name in sorted(content, reverse=True) if name.startswith(prefix))]
    save_file(content, tmp_path / "less.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"less\.safetensors"):
        load_family(tmp_path / "less.safetensors", single_file_config=base)


def test_without_a_configuration_and_without_the_hub_the_option_is_named(exported, monkeypatch):
    monkeypatch.setattr(diffusers.loaders.single_file, "_download_diffusers_model_config_from_hub", unreachable)
    with pytest.raises(UserError, match="name its pipeline's folder with --single_file_config"):
        load_family(exported("sdxl")[1])


def test_what_a_loader_could_not_tell_apart_is_refused_before_long_work(tmp_path: Path):
    xl = StableDiffusionXL(build_sdxl(tmp_path))
    check_single_file(xl)
    config = clip_config(xl.pipeline.tokenizer, hidden_size=32, projection_dim=40, hidden_act="gelu")
    xl.pipeline.register_modules(text_encoder_2=CLIPTextModelWithProjection(config))
    with pytest.raises(UserError, match="two text encoders of one width"):
        check_single_file(xl)
    sd3 = StableDiffusion3(build_sd3(tmp_path))
    check_single_file(sd3)
    torch.nn.init.normal_(sd3.pipeline.text_encoder.text_projection.weight)
    with pytest.raises(UserError, match="no place for the first text encoder's projection"):
        check_single_file(sd3)
    unnamed = type("Unnamed", (StableDiffusion3,), {"single_file_layout": None})
    with pytest.raises(UserError, match="the family stable-diffusion-3 has no layout for a single file"):
        check_single_file(unnamed(sd3.pipeline))
    sd3.pipeline.register_modules(text_encoder=sd3.pipeline.text_encoder_3)
    with pytest.raises(UserError, match="not this T5EncoderModel"):
        check_single_file(sd3)
    with pytest.raises(UserError, match="text encoders are of other kinds"):
        StableDiffusion3(sd3.pipeline)


def test_two_weights_of_one_shape_that_change_places_do_not_fit(tmp_path: Path):
    layout, first = StableDiffusionXL.single_file_layout, "model.diffusion_model.input_blocks.1.0."

    def swapped(state: Any, config: Any) -> dict[str, Tensor]:
        made, one, other = (
            layout.denoiser_weights(state, config),
            f"{first}in_layers.2.bias",
            f"{first}out_layers.3.bias",
        )
        return {**made, one: made[other], other: made[one]}

    changed = {"single_file_layout": replace(layout, denoiser_weights=swapped)}
    with pytest.raises(UserError, match="this UNet2DConditionModel does not fit a single file"):
        check_single_file(type("Changed", (StableDiffusionXL,), changed)(build_sdxl(tmp_path)))


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_a_pickle_is_read_where_it_is_allowed(exported, tmp_path: Path, name: str):
    base, path = exported("sd15")
    torch.save({"state_dict": load_file(path)}, tmp_path / name)
    family = load_family(tmp_path / name, single_file_config=base, allow_pickle=True)
    assert_equal(weights(family.pipeline), weights(load_family(base).pipeline))
    assert family.dtypes == load_family(path, single_file_config=base).dtypes


def test_a_single_file_without_t5_is_read_back_and_draws(tmp_path: Path):
    build_sd3(tmp_path / "vocabulary", with_t5=False).save_pretrained(tmp_path / "base")
    family = load_family(tmp_path / "base")
    export_model(family, tmp_path / "model", base_path=tmp_path / "base", single_file=True, **FACTS)
    again = load_family(tmp_path / "model.safetensors", single_file_config=tmp_path / "model")
    assert again.pipeline.text_encoder_3 is None
    assert_equal(weights(again.pipeline), weights(family.pipeline))
    for way in ways_to_load(again, tmp_path / "model", name="model", single_file=[None]):
        assert way.load(tmp_path).tokenizer_3 is None
        assert "text_encoder_3=None, tokenizer_3=None" in way.code()


def test_the_folder_of_configurations_needs_no_weights(exported, tmp_path: Path):
    base, path = exported("sd3")
    bare = shutil.copytree(base, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    assert_equal(weights(load_family(path, single_file_config=bare).pipeline), weights(load_family(base).pipeline))
