"""Every way to load that a model card names draws, whatever the float types and file names of the base are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from model_cards import assert_draws, run_card
from safetensors.torch import load_file
from tiny_pipelines import BUILDERS
from transformers import CLIPConfig, CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from apdm.audit.inputs.models import load_models
from apdm.core.errors import UserError
from apdm.core.files import list_files
from apdm.export.pipeline import export_model
from apdm.families import Family, load_family
from apdm.families.pipeline_folder import stored_dtype
from apdm.jobs.hardening.export import moved_share

pytestmark = pytest.mark.usefixtures("any_flux_width")
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """stored(kind, dtype, variant) -> a pipeline folder with such weights and file names; read it only."""
    made: dict[Any, Path] = {}

    def store(kind: str, dtype: torch.dtype, variant: str | None = None) -> Path:
        if (kind, dtype, variant) not in made:
            folder = tmp_path_factory.mktemp(kind)
            BUILDERS[kind](folder / "vocabulary").to(dtype=dtype).save_pretrained(folder / "base", variant=variant)
            made[kind, dtype, variant] = folder / "base"
        return made[kind, dtype, variant]

    return store


def export(family: Family, root: Path, **options: Any) -> Path:
    """Export a family, whose denoiser is changed as by a hardening, to `root`/model; also as a single file."""
    with torch.no_grad():
        for weight in family.denoiser.parameters():
            weight.mul_(1.01)
    family.round_weights()
    facts: dict[str, Any] = {"base_path": root, "config_hash": "0" * 64, "method": "apdm", "steps": 1}
    facts["base_path"] = family.source or root / "none"
    single_file = family.single_file_layout is not None
    return export_model(family, root / "model", single_file=single_file, **facts, **options)


def modules(pipeline: Any) -> dict[str, Any]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}


def assert_same_weights(one: Any, other: Any) -> None:
    theirs = modules(other)
    for name, module in modules(one).items():
        expected = theirs[name].state_dict()
        for key, weight in module.state_dict().items():
            assert torch.equal(weight.float(), expected[key].float()), f"{name}.{key}"


# -- the card, as it stands ----------------------------------------------------------------------------------


STORED = [(kind, dtype) for kind in BUILDERS for dtype in (torch.float32, torch.float16)]
STORED += [("sd3", torch.bfloat16), ("flux", torch.bfloat16)]


@pytest.mark.parametrize(("kind", "dtype"), STORED, ids=str)
def test_the_cards_code_draws_for_a_base_of_any_float_type(
    stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: torch.dtype
):
    family = load_family(stored(kind, dtype))
    folder = export(family, tmp_path, save_variant="fp16" if dtype == torch.float32 else None)
    pipelines = run_card(tmp_path, monkeypatch)
    single_file = family.single_file_layout is not None
    assert len(pipelines) == 1 + single_file + (dtype == torch.float32)
    assert_same_weights(pipelines[0], family.pipeline)
    assert_same_weights(pipelines[-1], pipelines[-2] if single_file else pipelines[-1])
    assert_draws(type(pipelines[0]).from_pretrained(folder, local_files_only=True))  # without a type


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd3"])
def test_the_cards_code_draws_for_a_base_that_was_a_single_file_in_half_precision(
    stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    base = stored(kind, torch.float16)
    export(load_family(base), tmp_path / "first")
    family = load_family(tmp_path / "first/model.safetensors", single_file_config=base)
    folder = export(family, tmp_path)
    for pipeline in run_card(tmp_path, monkeypatch):
        assert_same_weights(pipeline, family.pipeline)
        assert {module.dtype for module in modules(pipeline).values()} == {torch.float16}
    assert_draws(type(family.pipeline).from_pretrained(folder, local_files_only=True))


def test_a_text_encoder_whose_configuration_asks_for_half_precision_draws_beside_float32(
    stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As Stable Diffusion XL was published: all weights are float32, and the configurations say float16."""
    base = Path(shutil.copytree(stored("sdxl", torch.float32), tmp_path / "base"))
    for part, key in (("text_encoder", "dtype"), ("text_encoder_2", "torch_dtype")):
        config = json.loads((base / part / "config.json").read_text())
        config.pop("dtype")
        (base / part / "config.json").write_text(json.dumps(config | {key: "float16"}))
    export(load_family(base), tmp_path)
    for pipeline in run_card(tmp_path, monkeypatch):
        assert {module.dtype for module in modules(pipeline).values()} == {torch.float32}
    ours, theirs = (
        json.loads((folder / "text_encoder_2/config.json").read_text()) for folder in (tmp_path / "model", base)
    )
    assert ours == theirs | {"torch_dtype": "float32"}


