"""Single files that hold the denoiser alone, as the common user interfaces load newer models."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipelines import BUILDERS
from torch import Tensor

from apdm.audit.inputs.models import load_models
from apdm.cli import main
from apdm.core.errors import UserError
from apdm.core.files import list_files, sha256_file
from apdm.export.loading import ways_to_load
from apdm.export.pipeline import check_single_file, export_model
from apdm.families import load_family
from apdm.jobs.auditing.plan import model_file

ALONE = pytest.mark.parametrize("kind", ["flux", "flux2", "zimage"])
FACTS: dict[str, Any] = {"config_hash": "0" * 64, "method": "apdm", "steps": 2}

# The names of the weights in released files, and their sizes in the tiny models. `*` stands for weight and bias. A line
# with several names stands for each.
FLUX = {
    "img_in.*": (32, 64),
    "txt_in.*": (32, 24),
    "time_in.in_layer.* guidance_in.in_layer.*": (32, 256),
    "time_in.out_layer.* guidance_in.out_layer.* vector_in.in_layer.* vector_in.out_layer.*": (32, 32),
    "double_blocks.0.img_mod.lin.* double_blocks.0.txt_mod.lin.*": (192, 32),
    "double_blocks.0.img_attn.qkv.* double_blocks.0.txt_attn.qkv.*": (96, 32),
    "double_blocks.0.img_attn.norm.query_norm.scale double_blocks.0.img_attn.norm.key_norm.scale": (16,),
    "double_blocks.0.txt_attn.norm.query_norm.scale double_blocks.0.txt_attn.norm.key_norm.scale": (16,),
    "double_blocks.0.img_attn.proj.* double_blocks.0.txt_attn.proj.*": (32, 32),
    "double_blocks.0.img_mlp.0.* double_blocks.0.txt_mlp.0.*": (128, 32),
    "double_blocks.0.img_mlp.2.* double_blocks.0.txt_mlp.2.*": (32, 128),
    "single_blocks.0.modulation.lin.*": (96, 32),
    "single_blocks.0.linear1.*": (224, 32),
    "single_blocks.0.linear2.*": (32, 160),
    "single_blocks.0.norm.query_norm.scale single_blocks.0.norm.key_norm.scale": (16,),
    "final_layer.linear.*": (64, 32),
    "final_layer.adaLN_modulation.1.*": (64, 32),
}
FLUX2 = {
    "img_in.weight": (32, 64),
    "time_in.in_layer.weight time_in.out_layer.weight": (32, 32),
    "txt_in.weight": (32, 24),
    "double_stream_modulation_img.lin.weight double_stream_modulation_txt.lin.weight": (192, 32),
    "double_blocks.0.img_attn.qkv.weight double_blocks.0.txt_attn.qkv.weight": (96, 32),
    "double_blocks.0.img_attn.norm.query_norm.scale double_blocks.0.img_attn.norm.key_norm.scale": (16,),
    "double_blocks.0.txt_attn.norm.query_norm.scale double_blocks.0.txt_attn.norm.key_norm.scale": (16,),
    "double_blocks.0.img_attn.proj.weight double_blocks.0.txt_attn.proj.weight": (32, 32),
    "double_blocks.0.img_mlp.0.weight double_blocks.0.txt_mlp.0.weight": (192, 32),
    "double_blocks.0.img_mlp.2.weight double_blocks.0.txt_mlp.2.weight": (32, 96),
    "single_stream_modulation.lin.weight": (96, 32),
    "single_blocks.0.linear1.weight": (288, 32),
    "single_blocks.0.linear2.weight": (32, 128),
    "single_blocks.0.norm.query_norm.scale single_blocks.0.norm.key_norm.scale": (16,),
    "final_layer.linear.weight final_layer.adaLN_modulation.1.weight": (64, 32),
}
ZIMAGE: dict[str, tuple[int, ...]] = {
    "x_embedder.*": (24, 64),
    "x_pad_token cap_pad_token": (1, 24),
    "t_embedder.mlp.0.*": (1024, 256),
    "t_embedder.mlp.2.*": (24, 1024),
    "cap_embedder.0.weight": (16,),
    "cap_embedder.1.*": (24, 16),
    "final_layer.linear.*": (64, 24),
    "final_layer.adaLN_modulation.1.*": (24, 24),
}
for block in ("noise_refiner.0", "context_refiner.0", "layers.0", "layers.1"):
    ZIMAGE |= {
        f"{block}.attention.qkv.weight": (72, 24),
        f"{block}.attention.out.weight": (24, 24),
        f"{block}.attention.q_norm.weight {block}.attention.k_norm.weight": (8,),
        f"{block}.attention_norm1.weight {block}.attention_norm2.weight": (24,),
        f"{block}.ffn_norm1.weight {block}.ffn_norm2.weight": (24,),
        f"{block}.feed_forward.w1.weight {block}.feed_forward.w3.weight": (64, 24),
        f"{block}.feed_forward.w2.weight": (24, 64),
    }
    if block != "context_refiner.0":
        ZIMAGE[f"{block}.adaLN_modulation.0.*"] = (96, 24)
AUTHORS: dict[str, dict[str, tuple[int, ...]]] = {"flux": FLUX, "flux2": FLUX2, "zimage": ZIMAGE}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, any_flux_width: None) -> Callable[[str], tuple[Path, Path]]:
    """exported(kind) -> (a pipeline folder, a single file of its denoiser with other weights); read them only."""
    made: dict[str, tuple[Path, Path]] = {}

    def make(kind: str) -> tuple[Path, Path]:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            BUILDERS[kind](folder / "vocabulary").save_pretrained(folder / "base")
            family = load_family(folder / "base")
            with torch.no_grad():
                for weight in family.denoiser.parameters():
                    weight.mul_(1.1)
            export_model(family, folder / "model", base_path=folder / "base", single_file=True, **FACTS)
            made[kind] = folder / "base", folder / "model.safetensors"
        return made[kind]

    return make


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert torch.equal(ours[name], weight), name


# -- what is written -----------------------------------------------------------------------------------------


@ALONE
def test_the_file_has_the_authors_names_and_sizes_and_nothing_else(exported, kind: str):
    found = {name: tuple(weight.shape) for name, weight in load_file(exported(kind)[1]).items()}
    expected: dict[str, tuple[int, ...]] = {}
    for names, sizes in AUTHORS[kind].items():
        for name in names.split():
            expected[name.replace("*", "weight")] = sizes
            if name.endswith("*"):
                expected[name.replace("*", "bias")] = sizes[:1]
    assert found == expected


def test_the_halves_of_the_last_modulation_change_places_and_what_is_joined_keeps_its_order(exported):
    base, path = exported("flux")
    written = load_file(path)
    state = load_family(path, single_file_config=base).denoiser.state_dict()
    scale, shift = state["norm_out.linear.weight"].chunk(2)
    assert torch.equal(written["final_layer.adaLN_modulation.1.weight"], torch.cat([shift, scale]))
    single = [state[f"single_transformer_blocks.0.{part}.bias"] for part in ("attn.to_q", "attn.to_k", "attn.to_v")]
    single.append(state["single_transformer_blocks.0.proj_mlp.bias"])
    assert torch.equal(written["single_blocks.0.linear1.bias"], torch.cat(single))


@pytest.mark.parametrize(
    ("kind", "config", "fits"),
    [
        ("flux", {"guidance_embeds": False}, True),  # as schnell
        ("flux", {"num_layers": 3, "num_single_layers": 12}, True),
        ("flux", {"num_layers": 0}, False),
        ("flux2", {"num_layers": 2, "num_single_layers": 11}, True),
        ("flux2", {"guidance_embeds": True}, True),  # as dev
        ("zimage", {"n_layers": 11, "n_refiner_layers": 2, "qk_norm": False}, True),
        ("zimage", {"all_patch_size": (4,)}, False),
        ("zimage", {"siglip_feat_dim": 8}, False),  # as Omni
    ],
)
def test_a_variant_fits_the_layout_or_is_refused_before_anything_is_written(
    families, any_flux_width: None, kind: str, config: dict[str, Any], fits: bool
):
    tiny = families(kind)
    other = type(tiny)(copy.copy(tiny.pipeline))
    other.pipeline.register_modules(transformer=type(tiny.denoiser).from_config({**tiny.denoiser.config, **config}))
    if fits:
        check_single_file(other)  # the family itself refuses some of them
    else:
        with pytest.raises(UserError, match="single file; leave out --single_file"):
            check_single_file(other)


@ALONE
def test_card_and_ways_say_that_the_file_is_the_denoiser_alone_and_where_it_goes(exported, kind: str):
    folder = exported(kind)[1].with_suffix("")
    card = " ".join((folder / "README.md").read_text().split())
    assert "To load the single file, which holds the transformer alone:" in card
    assert "In ComfyUI put `model.safetensors` into `models/diffusion_models`" in card
    assert "Text encoders and VAE are those of the base" in card


# -- what is read --------------------------------------------------------------------------------------------


@ALONE
def test_the_denoiser_comes_from_the_file_and_all_else_from_the_folder(exported, tmp_path: Path, kind: str):
    base, path = exported(kind)
    family, folder = load_family(path, single_file_config=base), load_family(path.with_suffix(""))
    assert_equal(family.denoiser.state_dict(), folder.denoiser.state_dict())
    assert family.origin == path and str(path) in repr(family)
    ours, theirs, before = (
        one.sample(["a photo of person"], seed=0, num_inference_steps=2, height=16, width=16)
        for one in (family, folder, load_family(base))
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # equal weights at other places in memory
    assert (ours - before).abs().max() > 1e-3
    export_model(family, tmp_path / "model", base_path=path, single_file=True, **FACTS)
    assert_equal(load_file(tmp_path / "model.safetensors"), load_file(path))
    for file in list_files(base):
        if not file.is_relative_to(base / "transformer"):  # copied, and not written anew
            assert sha256_file(tmp_path / "model" / file.relative_to(base)) == sha256_file(file), file


def test_files_of_the_denoiser_alone_are_audited_with_the_folder_of_the_other_parts(exported, tmp_path: Path):
    base, path = exported("zimage")
    export_model(load_family(base), tmp_path / "model", base_path=base, single_file=True, **FACTS)
    paths = {"base": str(tmp_path / "model.safetensors"), "hardened": str(path)}
    models = load_models(paths, single_file_config=str(base))
    assert model_file(paths["hardened"], models["hardened"]).sha256 == sha256_file(path)
    assert torch.equal(models["base"].denoiser.x_pad_token * 1.1, models["hardened"].denoiser.x_pad_token)
    with pytest.raises(UserError, match="exactly the weights of the base"):
        load_models({**paths, "hardened": str(base)}, single_file_config=str(base))


def test_the_main_job_takes_such_a_file_and_says_what_it_will_write(
    exported, noise_people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    base, path = exported("zimage")
    given = ["--pretrained_model_name_or_path", str(path), "--instance_data_dir", str(noise_people)]
    given += ["--resolution", "16", "--num_inference_steps", "1", "--output_dir", str(tmp_path / "out"), "--dry_run"]
    given += ["--audit.enabled", "false", "--image_layer.enabled", "false", "--single_file", "true"]
    assert main(["harden", *given]) == 2
    assert "--single_file_config" in capsys.readouterr().err.splitlines()[-1]
    assert main(["harden", *given, "--single_file_config", str(base)]) == 0
    said = capsys.readouterr()
    assert "model.safetensors (the transformer alone)" in " ".join((said.out + said.err).split())


@ALONE
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_the_folder_needs_no_weights_of_a_denoiser_and_may_be_a_variant(
    exported, tmp_path: Path, kind: str, variant: str | None
):
    base, path = exported(kind)
    folder = tmp_path / "folder"
    if variant:
        load_family(base).save(folder, variant=variant)
    else:
        shutil.copytree(base, folder)
    for weights in list((folder / "transformer").glob("*.safetensors")):
        weights.unlink()
    family = load_family(path, single_file_config=folder, variant=variant)
    assert_equal(family.denoiser.state_dict(), load_family(path, single_file_config=base).denoiser.state_dict())
    assert {family.dtypes[part] for part in family.dtypes if part != "transformer"} == {
        torch.float16 if variant else torch.float32
    }
    assert family.dtypes["transformer"] == torch.float32
    export_model(family, tmp_path / "model", base_path=path, single_file=True, **FACTS)
    for way in ways_to_load(family, tmp_path / "model", name="model", single_file=[torch.float32]):
        assert_equal(way.load(tmp_path).transformer.float().state_dict(), family.denoiser.state_dict())


@ALONE
def test_the_prefix_of_whole_pipelines_and_a_pickle_are_read_too(exported, tmp_path: Path, kind: str):
    base, path = exported(kind)
    content = {f"model.diffusion_model.{name}": weight for name, weight in load_file(path).items()}
    save_file(content, tmp_path / "prefix.sft")
    torch.save({"state_dict": content}, tmp_path / "pickle.ckpt")
    expected = load_family(path, single_file_config=base).denoiser.state_dict()
    assert_equal(load_family(tmp_path / "prefix.sft", single_file_config=base).denoiser.state_dict(), expected)
    pickled = load_family(tmp_path / "pickle.ckpt", single_file_config=base, allow_pickle=True)
    assert_equal(pickled.denoiser.state_dict(), expected)
    with pytest.raises(UserError, match=r"pickle\.ckpt is a pickle, which can run code"):
        load_family(tmp_path / "pickle.ckpt", single_file_config=base)


@ALONE
def test_a_file_that_does_not_belong_to_the_folder_is_refused_by_its_header(
    exported, folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    base, path = exported(kind)
    monkeypatch.setattr("apdm.families.single_file.read.read_weights", lambda _: pytest.fail("weights were read"))

    def refused(content: dict[str, Tensor], config: Path | None, message: str) -> None:
        save_file(content, tmp_path / "x.safetensors")
        with pytest.raises(UserError, match=message):
            load_family(tmp_path / "x.safetensors", single_file_config=config)

    def size(weight: Tensor) -> str:
        return " x ".join(map(str, weight.shape))

    content = load_file(path)
    refused(content, None, "holds only the denoiser of a .*; name a pipeline folder that has the other parts with")
    refused(content, folders("sd15"), f"holds a .*Pipeline, but {folders('sd15')} is a StableDiffusionPipeline")
    whole = {f"model.diffusion_model.{name}": weight for name, weight in content.items()}
    refused(
        whole | {"vae.encoder.conv_in.weight": torch.ones(1)}, base, "more than the transformer of .*, for example vae"
    )
    first = next(name for name in sorted(content) if name.endswith("qkv.weight"))
    refused({name: w for name, w in content.items() if name != first}, base, f"lacks 1 weight .*, for example {first}")
    less = content[first][:, :-1].clone()
    refused(content | {first: less}, base, f"has {first} of {size(less)} numbers, .* of {size(content[first])}")
    diffusers_names = load_file(base / "transformer/diffusion_pytorch_model.safetensors")
    refused(
        diffusers_names, base, "is no single file of .*; give a file that holds its transformer|lacks .* weights of"
    )
    other = folders("sd15") / "unet/diffusion_pytorch_model.safetensors"
    refused(
        load_file(other), base, "is no single file of .*: it has no weights .*; give a file that holds its transformer"
    )


@ALONE
def test_the_folder_must_have_the_weights_of_the_other_parts(exported, tmp_path: Path, kind: str):
    base, path = exported(kind)
    bare = shutil.copytree(base, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(UserError, match="no safetensors weights; copy the whole pipeline folder"):
        load_family(path, single_file_config=bare)
    with pytest.raises(UserError, match="single_file_config /nowhere is no folder"):
        load_family(path, single_file_config="/nowhere")
    broken = shutil.copytree(base, tmp_path / "broken")
    (broken / "transformer/config.json").write_text('{"in_channels": "four"}')
    with pytest.raises(UserError, match="broken/transformer describes no model that .* can hold"):
        load_family(path, single_file_config=broken)
