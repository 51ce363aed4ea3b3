"""The Inception network that FID is defined by, from the files that people have.

The network is Google's of December 2015, in the form in which TensorFlow published it for FID. It is not the Inception
of torchvision and timm, which has other weights and pools differently. Two kinds of files are understood:

* the state dict that pytorch-fid, torch-fidelity and torchmetrics download (pt_inception-2015-12-05-6726825d.pth), also
  saved as .safetensors;
* NVIDIA's TorchScript file inception-2015-12-05.pt, which clean-fid uses too.

Pictures are resized to 299 x 299 pixels, bilinearly and without antialiasing, as pytorch-fid does; a TorchScript file
resizes them itself, as TensorFlow did. So values of the two differ a little.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d, relu

from apdm.core.errors import UserError, one_line
from apdm.core.model_path import PICKLES

SIDE = 299
CLASSES = 1008  # outputs of the last layer; torchvision's Inception has 1000
SUFFIXES = (".safetensors", ".pth", ".pt")


class Layer(NamedTuple):
    """One convolution: its name in the file, the channels that it gives, its kernel and its stride."""

    name: str
    outputs: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1


Branch = Sequence[Layer | tuple[Layer, Layer]]  # two layers in a tuple both take what the layer before them gives


class Convolution(nn.Module):
    """A convolution without bias, batch normalisation and ReLU. With `padded` and stride 1 the size stays."""

    def __init__(self, inputs: int, layer: Layer, *, padded: bool = True) -> None:
        super().__init__()
        kernel = (layer.kernel, layer.kernel) if isinstance(layer.kernel, int) else layer.kernel
        padding = (kernel[0] // 2, kernel[1] // 2) if padded and layer.stride == 1 else (0, 0)
        self.conv = nn.Conv2d(inputs, layer.outputs, kernel, layer.stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(layer.outputs, eps=0.001)

    def forward(self, images: Tensor) -> Tensor:
        return relu(self.bn(self.conv(images)))


class Mixed(nn.Module):
    """Branches of convolutions side by side, and pooling beside them.

    Args:
        inputs: channels of the input.
        branches: the branches, in the order of their outputs.
        pool: how the last part of the output is pooled: "average" and "maximum" keep the size and end with the
            convolution `branch_pool`, "halve" takes the maximum with stride 2 and has no convolution.
        pooled: outputs of `branch_pool`.
    """

    def __init__(self, inputs: int, branches: Sequence[Branch], pool: str, pooled: int = 0) -> None:
        super().__init__()
        self.branches, self.pool = branches, pool
        outputs = 0
        for branch in branches:
            channels = inputs
            for step in branch:
                layers = [step] if isinstance(step, Layer) else list(step)
                for layer in layers:
                    self.add_module(layer.name, Convolution(channels, layer))
                channels = sum(layer.outputs for layer in layers)
            outputs += channels
        if pool != "halve":
            self.branch_pool = Convolution(inputs, Layer("branch_pool", pooled))
        self.outputs = outputs + (inputs if pool == "halve" else pooled)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([*(self._run(branch, images) for branch in self.branches), self._pooled(images)], dim=1)

    def _run(self, branch: Branch, images: Tensor) -> Tensor:
        for step in branch:
            layers = [step] if isinstance(step, Layer) else list(step)
            images = torch.cat([self.get_submodule(layer.name)(images) for layer in layers], dim=1)
        return images

    def _pooled(self, images: Tensor) -> Tensor:
        if self.pool == "halve":
            return max_pool2d(images, 3, 2)
        if self.pool == "maximum":
            return self.branch_pool(max_pool2d(images, 3, 1, 1))
        # TensorFlow does not count the padding in the average.
        return self.branch_pool(avg_pool2d(images, 3, 1, 1, count_include_pad=False))


class InceptionNetwork(nn.Module):
    """The network up to its last pooling. The names of its parts are those of the state dict that people have."""

    def __init__(self) -> None:
        super().__init__()
        stem = [
            Layer("Conv2d_1a_3x3", 32, 3, 2),
            Layer("Conv2d_2a_3x3", 32, 3),
            Layer("Conv2d_2b_3x3", 64, 3),
            Layer("Conv2d_3b_1x1", 80),
            Layer("Conv2d_4a_3x3", 192, 3),
        ]
        channels = 3
        for layer in stem:
            self.add_module(layer.name, Convolution(channels, layer, padded=layer.name == "Conv2d_2b_3x3"))
            channels = layer.outputs
        self.mixed = []
        for name, (branches, pool, pooled) in _mixed_parts().items():
            part = Mixed(channels, branches, pool, pooled)
            self.add_module(name, part)
            self.mixed.append(name)
            channels = part.outputs

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, 2048] of `images` [B, 3, 299, 299] in [-1, 1]."""
        for names in (("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"), ("Conv2d_3b_1x1", "Conv2d_4a_3x3")):
            for name in names:
                images = self.get_submodule(name)(images)
            images = max_pool2d(images, 3, 2)
        for name in self.mixed:
            images = self.get_submodule(name)(images)
        return images.mean(dim=(2, 3))


