"""What is exported loads in diffusers, is all there or not at all, and says nothing of anybody."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from tiny_pipelines import build_pipeline
from transformers import CLIPTextModel

import apdm
from apdm.core.errors import UserError
from apdm.core.files import list_files, model_hash, sha256_file
from apdm.export import pipeline as export
from apdm.export.manifest import write_manifest
from apdm.export.metadata import facts_in, read_metadata, write_metadata
from apdm.export.model_card import THREAT_MODEL
from apdm.families import Family, StableDiffusion, load_family
from apdm.families.single_file.write import check_single_file, single_file_weights

CONFIG_HASH = "c0ffee" * 10 + "c0ff"


def write(family: Family, directory: Path, base: Path, **options: Any) -> Path:
    facts: dict[str, Any] = {"base_path": base, "config_hash": CONFIG_HASH, "method": "apdm", "steps": 12}
    return export.export_model(family, directory, **facts, **options)


@pytest.fixture
def family(tiny_pipeline: Path) -> Family:
    """The tiny pipeline with a changed denoiser, as after hardening."""
    family = load_family(tiny_pipeline)
    with torch.no_grad():
        for weight in family.denoiser.parameters():
            weight.add_(0.01)
    return family


def weights(pipeline: Any) -> dict[str, torch.Tensor]:
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": w for name, module in modules.items() for key, w in module.state_dict().items()}


def assert_equal_weights(found: Any, expected: Any) -> None:
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert ours[name].dtype == weight.dtype and torch.equal(ours[name], weight), name


def test_an_exported_folder_loads_unmodified_and_draws(family: Family, tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = write(family, tmp_path / "model", tiny_pipeline)
    loaded = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert type(loaded) is StableDiffusionPipeline
    assert_equal_weights(loaded, family.pipeline)
    picture = loaded("a photo of person", num_inference_steps=2, output_type="np").images
    assert picture.shape == (1, 16, 16, 3) and np.isfinite(picture).all()


def test_every_file_of_the_base_has_its_counterpart_and_weights_are_safetensors_only(
    family: Family, tiny_pipeline: Path, tmp_path: Path
) -> None:
    folder = write(family, tmp_path / "model", tiny_pipeline)
    names = {path.relative_to(folder).as_posix() for path in list_files(folder)}
    assert names == {path.relative_to(tiny_pipeline).as_posix() for path in list_files(tiny_pipeline)} | {"README.md"}
    assert not [name for name in names if Path(name).suffix in (".bin", ".ckpt", ".pt", ".pth", ".pkl")]


def test_the_half_precision_variant_loads_as_such_and_the_full_one_as_before(
    family: Family, tiny_pipeline: Path, tmp_path: Path
) -> None:
    folder = write(family, tmp_path / "model", tiny_pipeline, save_variant="fp16")
    loaded = DiffusionPipeline.from_pretrained(folder, variant="fp16", dtype=torch.float16, local_files_only=True)
    expected = weights(family.pipeline)
    for name, weight in weights(loaded).items():
        assert torch.equal(weight, expected[name].to(torch.float16)), name
    assert_equal_weights(DiffusionPipeline.from_pretrained(folder, local_files_only=True), family.pipeline)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_denoisers_header_carries_the_facts_as_strings_and_its_weights_stay(
    family: Family, tiny_pipeline: Path, tmp_path: Path
) -> None:
    folder = write(family, tmp_path / "model", tiny_pipeline)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert read_metadata(path) == {
        "format": "pt",
        "apdm.version": apdm.__version__,
        "apdm.method": "apdm",
        "apdm.steps": "12",
        "apdm.config_sha256": CONFIG_HASH,
        "apdm.base_sha256": model_hash(tiny_pipeline),
    }
    expected = family.denoiser.state_dict()
    for name, weight in load_file(path).items():
        assert torch.equal(weight, expected[name])


def test_a_file_without_metadata_gets_some(tmp_path: Path) -> None:
    save_file({"a": torch.arange(5)}, tmp_path / "w.safetensors")
    assert read_metadata(tmp_path / "w.safetensors") == {}
    write_metadata(tmp_path / "w.safetensors", {"größe": "ß"})
    assert read_metadata(tmp_path / "w.safetensors") == {"größe": "ß"}
    assert torch.equal(load_file(tmp_path / "w.safetensors")["a"], torch.arange(5))


def test_facts_are_those_of_the_first_weights_that_have_some(tmp_path: Path) -> None:
    for part in ("text_encoder", "unet", "vae"):
        (tmp_path / part).mkdir()
        save_file({"a": torch.arange(5)}, tmp_path / part / "w.safetensors", metadata={"format": "pt"})
    (tmp_path / "a.safetensors").write_text("left behind by git")
    assert facts_in(tmp_path) == {} and facts_in(None) == {}
    write_metadata(tmp_path / "unet" / "w.safetensors", {"apdm.steps": "12"})
    assert facts_in(tmp_path) == facts_in(tmp_path / "unet" / "w.safetensors") == {"steps": "12"}


def test_the_model_card_states_base_method_and_threat_model_without_a_path(
    family: Family, tiny_pipeline: Path, tmp_path: Path
) -> None:
    card = (write(family, tmp_path / "model", tiny_pipeline, single_file=True) / "README.md").read_text()
    for stated in (
        model_hash(tiny_pipeline),
        CONFIG_HASH,
        "apdm, 12 steps",
        *THREAT_MODEL,
        "model.safetensors",
    ):
        assert stated in card
    assert str(tmp_path) not in card and str(tiny_pipeline.parent) not in card


def test_the_model_card_has_the_metadata_that_the_hub_reads(
    family: Family, tiny_pipeline: Path, tmp_path: Path
) -> None:
    card = ModelCard.load(write(family, tmp_path / "model", tiny_pipeline) / "README.md")
    assert card.data.to_dict() == {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["apdm", "personalization-protection"],
    }


def test_metadata_of_a_damaged_file_is_an_error_and_not_empty(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.arange(5)}, path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match="no intact safetensors file"):
        read_metadata(path)


def test_two_exports_of_one_model_are_equal_bytes(family: Family, tiny_pipeline: Path, tmp_path: Path) -> None:
    first, second = (
        write(family, tmp_path / name / "model", tiny_pipeline, single_file=True).parent for name in ("a", "b")
    )
    for path in list_files(first):
        assert sha256_file(path) == sha256_file(second / path.relative_to(first)), path
    assert write_manifest(first, config_hash="").read_bytes() == write_manifest(second, config_hash="").read_bytes()


def test_an_error_while_saving_leaves_the_old_export_whole(
    family: Family, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(family, tmp_path / "model", tiny_pipeline)
    before = model_hash(folder)
    with torch.no_grad():
        family.denoiser.conv_in.weight.zero_()
    monkeypatch.setattr(export, "write_metadata", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(family, folder, tiny_pipeline)
    assert model_hash(folder) == before and [path.name for path in tmp_path.iterdir()] == ["model"]


KILLED = """
import os, signal, sys
from apdm.export import pipeline as export
from apdm.families import load_family
family = load_family(sys.argv[1])
family.denoiser.conv_in.weight.data.zero_()
export.model_card = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
export.export_model(family, sys.argv[2], base_path=sys.argv[1], config_hash="", method="apdm", steps=1)
"""


def test_a_process_killed_while_exporting_leaves_the_old_export_whole_and_the_next_export_cleans_up(
    family: Family, tiny_pipeline: Path, tmp_path: Path
) -> None:
    folder = write(family, tmp_path / "model", tiny_pipeline)
    before = model_hash(folder)
    command = [sys.executable, "-c", KILLED, str(tiny_pipeline), str(folder)]
    assert subprocess.run(command, cwd=Path(__file__).parents[2]).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    assert model_hash(folder) == before
    assert_equal_weights(DiffusionPipeline.from_pretrained(folder, local_files_only=True), family.pipeline)

    write(family, folder, tiny_pipeline)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_the_single_file_gives_every_weight_back_bit_by_bit(
    family: Family, tiny_pipeline: Path, tmp_path: Path, variant: str | None
) -> None:
    folder = write(family, tmp_path / "model", tiny_pipeline, single_file=True, save_variant=variant)
    dtype = torch.float16 if variant else torch.float32
    path = tmp_path / "model.safetensors"
    assert {weight.dtype for weight in load_file(path).values()} == {dtype}
    loaded = StableDiffusionPipeline.from_single_file(str(path), config=str(folder), local_files_only=True, dtype=dtype)
    family.pipeline.to(dtype=dtype)
    assert_equal_weights(loaded, family.pipeline)
    assert read_metadata(path)["apdm.config_sha256"] == CONFIG_HASH


def unet(**config: Any) -> UNet2DConditionModel:
    channels = config.setdefault("block_out_channels", (8, 16))
    defaults: dict[str, Any] = {
        "sample_size": 8,
        "down_block_types": ("CrossAttnDownBlock2D",) * (len(channels) - 1) + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (len(channels) - 1),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
    }
    return UNet2DConditionModel(**{**defaults, **config})


TOPOLOGIES: dict[str, Callable[[], UNet2DConditionModel]] = {
    "as in 1.x": lambda: unet(block_out_channels=(8, 16, 16, 16), layers_per_block=2),
    "as in 2.x": lambda: unet(use_linear_projection=True, layers_per_block=2, attention_head_dim=(2, 4)),
    "deep": lambda: unet(block_out_channels=(8, 8, 8, 8, 16), layers_per_block=3, transformer_layers_per_block=2),
    "one block": lambda: unet(block_out_channels=(8,)),
}


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_single_file_holds_unets_of_other_depths(tmp_path: Path, topology: str) -> None:
    pipeline = build_pipeline(tmp_path / "base")
    pipeline.register_modules(unet=TOPOLOGIES[topology]())
    write(StableDiffusion(pipeline), tmp_path / "model", tmp_path / "none", single_file=True)
    loaded = StableDiffusionPipeline.from_single_file(
        str(tmp_path / "model.safetensors"), config=str(tmp_path / "model"), local_files_only=True
    )
    assert_equal_weights(loaded, pipeline)


def test_a_single_file_of_2x_has_the_text_encoder_in_openclips_layout(tmp_path: Path) -> None:
    pipeline = build_pipeline(tmp_path / "base")
    config = pipeline.text_encoder.config
    config.hidden_size, config.num_hidden_layers, config.hidden_act = 1024, 1, "gelu"
    pipeline.register_modules(unet=unet(cross_attention_dim=1024), text_encoder=CLIPTextModel(config))
    write(StableDiffusion(pipeline), tmp_path / "model", tmp_path / "none", single_file=True)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight" in names
    loaded = StableDiffusionPipeline.from_single_file(
        str(tmp_path / "model.safetensors"), config=str(tmp_path / "model"), local_files_only=True
    )
    assert_equal_weights(loaded, pipeline)


@pytest.mark.parametrize(
    "config",
    [
        {"layers_per_block": (1, 2)},
        {"class_embed_type": "timestep"},
        {"num_class_embeds": 3},
        {"encoder_hid_dim": 24, "encoder_hid_dim_type": "text_proj"},
        {"block_out_channels": (8, 16), "down_block_types": ("ResnetDownsampleBlock2D", "DownBlock2D")},
    ],
    ids=str,
)
def test_a_topology_without_a_place_in_the_single_file_is_refused_before_anything_is_written(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    family = StableDiffusion(build_pipeline(tmp_path / "base"))
    family.pipeline.register_modules(unet=unet(**config))  # the family itself refuses some of them
    with pytest.raises(UserError, match="leave out --single_file"):
        check_single_file(family)
    with pytest.raises(UserError, match="leave out --single_file"):
        write(family, tmp_path / "model", tmp_path / "none", single_file=True)
    assert not (tmp_path / "model").exists()


def test_a_flux_of_its_own_width_fits_a_single_file_and_one_of_another_width_is_refused(families) -> None:
    """diffusers reads no other width, so nobody could load the file with it."""
    tiny = families("flux")
    with pytest.raises(UserError, match="FluxTransformer2DModel does not fit a single file; leave out --single_file"):
        check_single_file(tiny)
    sizes = {"num_attention_heads": 24, "attention_head_dim": 128, "num_layers": 3, "num_single_layers": 5}
    with torch.device("meta"):
        real = type(tiny.denoiser).from_config({**tiny.denoiser.config, **sizes})
    check_single_file(tiny.with_denoiser(real))


def test_an_export_that_does_not_fit_the_disk_is_refused(
    family: Family, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "export_size", lambda *_, **__: 10**18)
    with pytest.raises(UserError, match="GB free"):
        write(family, tmp_path / "model", tiny_pipeline)


def test_the_expected_size_is_an_upper_bound(family: Family, tiny_pipeline: Path, tmp_path: Path) -> None:
    write(family, tmp_path / "model", tiny_pipeline, single_file=True)
    written = sum(path.stat().st_size for path in list_files(tmp_path))
    assert written <= export.export_size(family, single_file=True)
    assert export.export_size(family) < export.export_size(family, save_variant="fp16")


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("kind", ["sd3", "flux2", "zimage"])
def test_a_single_file_is_counted_by_the_parts_that_it_holds(families, kind: str, variant: str | None) -> None:
    family = families(kind)
    counted = [export.export_size(family, save_variant=variant, single_file=single) for single in (False, True)]
    weights = sum(weight.numel() for weight in single_file_weights(family).values())
    # Twice, because adding metadata writes a second copy. Files of SD 3 have some small tables besides.
    assert counted[1] - counted[0] == pytest.approx(2 * weights * (2 if variant else 4), rel=0.01)