def test_parts_of_different_float_types_keep_them_in_the_folder_and_through_a_single_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pipeline = BUILDERS["sdxl"](tmp_path / "vocabulary").to(dtype=torch.float16)
    pipeline.vae.to(torch.float32)
    pipeline.save_pretrained(tmp_path / "base")
    export(load_family(tmp_path / "base"), tmp_path / "first")
    run_card(tmp_path / "first", monkeypatch)
    again = load_family(tmp_path / "first/model.safetensors", single_file_config=tmp_path / "base")
    expected = dict.fromkeys(("unet", "text_encoder", "text_encoder_2"), torch.float16) | {"vae": torch.float32}
    assert again.dtypes == expected
    folder = export(again, tmp_path)
    run_card(tmp_path, monkeypatch)
    assert load_family(folder).dtypes == expected


def test_a_safety_checker_and_an_image_encoder_come_along_in_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pipeline = BUILDERS["sd15"](tmp_path / "vocabulary")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sight = {**sizes, "image_size": 16, "patch_size": 8, "projection_dim": 8}
    pipeline.register_modules(
        safety_checker=StableDiffusionSafetyChecker(
            CLIPConfig(text_config=sizes, vision_config=sight, projection_dim=8)
        ),
        feature_extractor=CLIPImageProcessor(size=16, crop_size=16),
        image_encoder=CLIPVisionModelWithProjection(CLIPVisionConfig(**sight)),
    )
    pipeline.to(dtype=torch.float16).save_pretrained(tmp_path / "base", variant="fp16")
    family = load_family(tmp_path / "base", variant="fp16")
    export(family, tmp_path)
    folder, single = run_card(tmp_path, monkeypatch)
    assert_same_weights(folder, family.pipeline)
    assert folder.safety_checker.dtype == torch.float16 and single.image_encoder is None


def test_the_t5_of_a_single_file_is_in_evaluation_mode(stored, tmp_path: Path):
    """diffusers alone leaves it in training mode, where dropout draws another prompt every time."""
    folder = export(load_family(stored("sd3", torch.float32)), tmp_path)
    plain = StableDiffusion3Pipeline.from_single_file(
        str(tmp_path / "model.safetensors"), config=str(folder), local_files_only=True
    )
    assert plain.text_encoder_3.training
    assert "pipeline.text_encoder_3.eval()" in (folder / "README.md").read_text()
    ours = load_family(tmp_path / "model.safetensors", single_file_config=folder)
    assert not [name for name, part in modules(ours.pipeline).items() if name != "transformer" and part.training]


# -- variants ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "variant"), [*((kind, "fp16") for kind in BUILDERS), ("flux", "bf16")])
def test_a_base_that_exists_only_as_a_variant_is_exported_as_that_variant(
    stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, variant: str
):
    base = stored(kind, HALF[variant], variant)
    family = load_family(base, variant=variant)
    assert family.saved_variant == variant
    folder = export(family, tmp_path)
    names = {path.relative_to(base) for path in list_files(base)}
    assert {path.relative_to(folder) for path in list_files(folder)} == names | {Path("README.md")}
    for pipeline in run_card(tmp_path, monkeypatch):
        assert_same_weights(pipeline, family.pipeline)
    models = load_models({"base": str(base), "hardened": str(folder)}, variant=variant)
    assert_same_weights(models["hardened"].pipeline, family.pipeline)


