"""Adapters of InstantID's kind on Stable Diffusion XL: written in the release's format, loaded by diffusers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import softmax

from apdm.attacks.faceid import FaceIDAdapter
from apdm.attacks.parts.identity_net import IdentityNet, draw_keypoints, find_landmarks
from apdm.audit.inputs.photo_attack_specs import load_adapter
from apdm.config import AuditConfig
from apdm.core.errors import UserError
from apdm.faces import AlignedEncoder, FaceChoice, FaceNetworks, load_detector, load_encoder
from apdm.faces.mobilefacenet import MobileFaceNet
from apdm.families import Family, load_family
from apdm.families.sampling import adapter_input
from apdm.portraits import PIPELINE
from apdm.portraits.drawing import render_person
from apdm.portraits.people import circumstance, identity
from tools.portraits.train_adapter import cross_attentions, new_adapter

PROMPTS = ["a photo of a person"] * 2
OPTIONS: dict[str, Any] = {"seed": 5, "num_inference_steps": 2, "guidance_scale": 3.0}


class Perceiver(nn.Module):
    """Queries attend to what there is to see and to themselves; names as in the release's files."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, 64 * heads, bias=False)
        self.to_kv = nn.Linear(width, 2 * 64 * heads, bias=False)
        self.to_out = nn.Linear(64 * heads, width, bias=False)

    def forward(self, seen: Tensor, queries: Tensor) -> Tensor:
        seen, queries = self.norm1(seen), self.norm2(queries)
        key, value = self.to_kv(torch.cat([seen, queries], dim=1)).chunk(2, dim=2)
        q, k, v = (x.unflatten(2, (self.heads, 64)).transpose(1, 2) for x in (self.to_q(queries), key, value))
        return self.to_out((softmax(q @ k.mT / 8, dim=-1) @ v).transpose(1, 2).flatten(2))


class Resampler(nn.Module):
    """One embedding `[B, 1, D]` -> 16 tokens `[B, 16, W]`."""

    def __init__(self, dimension: int, width: int, hidden: int = 24, heads: int = 2) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, 16, hidden))
        self.proj_in, self.proj_out = nn.Linear(dimension, hidden), nn.Linear(hidden, width)
        self.norm_out = nn.LayerNorm(width)
        wide = 4 * hidden
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    Perceiver(hidden, heads),
                    nn.Sequential(
                        nn.LayerNorm(hidden),
                        nn.Linear(hidden, wide, bias=False),
                        nn.GELU(),
                        nn.Linear(wide, hidden, bias=False),
                    ),
                ]
            )
            for _ in range(4)
        )
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, embeds: Tensor) -> Tensor:
        seen, queries = self.proj_in(embeds), self.latents.expand(len(embeds), -1, -1)
        layer: Any
        for layer in self.layers:
            queries = queries + layer[0](seen, queries)
            queries = queries + layer[1](queries)
        return self.norm_out(self.proj_out(queries))


