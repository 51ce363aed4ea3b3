"""The Inception network of FID with random weights: every kind of file, and a value that torchvision's code gave too.

The weights themselves cannot be had here, so no published FID was reproduced.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_judges import write_scripted_inception
from torch import Tensor, nn

from apdm.core.errors import UserError
from apdm.metrics.inception import Inception, InceptionNetwork

NAME = "pt_inception-2015-12-05-6726825d"


def random_state() -> dict[str, Tensor]:
    """Weights under the names of the file that people have; the same in every version of torch."""
    state = InceptionNetwork().state_dict()
    filled = {}
    for number, (name, tensor) in enumerate(state.items()):
        if name.endswith("num_batches_tracked"):
            continue  # the file of pytorch-fid has none
        wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 0.7 + number).view(tensor.shape)
        if name.endswith("conv.weight"):
            wave = wave * (2 / tensor[0].numel()) ** 0.5 * 0.7
        elif name.endswith(("running_var", "bn.weight")):
            wave = wave * 0.25 + 1
        else:
            wave = wave * 0.1
        filled[name] = wave.float()
    return filled | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_state()


@pytest.fixture(scope="module")
def weights(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / f"{NAME}.safetensors"
    save_file(state, path)
    return path


def picture(side: int) -> Tensor:
    line = torch.linspace(0, 1, side)
    return torch.stack([line.outer(line), line.flip(0).outer(line), line.outer(1 - line)])[None]


def test_the_features_are_those_of_torchvisions_code_with_the_changes_for_fid(weights: Path):
    inception = Inception(weights)
    found = inception(picture(299))
    assert found.shape == (1, 2048) and inception.is_inception and inception.name == NAME
    # torchvision 0.29 with its average pooling changed as pytorch-fid describes gives these values.
    torch.testing.assert_close(
        found[0, :4], torch.tensor([0.3375980, 0.1759253, 0.0005491, 0.0014978]), rtol=1e-3, atol=1e-6
    )
    assert found.mean().item() == pytest.approx(0.04597336, rel=1e-3)


def test_pictures_are_resized_bilinearly_to_299(weights: Path):
    inception, small = Inception(weights), picture(64)
    resized = nn.functional.interpolate(small, size=(299, 299), mode="bilinear", align_corners=False)
    torch.testing.assert_close(inception(small), inception(resized))


def test_a_pickle_needs_permission_and_gives_the_same(state: dict[str, Tensor], weights: Path, tmp_path: Path):
    torch.save(state, tmp_path / f"{NAME}.pth")
    with pytest.raises(UserError, match="is a pickle, which can run code; pass --allow_pickle true"):
        Inception(tmp_path)
    torch.testing.assert_close(Inception(tmp_path, allow_pickle=True)(picture(64)), Inception(weights)(picture(64)))


def test_a_torchscript_file_gets_pictures_of_8_bits(tmp_path: Path):
    write_scripted_inception(tmp_path / "inception-2015-12-05.pt")
    write_scripted_inception(tmp_path / "other.pt", width=64)
    inception = Inception(tmp_path / "inception-2015-12-05.pt", allow_pickle=True)
    assert inception(torch.full((2, 3, 8, 8), 1.0))[:, 0].tolist() == [255, 255]
    with pytest.raises(UserError, match=r"gives features of shape \(1, 64\), not \(1, 2048\)"):
        Inception(tmp_path / "other.pt", allow_pickle=True)


def test_another_network_is_not_taken_for_that_of_fid(state: dict[str, Tensor], tmp_path: Path):
    files = {
        "torchvision": state | {"fc.weight": torch.zeros(1000, 2048)},
        "no-classes": {name: tensor for name, tensor in state.items() if not name.startswith("fc.")},
        "part": {name: tensor for name, tensor in state.items() if not name.startswith("Mixed_7c")},
        "sizes": state | {"Conv2d_1a_3x3.bn.bias": torch.zeros(3)},
    }
    messages = {
        "torchvision": "is an Inception with 1000 classes, such as torchvision's; FID is defined by the one with 1008",
        "no-classes": "it has no weights fc.weight",
        "part": "Mixed_7c.branch1x1.conv.weight does not fit",
        "sizes": "weights of other sizes does not fit",
    }
    for name, content in files.items():
        save_file(content, tmp_path / f"{name}.safetensors")
        with pytest.raises(UserError, match=messages[name]):
            Inception(tmp_path / f"{name}.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        Inception(tmp_path / "damaged.safetensors")
    with pytest.raises(UserError, match="is no file of the Inception network; give pt_inception"):
        Inception(tmp_path)  # several files