def test_sharded_weights_of_a_variant_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pipeline = BUILDERS["sdxl"](tmp_path / "vocabulary").to(dtype=torch.float16)
    pipeline.save_pretrained(tmp_path / "base", variant="fp16", max_shard_size="50KB")
    assert len(list((tmp_path / "base/unet").glob("*.safetensors"))) > 1
    family = load_family(tmp_path / "base", variant="fp16")
    export(family, tmp_path)
    for loaded in run_card(tmp_path, monkeypatch):
        assert_same_weights(loaded, family.pipeline)


@pytest.fixture(scope="module")
def two_vaes(stored, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in float32 whose variant fp16 has another VAE; read it only."""
    folder = tmp_path_factory.mktemp("two") / "base"
    shutil.copytree(stored("sdxl", torch.float32), folder)
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    with torch.no_grad():
        for weight in pipeline.vae.parameters():
            weight.add_(0.05)
    pipeline.to(dtype=torch.float16).save_pretrained(folder.parent / "half", variant="fp16")
    for path in list_files(folder.parent / "half"):
        if path.suffix == ".safetensors":
            shutil.copy(path, folder / path.relative_to(folder.parent / "half"))
    return folder


@pytest.mark.parametrize(("loaded", "saved"), [("fp16", None), (None, "fp16"), ("fp16", "fp16"), (None, None)])
def test_folder_and_single_file_carry_the_vae_of_the_variant_that_they_are(
    two_vaes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: str | None, saved: str | None
):
    export(load_family(two_vaes, variant=loaded), tmp_path, save_variant=saved)
    *_, folder, single = run_card(tmp_path, monkeypatch)
    assert_same_weights(single, folder)
    expected = load_family(two_vaes, variant=loaded or saved).pipeline.vae.state_dict()
    for name, weight in single.vae.state_dict().items():
        assert torch.equal(weight.float(), expected[name])


def test_models_of_one_audit_may_have_plain_names_and_a_variant(stored, tmp_path: Path):
    base = stored("sd15", torch.float16, "fp16")
    family = load_family(base, variant="fp16").with_denoiser_saved_in(torch.float32)
    assert (family.saved_variant, family.source) == (None, base)
    folder = export(family, tmp_path)
    assert not list(folder.glob("*/*.fp16.*"))
    models = load_models({"base": str(base), "hardened": str(folder)}, variant="fp16")
    assert models["base"].variant == "fp16" and models["hardened"].variant is None
    with pytest.raises(UserError, match=r"has no safetensors weights.*\.fp16\.safetensors: choose with --variant"):
        load_models({"base": str(base), "hardened": str(folder)})


def test_a_variant_that_a_folder_lacks_is_said_with_those_that_it_has(stored):
    with pytest.raises(UserError, match="no files of the variant fp16; leave --variant out"):
        load_family(stored("sd15", torch.float32), variant="fp16")
    with pytest.raises(UserError, match="no files of the variant bf16; choose one of fp16 or leave --variant out"):
        load_family(stored("sd15", torch.float16, "fp16"), variant="bf16")


# -- what rounding leaves --------------------------------------------------------------------------------------


def test_small_steps_that_half_precision_rounds_away_are_counted_and_a_float32_denoiser_keeps_them(
    stored, tmp_path: Path
):
    family, base = (load_family(stored("sd15", torch.float16)) for _ in range(2))
    with torch.no_grad():
        for weight in family.denoiser.parameters():
            weight.add_(5e-6)
    shares = [moved_share(family.denoiser, base.denoiser, dtype) for dtype in (torch.float32, torch.float16)]
    assert shares[0] == 1 and 0 < shares[1] < 0.5
    family.round_weights()
    assert moved_share(family.denoiser, base.denoiser, torch.float32) == shares[1]
    kept = export(load_family(stored("sd15", torch.float16)).with_denoiser_saved_in(torch.float32), tmp_path)
    types = {part: stored_dtype(list_files(kept / part)) for part in ("unet", "vae", "text_encoder")}
    assert types == {"unet": torch.float32, "vae": torch.float16, "text_encoder": torch.float16}
    single = {name: weight.dtype for name, weight in load_file(tmp_path / "model.safetensors").items()}
    assert {single[name] for name in single if name.startswith("model.diffusion_model.")} == {torch.float32}
