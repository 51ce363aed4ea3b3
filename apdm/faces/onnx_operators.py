"""The ONNX operators that face recognisers use, in torch: one function for each, and one table of all.

A function takes the node's attributes `a`, and then its inputs in the order of the ONNX specification. An input that is
left out is None. Some versions of ONNX moved a setting from an attribute to an input; both forms are accepted. The
functions have ONNX's names, and https://onnx.ai/onnx/operators describes what they compute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Attributes = dict[str, Any]
Operator = Callable[..., Tensor]

INTEGER_TYPES = (2, 3, 4, 5, 6, 7, 9, 12, 13)  # TensorProto.DataType: the signed and unsigned integers, and bool


class Unsupported(Exception):
    """A setting of an operator that is not implemented."""


def integers(values: Any) -> list[int] | None:
    """The integers of an attribute or of an input tensor, as a list; None stays None."""
    if values is None:
        return None
    flat = values.flatten().tolist() if isinstance(values, Tensor) else [values] if isinstance(values, int) else values
    return [int(value) for value in flat]


def pad(x: Tensor, pads: Sequence[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """Pad as ONNX describes it.

    Args:
        x: any tensor.
        pads: amounts at the beginning of each axis, then at the end of each axis. torch lists pairs, last axis first.
        mode: "constant", "edge" or "reflect".
        value: the padding's value in mode "constant".
    """
    axes = len(pads) // 2
    pairs = [amount for axis in reversed(range(axes)) for amount in (pads[axis], pads[axes + axis])]
    if mode != "constant":
        # In these modes torch takes the amounts of the spatial axes only.
        return F.pad(x, pairs[: 2 * (x.ndim - 2)], {"edge": "replicate", "reflect": "reflect"}[mode])
    return F.pad(x, pairs, value=value)


def spatial_padding(a: Attributes, x: Tensor, value: float) -> tuple[Tensor, list[int]]:
    """The padding of a convolution or of pooling.

    Returns:
        `x` and the padding that torch's function takes. Padding that differs between the two ends of an axis, which
        torch's functions do not take, is applied to `x` with `value`, and the returned padding is zero.

    Raises:
        Unsupported: the padding is given as auto_pad.
    """
    if a.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise Unsupported(f"auto_pad {a['auto_pad'].decode()}")
    dimensions = x.ndim - 2
    pads = a.get("pads", [0] * 2 * dimensions)
    if pads[:dimensions] == pads[dimensions:]:
        return x, pads[:dimensions]
    return pad(x, pads, value=value), [0] * dimensions


def conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve images `[B, C, H, W]`."""
    if x.ndim != 4:
        raise Unsupported(f"{x.ndim - 2} spatial dimensions")
    x, padding = spatial_padding(a, x, 0.0)
    return F.conv2d(x, weight, bias, a.get("strides", 1), padding, a.get("dilations", 1), a.get("group", 1))


def max_pool(a: Attributes, x: Tensor) -> Tensor:
    """Max pooling."""
    x, padding = spatial_padding(a, x, -math.inf)
    strides, dilations = a.get("strides", 1), a.get("dilations", 1)
    return F.max_pool2d(x, a["kernel_shape"], strides, padding, dilations, bool(a.get("ceil_mode", 0)))


def average_pool(a: Attributes, x: Tensor) -> Tensor:
    """Average pooling."""
    padded, padding = spatial_padding(a, x, 0.0)
    counts_padding = bool(a.get("count_include_pad", 0))
    if padded is not x and not counts_padding:
        raise Unsupported("uneven pads without count_include_pad")
    ceil_mode = bool(a.get("ceil_mode", 0))
    return F.avg_pool2d(padded, a["kernel_shape"], a.get("strides", 1), padding, ceil_mode, counts_padding)