def parts(unet: Any, resampler: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The release's ip-adapter.bin."""
    attention = {
        f"{number}.{part}_ip.weight": torch.randn_like(getattr(layer, part).weight)
        for number, layer in cross_attentions(unet)
        for part in ("to_k", "to_v")
    }
    return {"image_proj": resampler.state_dict(), "ip_adapter": attention}


def write(state: dict[str, dict[str, Tensor]], path: Path) -> Path:
    save_file({f"{part}.{key}": value.contiguous() for part in state for key, value in state[part].items()}, path)
    return path


@pytest.fixture(scope="module")
def family(families: Callable[[str], Family]) -> Family:
    return families("sdxl")


@pytest.fixture(scope="module")
def resampler(family: Family) -> Resampler:
    torch.manual_seed(1)
    return Resampler(128, family.denoiser.config.cross_attention_dim)


@pytest.fixture(scope="module")
def adapter_path(family: Family, resampler: Resampler, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    return write(parts(family.denoiser, resampler), tmp_path_factory.mktemp("adapter") / "instantid.safetensors")


@pytest.fixture(scope="module")
def controlnet_path(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    net = ControlNetModel.from_unet(family.denoiser, conditioning_embedding_out_channels=(8, 8))
    for parameter in net.parameters():  # what it adds is zero before training
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("controlnet") / "ControlNetModel"
    net.save_pretrained(folder)
    return folder


def attack(path: Path, **changes: Any) -> FaceIDAdapter:
    return FaceIDAdapter(**{"path": path, "encoder": load_encoder("portrait-a"), **changes})


def portrait(seed: int) -> Tensor:
    """A rendered person as photos [1, 3, 64, 64] in [0, 1]."""
    picture = np.array(render_person(identity(seed), circumstance(seed, 0)))
    return torch.as_tensor(picture).permute(2, 0, 1)[None] / 255


# -- the adapter ---------------------------------------------------------------------------------------------


def test_the_denoiser_is_told_the_tokens_that_the_releases_resampler_makes(
    family: Family, resampler: Resampler, adapter_path: Path
):
    """Every key of the file finds its place in diffusers' module, and no face is an embedding of zeros."""
    attacked, embeds = attack(adapter_path).with_adapter(family), 20 * torch.randn(128)
    with torch.no_grad():
        tokens = attacked.denoiser.encoder_hid_proj(adapter_input(embeds, guided=True))[0]
        expected = resampler(torch.stack([torch.zeros(128), embeds])[:, None])
    assert tokens.shape == (2, 1, 16, family.denoiser.config.cross_attention_dim)
    torch.testing.assert_close(tokens[:, 0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("with_controlnet", [False, True])
def test_whose_photo_it_is_decides_what_is_drawn(
    family: Family, adapter_path: Path, controlnet_path: Path, with_controlnet: bool
):
    adapter = attack(adapter_path, controlnet=controlnet_path if with_controlnet else None)
    plain, attacked = family.sample(PROMPTS, **OPTIONS), adapter.with_adapter(family)
    for guidance in (1.0, 3.0):
        options = OPTIONS | {"guidance_scale": guidance}
        one, again, other = (adapter.run(attacked, portrait(seed), PROMPTS, **options) for seed in (1, 1, 2))
        assert one.shape == plain.shape and torch.equal(one, again)
        assert (one - plain).abs().mean() > 1e-3 and (one - other).abs().mean() > 1e-4
    without, hardly = (
        adapter.run(attacked, portrait(1), PROMPTS, **OPTIONS | {"guidance_scale": scale}) for scale in (1.0, 1 + 1e-6)
    )
    torch.testing.assert_close(without, hardly, rtol=0, atol=1e-4)


@pytest.mark.parametrize("with_controlnet", [False, True])
def test_pictures_do_not_depend_on_how_many_are_drawn_at_once(
    family: Family, adapter_path: Path, controlnet_path: Path, with_controlnet: bool
):
    adapter = attack(adapter_path, controlnet=controlnet_path if with_controlnet else None)
    attacked = adapter.with_adapter(family)
    together = adapter.run(attacked, portrait(1), PROMPTS, **OPTIONS, batch_size=2)
    apart = adapter.run(attacked, portrait(1), PROMPTS, **OPTIONS, batch_size=1)
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-4)


def test_at_scale_nothing_the_models_own_pictures_come_out_and_the_model_stays_as_it_was(
    family: Family, adapter_path: Path, controlnet_path: Path
):
    before = {key: value.clone() for key, value in family.denoiser.state_dict().items()}
    plain = family.sample(PROMPTS, **OPTIONS)
    adapter = attack(adapter_path, scale=0.0, controlnet=controlnet_path, controlnet_scale=0.0)
    silent = adapter.draw(family, portrait(1), PROMPTS, **OPTIONS)
    torch.testing.assert_close(silent, plain, rtol=0, atol=1e-5)
    attack(adapter_path, controlnet=controlnet_path).draw(family, portrait(1), PROMPTS, **OPTIONS)
    assert torch.equal(family.sample(PROMPTS, **OPTIONS), plain)
    after = family.denoiser.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    assert isinstance(family.pipeline, StableDiffusionXLPipeline) and family.denoiser.encoder_hid_proj is None


def test_instantid_is_told_embeddings_as_the_encoder_gives_them_and_faceid_unit_vectors(family: Family, tmp_path: Path):
    torch.manual_seed(4)
    encoder = AlignedEncoder("m", 0.3, MobileFaceNet().eval().requires_grad_(False), load_detector("portrait"))
    photos = torch.cat([portrait(1), portrait(2)])
    raw = encoder.features(photos)
    torch.testing.assert_close(nn.functional.normalize(raw, dim=1), encoder.embed(photos))
    kinds = {
        "instantid": parts(family.denoiser, Resampler(raw.shape[1], 72)),
        "faceid": new_adapter(family.denoiser, raw.shape[1]),
    }
    told = {}
    for name, state in kinds.items():
        adapter = attack(write(state, tmp_path / f"{name}.safetensors"), encoder=encoder)
        attacked = adapter.with_adapter(family)
        attacked.denoiser.encoder_hid_proj.register_forward_pre_hook(
            lambda _, args, name=name: told.update({name: args})
        )
        adapter.run(attacked, photos, PROMPTS[:1], **OPTIONS)
    (none, of_instantid), (_, of_faceid) = (told[name][0][0].flatten(1) for name in kinds)
    assert not none.any() and (raw.norm(dim=1) - 1).abs().min() > 0.01
    torch.testing.assert_close(of_instantid, raw.mean(0))
    torch.testing.assert_close(of_faceid, adapter.identity(photos))


def test_the_releases_pickle_is_read_only_where_pickles_are_allowed(
    family: Family, resampler: Resampler, adapter_path: Path, tmp_path: Path
):
    torch.manual_seed(2)
    torch.save(parts(family.denoiser, resampler), tmp_path / "ip-adapter.bin")
    with pytest.raises(UserError, match=r"ip-adapter\.bin is a pickle, which can run code"):
        attack(tmp_path / "ip-adapter.bin").check(family)
    drawn = attack(tmp_path / "ip-adapter.bin", allow_pickle=True).draw(family, portrait(1), PROMPTS, **OPTIONS)
    assert torch.equal(drawn, attack(adapter_path).draw(family, portrait(1), PROMPTS, **OPTIONS))


# -- the ControlNet ------------------------------------------------------------------------------------------


def test_the_controlnet_attends_to_the_face_and_sees_where_it_is(
    family: Family, resampler: Resampler, adapter_path: Path, controlnet_path: Path
):
    adapter, seen = attack(adapter_path, controlnet=controlnet_path), {}
    attacked = adapter.with_adapter(family)
    net = attacked.pipeline.controlnet
    net.mid_block.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    net.controlnet_cond_embedding.register_forward_pre_hook(lambda _, args: seen.update(picture=args[0]))
    adapter.run(attacked, portrait(1), PROMPTS, **OPTIONS, height=32, width=48)
    with torch.no_grad():
        none, face = resampler(torch.stack([torch.zeros(128), adapter.encoder.features(portrait(1))[0]])[:, None])
    expected = torch.stack([none, none, face, face])  # two prompts, each without and with guidance
    torch.testing.assert_close(seen["encoder_hidden_states"], expected, rtol=1e-4, atol=1e-4)
    landmarks = (find_landmarks(adapter.encoder, portrait(1)[0]) + 0.5) * torch.tensor([48 / 64, 32 / 64]) - 0.5
    torch.testing.assert_close(seen["picture"], draw_keypoints(landmarks, 32, 48).expand(4, -1, -1, -1))


def test_without_tokens_of_a_face_it_is_the_controlnet_of_the_file(family: Family, controlnet_path: Path):
    theirs, ours = (kind.from_pretrained(controlnet_path) for kind in (ControlNetModel, IdentityNet))
    inputs = {
        "encoder_hidden_states": torch.randn(2, 5, 72),
        "controlnet_cond": torch.rand(2, 3, 16, 16),
        "added_cond_kwargs": {"text_embeds": torch.randn(2, 40), "time_ids": torch.rand(2, 6)},
    }
    noisy, other = torch.randn(2, 4, 8, 8), torch.randn(2, 16, 72)
    with torch.no_grad():
        mid = ours(noisy, 500, **inputs).mid_block_res_sample
        assert torch.equal(mid, theirs(noisy, 500, **inputs).mid_block_res_sample)
        ours.tokens = other
        mid = ours(noisy, 500, **inputs).mid_block_res_sample
        expected = theirs(noisy, 500, **inputs | {"encoder_hidden_states": other}).mid_block_res_sample
    assert torch.equal(mid, expected)


# -- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image.pop("latents"), r"lacks image_proj\.norm\.bias"),
        (lambda image: image.pop("layers.2.1.3.weight"), r"lacks image_proj\.layers\.2\.1\.3\.weight"),
        (lambda image: image.update({"layers.4.1.0.bias": torch.zeros(24)}), r"has image_proj\.layers\.4"),
        (lambda image: image.update({"proj_in.bias": torch.zeros(3)}), r"proj_in\.bias is \[3\], which does not fit"),
        (
            lambda image: image.update({f"layers.{i}.0.to_kv.weight": torch.zeros(128, 24) for i in range(4)}),
            "a size in image_proj is 128, not 2 times 128",
        ),
        (
            lambda image: image.update({"perceiver_resampler.proj_in.weight": torch.zeros(1)}),
            "is FaceID Plus, which takes a CLIP embedding",
        ),
    ],
)
def test_a_file_of_other_keys_or_sides_is_one_clear_line(
    family: Family, resampler: Resampler, tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], message: str
):
    state = parts(family.denoiser, resampler)
    change(state["image_proj"])
    with pytest.raises(UserError, match=message):
        attack(write(state, tmp_path / "adapter.safetensors")).check(family)


def test_an_adapter_for_another_model_or_encoder_is_one_clear_line(
    family: Family, families: Callable[[str], Family], adapter_path: Path, tmp_path: Path
):
    with pytest.raises(UserError, match=r"is for Stable Diffusion 1, 2 or XL, this model is StableDiffusion3"):
        attack(adapter_path).check(families("sd3"))
    with pytest.raises(UserError, match="text embeddings of 72 numbers, this model has 64"):
        attack(adapter_path).check(load_family(PIPELINE))
    with pytest.raises(UserError, match="takes embeddings of 128 numbers, portrait-b gives 96"):
        attack(adapter_path, encoder=load_encoder("portrait-b")).check(family)
    flat = load_file(adapter_path)
    del flat["ip_adapter.3.to_v_ip.weight"]
    save_file(flat, tmp_path / "short.safetensors")
    with pytest.raises(UserError, match=r"is for another model: ip_adapter\.3\.to_v_ip\.weight is missing"):
        attack(tmp_path / "short.safetensors").check(family)
    (tmp_path / "torn.safetensors").write_bytes(adapter_path.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read as an adapter"):
        attack(tmp_path / "torn.safetensors").check(family)
    blind = AlignedEncoder("m", 0.3, MobileFaceNet().eval())
    with pytest.raises(UserError, match="needs a face detector"):
        attack(adapter_path, encoder=blind).check(family)


def test_a_controlnet_that_is_none_or_does_not_fit_is_one_clear_line(
    family: Family, adapter_path: Path, controlnet_path: Path, tmp_path: Path
):
    def check(folder: Path, path: Path = adapter_path, model: Family = family) -> None:
        attack(path, controlnet=folder).check(model)

    with pytest.raises(UserError, match="none does not exist"):
        check(tmp_path / "none")
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"config\.json is missing"):
        check(tmp_path / "other")
    family.denoiser.save_pretrained(tmp_path / "unet")
    with pytest.raises(UserError, match="holds a UNet2DConditionModel, not a ControlNet"):
        check(tmp_path / "unet")
    config = json.loads((controlnet_path / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="has no safetensors weights"):
        check(tmp_path / "other")
    (tmp_path / "other" / "diffusion_pytorch_model.bin").touch()
    with pytest.raises(UserError, match="is a pickle, which can run code"):
        check(tmp_path / "other")
    weights = tmp_path / "other" / "diffusion_pytorch_model.safetensors"
    weights.touch()
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.safetensors is empty"):
        check(tmp_path / "other")
    save_file({"conv_in.weight": torch.ones(1)}, weights)
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"block_out_channels": [8, 16]}))
    with pytest.raises(UserError, match=r"its block_out_channels is \[8, 16\], this model's \[8, 16, 16\]"):
        check(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="other cannot be loaded"):
        attack(adapter_path, controlnet=tmp_path / "other").with_adapter(family)
    faceid = write(new_adapter(family.denoiser, 128), tmp_path / "faceid.safetensors")
    with pytest.raises(UserError, match="is a FaceID adapter, and a ControlNet goes with InstantID only"):
        check(controlnet_path, faceid)
    small = load_family(PIPELINE)
    fitting = write(parts(small.denoiser, Resampler(128, 64)), tmp_path / "small.safetensors")
    with pytest.raises(UserError, match="needs Stable Diffusion XL"):
        check(controlnet_path, fitting, small)


def test_the_audits_options_name_adapter_and_controlnet(adapter_path: Path, controlnet_path: Path):
    config = AuditConfig(faceid_adapter=str(adapter_path), faceid_controlnet=str(controlnet_path))
    adapter = load_adapter(config, FaceNetworks(FaceChoice()), allow_pickle=True)
    assert adapter is not None and adapter.allow_pickle and adapter.controlnet == controlnet_path
    expected = {"adapter": "instantid.safetensors", "encoder": "portrait-a", "scale": 1.0}
    assert adapter.params() == expected | {"controlnet": "ControlNetModel", "controlnet_scale": 0.8}
    with pytest.raises(UserError, match=r"audit\.faceid_controlnet goes with an InstantID adapter"):
        AuditConfig(faceid_controlnet=str(controlnet_path))
