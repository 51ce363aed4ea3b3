"""An ONNX graph of a face recogniser as a torch module, with gradients and for batches of any size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apdm.core.errors import UserError, one_line
from apdm.faces.align import ARCFACE_SIZE
from apdm.faces.onnx_operators import INTEGER_TYPES, OPERATORS, Unsupported
from apdm.faces.optional_packages import import_extra


@dataclass(frozen=True)
class Node:
    """One operator of the graph.

    Attributes:
        operator: its ONNX name.
        attributes: its ONNX attributes.
        inputs: names of its input values.
        output: name of its first output value.
        last_uses: names of the values that no later operator needs, so that they can be freed.
    """

    operator: str
    attributes: dict[str, Any]
    inputs: list[str]
    output: str
    last_uses: list[str]


class OnnxModule(nn.Module):
    """A recogniser that takes aligned RGB crops `[B, 3, S, S]` in [0, 1] and returns embeddings `[B, D]`.

    The embeddings are not normalised. The graph is run on one picture at a time, vectorised over the batch. Many
    exporters write a batch size of 1 into the graph's shapes, and such a graph would silently fold a larger batch into
    one embedding.

    Pixels are scaled as InsightFace does, to (255 x - 127.5) / 127.5. A graph that begins with its own subtraction and
    scaling gets 255 x. The weights are buffers, because they are not trained.

    Args:
        path: an ONNX file whose only input is one picture and that has one output.

    Attributes:
        size: S, the side of the crops in pixels; 112 if the graph leaves it open.

    Raises:
        UserError: there is no such file, it is no such graph, it uses an operator or a setting that is not implemented,
            or the package onnx is missing.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.file = Path(path).name
        graph = _read(Path(path), self.file)
        self._constants: dict[str, Tensor] = {}
        self._buffer_of: dict[str, str] = {}
        for tensor in graph.initializer:
            self._keep(tensor.name, tensor)
        inputs = [value for value in graph.input if value.name not in self._buffer_of | self._constants]
        self.size = self._picture_size(inputs)
        if len(graph.output) != 1:
            raise UserError(f"{self.file} has {len(graph.output)} outputs; a face recogniser has one, the embedding")
        self.input, self.output = inputs[0].name, graph.output[0].name
        self.normalises = _normalises(graph)
        self.nodes = self._plan(graph)
        self._check()

    def forward(self, crops: Tensor) -> Tensor:
        """Embed crops `[B, 3, S, S]` in [0, 1]. Returns `[B, D]`."""
        pixels = crops * 255
        if not self.normalises:
            pixels = (pixels - 127.5) / 127.5
        embeddings: Tensor = torch.vmap(self._one)(pixels)
        return embeddings

    def _one(self, pixels: Tensor) -> Tensor:
        """Run the graph on one picture `[3, S, S]`. Returns its embedding `[D]`."""
        values: dict[str, Any] = {name: getattr(self, buffer) for name, buffer in self._buffer_of.items()}
        values |= self._constants | {self.input: pixels[None], "": None}
        for node in self.nodes:
            try:
                inputs = [values[name] for name in node.inputs]
                values[node.output] = OPERATORS[node.operator](node.attributes, *inputs)
            except (Unsupported, RuntimeError, KeyError, IndexError, TypeError, ValueError) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                reason = one_line(error)
                raise UserError(
                    f"{self.file}: operator {node.operator} ({node.output}) cannot run: {reason}"
                ) from error
            for name in node.last_uses:
                del values[name]
        embedding: Tensor = values[self.output].flatten()
        return embedding

    def _keep(self, name: str, tensor: Any) -> None:
        """Keep a constant of the graph: weights as buffers that move with the module, shapes and indices on the CPU."""
        array = torch.from_numpy(import_extra("onnx.numpy_helper").to_array(tensor).copy())
        if tensor.data_type in INTEGER_TYPES:
            self._constants[name] = array
            return
        self._buffer_of[name] = f"value_{len(self._buffer_of)}"
        self.register_buffer(self._buffer_of[name], array.float())

    def _picture_size(self, inputs: list[Any]) -> int:
        shape = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim] if len(inputs) == 1 else []
        if len(shape) != 4 or shape[1] not in (0, 3) or shape[2] != shape[3]:
            raise UserError(f"{self.file} is not a face recogniser: its input must be one picture, [1, 3, S, S]")
        if shape[0] > 1:
            raise UserError(f"{self.file} is exported for a batch of {shape[0]}; export it with 1 or a free batch")
        return int(shape[2]) or ARCFACE_SIZE

    def _plan(self, graph: Any) -> list[Node]:
        """The operators in the order of the graph, which ONNX requires to be sorted. Constants are kept apart."""
        onnx = import_extra("onnx")
        last = {name: i for i, node in enumerate(graph.node) for name in node.input}
        plan = []
        for i, node in enumerate(graph.node):
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant":
                self._keep(node.output[0], _constant(attributes))
                continue
            if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
                operator = ".".join(filter(None, [node.domain, node.op_type]))
                raise UserError(
                    f"{self.file} uses the operator {operator}, which is not implemented; "
                    "put it into the folder of an InsightFace pack, where it can judge without a gradient"
                )
            unused = [name for name in dict.fromkeys(node.input) if name and last[name] == i and name != self.output]
            plan.append(Node(node.op_type, attributes, list(node.input), node.output[0], unused))
        return plan

    def _check(self) -> None:
        """Run the graph on a blank picture, so that a graph that cannot run is refused when it is loaded."""
        with torch.no_grad():
            embedding = self(torch.zeros(1, 3, self.size, self.size, dtype=torch.float32))
        if embedding.shape[1] < 2:
            raise UserError(f"{self.file} gives {embedding.shape[1]} number for a picture; use a face recogniser")


def _read(path: Path, name: str) -> Any:
    if not path.is_file():
        raise UserError(f"{name} does not exist; give the path of an .onnx file")
    onnx = import_extra("onnx")
    try:
        return onnx.load(str(path)).graph
    except Exception as error:  # protobuf's errors have no public base class
        raise UserError(f"{name} cannot be read as ONNX ({type(error).__name__}); replace it") from None


def _constant(attributes: dict[str, Any]) -> Any:
    """The tensor of a Constant node. The node may also hold a number or a list of numbers."""
    (value,) = attributes.values()
    if isinstance(value, int | float | list):
        return import_extra("onnx.numpy_helper").from_array(np.array(value))
    return value


def _normalises(graph: Any) -> bool:
    """Whether the graph subtracts a mean and scales before its first convolution, as exports from MXNet do."""
    before: set[str] = set()
    for node in graph.node:
        if node.op_type == "Conv":
            break
        before.add(node.op_type)
    return "Sub" in before and bool(before & {"Mul", "Div"})