def batch_normalization(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Batch normalisation with stored statistics."""
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, a.get("epsilon", 1e-5))


def instance_normalization(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Instance normalisation."""
    return F.instance_norm(x, weight=scale, bias=bias, eps=a.get("epsilon", 1e-5))


def lp_normalization(a: Attributes, x: Tensor) -> Tensor:
    """Divide by the Lp norm along an axis."""
    return x / torch.linalg.vector_norm(x, a.get("p", 2), dim=a.get("axis", -1), keepdim=True)


def prelu(a: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    """max(x, 0) + slope * min(x, 0)."""
    if slope.ndim == 1 and slope.numel() > 1:  # one slope for each channel, as older exporters write it
        slope = slope.view(-1, *[1] * (x.ndim - 2))
    return x.clamp(min=0) + slope * x.clamp(max=0)


def clip(a: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Clamp to bounds that are given as inputs or, in old graphs, as attributes."""
    low, high = a.get("min") if low is None else low, a.get("max") if high is None else high
    return x if low is None and high is None else x.clamp(low, high)


def divide(a: Attributes, x: Tensor, y: Tensor) -> Tensor:
    """Divide; integers are divided as in C, rounding towards zero."""
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def gemm(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """alpha * A' B' + beta * C, where A' and B' may be transposed."""
    x, weight = x.mT if a.get("transA") else x, weight.mT if a.get("transB") else weight
    product = a.get("alpha", 1.0) * (x @ weight)
    return product if bias is None else product + a.get("beta", 1.0) * bias


def flatten(a: Attributes, x: Tensor) -> Tensor:
    """Flatten to two axes, split before `axis`."""
    axis = a.get("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def reshape(a: Attributes, x: Tensor, shape: Tensor | None = None) -> Tensor:
    """Reshape; a size of 0 copies the input's size unless allowzero is set."""
    sizes = integers(a.get("shape") if shape is None else shape) or []
    copies = not a.get("allowzero")
    return x.reshape([x.shape[i] if size == 0 and copies else size for i, size in enumerate(sizes)])


def transpose(a: Attributes, x: Tensor) -> Tensor:
    """Permute the axes; by default reverse them."""
    return x.permute(a.get("perm", tuple(reversed(range(x.ndim)))))


def pad_node(
    a: Attributes, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    """Pad with amounts that are given as an input or, in old graphs, as an attribute."""
    if axes is not None:
        raise Unsupported("axes")
    amounts = integers(a.get("pads") if pads is None else pads) or []
    fill = a.get("value", 0.0) if value is None else float(value)
    return pad(x, amounts, a.get("mode", b"constant").decode(), fill)


def squeeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Remove axes of size 1: those that are named, or all."""
    places = integers(a.get("axes") if axes is None else axes)
    return x.squeeze() if places is None else x.squeeze(places)


def unsqueeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Insert axes of size 1 at the named places of the result."""
    places = integers(a.get("axes") if axes is None else axes) or []
    rank = x.ndim + len(places)
    for place in sorted(place % rank for place in places):
        x = x.unsqueeze(place)
    return x


def gather(a: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    """Select entries along one axis."""
    axis = a.get("axis", 0) % x.ndim
    wanted = (indices % x.shape[axis]).long().to(x.device)
    return x.index_select(axis, wanted.flatten()).reshape([*x.shape[:axis], *wanted.shape, *x.shape[axis + 1 :]])


def shape_of(a: Attributes, x: Tensor) -> Tensor:
    """The shape of a tensor, as a tensor."""
    return torch.tensor(x.shape[a.get("start", 0) : a.get("end")], dtype=torch.int64)


def cast(a: Attributes, x: Tensor) -> Tensor:
    """Convert to integers or floats. Floats keep their type, so a half-precision graph runs in full precision."""
    if a["to"] in INTEGER_TYPES:
        return x.long()
    return x if x.is_floating_point() else x.float()


def reduction(reduce: Callable[..., Tensor]) -> Operator:
    """The operator that applies a torch reduction to the named axes, or to all."""

    def node(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        places = integers(a.get("axes") if axes is None else axes)
        if not places and a.get("noop_with_empty_axes"):
            return x
        return reduce(x, dim=places or list(range(x.ndim)), keepdim=bool(a.get("keepdims", 1)))

    return node


def without_attributes(function: Callable[..., Tensor]) -> Operator:
    """An operator without attributes."""
    return lambda a, *inputs: function(*inputs)


OPERATORS: dict[str, Operator] = {
    "Add": without_attributes(torch.add),
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Cast": cast,
    "Clip": clip,
    "Concat": lambda a, *inputs: torch.cat(inputs, dim=a["axis"]),
    "Conv": conv,
    "Div": divide,
    "Dropout": without_attributes(lambda x, *_: x),
    "Flatten": flatten,
    "Gather": gather,
    "Gemm": gemm,
    "GlobalAveragePool": lambda a, x: x.mean(dim=tuple(range(2, x.ndim)), keepdim=True),
    "Identity": without_attributes(lambda x: x),
    "InstanceNormalization": instance_normalization,
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "LpNormalization": lp_normalization,
    "MatMul": without_attributes(torch.matmul),
    "MaxPool": max_pool,
    "Mul": without_attributes(torch.mul),
    "PRelu": prelu,
    "Pad": pad_node,
    "Pow": without_attributes(torch.pow),
    "ReduceL2": reduction(torch.linalg.vector_norm),
    "ReduceMean": reduction(torch.mean),
    "ReduceSum": reduction(torch.sum),
    "Relu": without_attributes(F.relu),
    "Reshape": reshape,
    "Shape": shape_of,
    "Sigmoid": without_attributes(torch.sigmoid),
    "Sqrt": without_attributes(torch.sqrt),
    "Squeeze": squeeze,
    "Sub": without_attributes(torch.sub),
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