def _mixed_parts() -> Mapping[str, tuple[Sequence[Branch], str, int]]:
    """{name: (branches, kind of pooling, outputs of the pooling branch)} of all mixed parts, in order."""
    parts: dict[str, tuple[Sequence[Branch], str, int]] = {}
    double = [Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, 3)]
    for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        branches = [
            [Layer("branch1x1", 64)],
            [Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, 5)],
            [*double, Layer("branch3x3dbl_3", 96, 3)],
        ]
        parts[name] = (branches, "average", pooled)
    parts["Mixed_6a"] = ([[Layer("branch3x3", 384, 3, 2)], [*double, Layer("branch3x3dbl_3", 96, 3, 2)]], "halve", 0)
    for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        parts[name] = (_factorised(width), "average", 192)
    parts["Mixed_7a"] = (
        [
            [Layer("branch3x3_1", 192), Layer("branch3x3_2", 320, 3, 2)],
            [
                Layer("branch7x7x3_1", 192),
                Layer("branch7x7x3_2", 192, (1, 7)),
                Layer("branch7x7x3_3", 192, (7, 1)),
                Layer("branch7x7x3_4", 192, 3, 2),
            ],
        ],
        "halve",
        0,
    )
    # In the network that was published for FID, the last part takes the maximum where the others take the average.
    parts["Mixed_7b"], parts["Mixed_7c"] = (_widened(), "average", 192), (_widened(), "maximum", 192)
    return parts


def _factorised(width: int) -> Sequence[Branch]:
    """Branches with 7 x 7 kernels as pairs of 1 x 7 and 7 x 1."""
    return [
        [Layer("branch1x1", 192)],
        [Layer("branch7x7_1", width), Layer("branch7x7_2", width, (1, 7)), Layer("branch7x7_3", 192, (7, 1))],
        [
            Layer("branch7x7dbl_1", width),
            Layer("branch7x7dbl_2", width, (7, 1)),
            Layer("branch7x7dbl_3", width, (1, 7)),
            Layer("branch7x7dbl_4", width, (7, 1)),
            Layer("branch7x7dbl_5", 192, (1, 7)),
        ],
    ]


def _widened() -> Sequence[Branch]:
    """Branches that end in a 1 x 3 and a 3 x 1 kernel side by side."""
    return [
        [Layer("branch1x1", 320)],
        [Layer("branch3x3_1", 384), (Layer("branch3x3_2a", 384, (1, 3)), Layer("branch3x3_2b", 384, (3, 1)))],
        [
            Layer("branch3x3dbl_1", 448),
            Layer("branch3x3dbl_2", 384, 3),
            (Layer("branch3x3dbl_3a", 384, (1, 3)), Layer("branch3x3dbl_3b", 384, (3, 1))),
        ],
    ]


# -- files ---------------------------------------------------------------------------------------------------


class Features(Protocol):
    """Turns pictures [B, 3, H, W] in [0, 1] into features [B, 2048]."""

    def __call__(self, images: Tensor) -> Tensor: ...


class Inception:
    """The extractor of FID, from a file."""

    is_inception = True

    def __init__(self, path: Path, *, allow_pickle: bool = False) -> None:
        """Load the network.

        Args:
            path: the file, or a folder that holds a single one.
            allow_pickle: whether .pth and .pt files may be read.

        Raises:
            UserError: there is no such file, or it does not hold this network, or it is a pickle.
        """
        file = _file(path)
        if file.suffix in PICKLES and not allow_pickle:
            raise UserError(
                f"{file} is a pickle, which can run code; pass --allow_pickle true, or save its weights as .safetensors"
            )
        self.name = file.stem
        self.features = _scripted(file) if is_torchscript(file) else _from_state(file)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, 2048] of `images` [B, 3, H, W] in [0, 1]."""
        return self.features(images.float()).float()


def _file(path: Path) -> Path:
    if path.is_file() and path.suffix in SUFFIXES:
        return path
    files = sorted(file for file in path.glob("*") if file.suffix in SUFFIXES) if path.is_dir() else []
    if len(files) != 1:
        raise UserError(
            f"{path} is no file of the Inception network; give pt_inception-2015-12-05-6726825d.pth (of pytorch-fid), "
            "the same as .safetensors, or inception-2015-12-05.pt (of NVIDIA)"
        )
    return files[0]


def is_torchscript(file: Path) -> bool:
    """Whether the file is an archive with code, and not only with weights."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any("/code/" in name for name in archive.namelist())


def _scripted(file: Path) -> Features:
    try:
        network = torch.jit.load(str(file), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {one_line(error, 200)}") from error

    def features(images: Tensor) -> Tensor:
        # The file takes pictures of 8 bits of any size, and resizes and normalises them itself.
        found: Tensor = network((images * 255).round().clamp(0, 255).to(torch.uint8), return_features=True)
        return found

    try:
        shape = tuple(features(torch.zeros(1, 3, 32, 32)).shape)
    except RuntimeError as error:
        raise UserError(f"{file} is not NVIDIA's inception-2015-12-05.pt: {one_line(error, 100)}") from error
    if shape != (1, 2048):
        raise UserError(f"{file} gives features of shape {shape}, not (1, 2048): give NVIDIA's inception-2015-12-05.pt")
    return features


def _from_state(file: Path) -> Features:
    try:
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        classes = len(state.pop("fc.weight"))
    except (SafetensorError, pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({type(error).__name__}); replace it") from None
    except (KeyError, AttributeError):
        raise UserError(f"{file} does not hold the Inception network: it has no weights fc.weight") from None
    if classes != CLASSES:
        raise UserError(
            f"{file} is an Inception with {classes} classes, such as torchvision's; FID is defined by the one with "
            f"{CLASSES}: pt_inception-2015-12-05-6726825d.pth"
        )
    state.pop("fc.bias", None)
    network = InceptionNetwork()
    try:
        missing, unknown = network.load_state_dict(state, strict=False)
    except RuntimeError:
        missing, unknown = ["weights of other sizes"], []
    wrong = [*(name for name in missing if not name.endswith("num_batches_tracked")), *unknown]
    if wrong:
        raise UserError(f"{file} does not hold the Inception network of FID: {wrong[0]} does not fit")
    network.eval().requires_grad_(False)

    def features(images: Tensor) -> Tensor:
        small = interpolate(images, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        found: Tensor = network(small * 2 - 1)
        return found

    return features
