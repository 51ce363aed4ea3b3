"""OnnxModule against ONNX Runtime: every operator, batches of graphs that were exported for one picture, gradients."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from apdm.core.errors import UserError
from apdm.faces.onnx_module import OnnxModule
from apdm.faces.onnx_operators import OPERATORS

SIDE = 6
RNG = np.random.default_rng(5)


def weights(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32) * 0.5


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def write_graph(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    opset: int = 17,
    shape: Sequence[Any] = (1, 3, SIDE, SIDE),
    outputs: Sequence[str] = ("y",),
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, str(path))
    return path


def by_onnxruntime(path: Path, crops: torch.Tensor, normalised: bool = True) -> torch.Tensor:
    """One picture after another."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pixels = crops * 255
    pixels = (pixels - 127.5) / 127.5 if normalised else pixels
    rows = [session.run(None, {"x": picture[None].numpy()})[0].reshape(1, -1) for picture in pixels]
    return torch.from_numpy(np.concatenate(rows))


def crops(batch: int) -> torch.Tensor:
    return torch.rand(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def node(operator: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, list(inputs), ["y"], **attributes)


C = (3, 1, 1)
# Each is one node from x to y: operator, attributes, further inputs, opset.
CASES: list[tuple[str, dict[str, Any], list[np.ndarray | np.float32 | None], int]] = [
    ("Conv", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}, [weights(4, 3, 3, 3), weights(4)], 17),
    ("Conv", {"kernel_shape": [3, 3], "pads": [0, 1, 1, 2], "group": 3}, [weights(6, 1, 3, 3)], 17),
    ("Conv", {"kernel_shape": [2, 2], "dilations": [2, 2], "auto_pad": "VALID"}, [weights(4, 3, 2, 2)], 17),
    ("BatchNormalization", {"epsilon": 1e-3}, [weights(3), weights(3), weights(3), weights(3) ** 2], 17),
    ("InstanceNormalization", {}, [weights(3), weights(3)], 17),
    ("LpNormalization", {"axis": 1, "p": 2}, [], 17),
    ("LpNormalization", {"axis": 3, "p": 1}, [], 17),
    ("PRelu", {}, [weights(*C)], 17),
    ("LeakyRelu", {"alpha": 0.2}, [], 17),
    ("Relu", {}, [], 17),
    ("Sigmoid", {}, [], 17),
    ("Clip", {}, [np.float32(-0.3), np.float32(0.4)], 17),
    ("Clip", {}, [None, np.float32(0.4)], 17),
    ("Clip", {"min": -0.3, "max": 0.4}, [], 6),
    ("Add", {}, [weights(*C)], 17),
    ("Sub", {}, [weights(*C)], 17),
    ("Mul", {}, [weights(*C)], 17),
    ("Div", {}, [weights(*C) + 3], 17),
    ("Pow", {}, [np.float32(2)], 17),
    ("MatMul", {}, [weights(SIDE, 4)], 17),
    ("Flatten", {"axis": 1}, [], 17),
    ("Flatten", {"axis": 3}, [], 17),
    ("Reshape", {}, [ints(1, -1)], 17),
    ("Reshape", {}, [ints(0, 0, 36)], 17),
    ("Transpose", {"perm": [0, 2, 3, 1]}, [], 17),
    ("Transpose", {}, [], 17),
    ("GlobalAveragePool", {}, [], 17),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}, [], 17),
    ("AveragePool", {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "count_include_pad": 1}, [], 17),
    ("MaxPool", {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1], "strides": [2, 2]}, [], 17),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, [], 17),
    ("Pad", {}, [ints(0, 0, 1, 2, 0, 0, 3, 0), np.float32(0.7)], 17),
    ("Pad", {"mode": "edge"}, [ints(0, 0, 1, 2, 0, 0, 3, 0)], 17),
    ("Pad", {"mode": "reflect", "pads": [0, 0, 1, 2, 0, 0, 3, 0]}, [], 2),
    ("Concat", {"axis": 1}, [weights(1, 2, SIDE, SIDE)], 17),
    ("Identity", {}, [], 17),
    ("Dropout", {}, [], 17),
    ("Unsqueeze", {}, [ints(0, -1)], 17),
    ("Unsqueeze", {"axes": [1]}, [], 11),
    ("Squeeze", {}, [ints(0)], 17),
    ("Squeeze", {"axes": [0]}, [], 11),
    ("Gather", {"axis": 1}, [ints(2, 0)], 17),
    ("Gather", {"axis": 3}, [np.array(-1)], 17),
    ("ReduceMean", {"axes": [2, 3], "keepdims": 0}, [], 17),
    ("ReduceMean", {"keepdims": 0}, [ints(2)], 18),
    ("ReduceSum", {}, [ints(1)], 17),
    ("ReduceL2", {"axes": [1]}, [], 17),
]


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)])
def test_an_operator_gives_what_onnx_runtime_gives(
    tmp_path: Path, case: tuple[str, dict[str, Any], list[np.ndarray | None], int]
):
    operator, attributes, inputs, opset = case
    names = [f"c{i}" if value is not None else "" for i, value in enumerate(inputs)]
    constants = {name: np.asarray(value) for name, value in zip(names, inputs, strict=True) if value is not None}
    path = write_graph(tmp_path / "one.onnx", [node(operator, "x", *names, **attributes)], constants, opset)
    module = OnnxModule(path)
    pictures = crops(3)
    torch.testing.assert_close(module(pictures), by_onnxruntime(path, pictures), rtol=1e-5, atol=1e-5)


def recogniser(path: Path, batch: int | str = 1) -> Path:
    """Convolution, PReLU, a reshape that names a batch of 1, a fully connected layer and batch normalisation."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("PRelu", ["1", "slope"], ["2"]),
        helper.make_node("Constant", [], ["shape"], value=numpy_helper.from_array(ints(1, 36))),
        helper.make_node("Reshape", ["2", "shape"], ["3"]),
        helper.make_node("Gemm", ["3", "fc", "bias"], ["4"], transB=1, alpha=0.5, beta=2.0),
        helper.make_node("BatchNormalization", ["4", "s", "bias", "m", "v"], ["y"]),
    ]
    constants = {"w": weights(4, 3, 3, 3), "b": weights(4), "slope": weights(4, 1, 1), "fc": weights(8, 36)}
    constants |= {"bias": weights(8), "s": weights(8), "m": weights(8), "v": weights(8) ** 2}
    return write_graph(path, nodes, constants, shape=(batch, 3, SIDE, SIDE))


def test_a_graph_exported_for_one_picture_takes_a_batch_of_four(tmp_path: Path):
    path, pictures = recogniser(tmp_path / "fixed.onnx"), crops(4)
    embeddings = OnnxModule(path)(pictures)
    assert embeddings.shape == (4, 8)
    torch.testing.assert_close(embeddings, by_onnxruntime(path, pictures), rtol=1e-5, atol=1e-5)


def test_a_shape_computed_in_the_graph_is_followed(tmp_path: Path):
    nodes = [
        helper.make_node("Shape", ["x"], ["1"]),
        helper.make_node("Gather", ["1", "first"], ["2"], axis=0),
        helper.make_node("Cast", ["2"], ["3"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["3", "zero"], ["4"]),
        helper.make_node("Constant", [], ["half"], value_ints=[73, 6]),
        helper.make_node("Div", ["half", "two"], ["5"]),
        helper.make_node("Concat", ["4", "5"], ["6"], axis=0),
        helper.make_node("Reshape", ["x", "6"], ["7"]),
        helper.make_node("Constant", [], ["power"], value_float=2.0),
        helper.make_node("Pow", ["7", "power"], ["8"]),
        helper.make_node("Sqrt", ["8"], ["9"]),
        helper.make_node("ReduceSum", ["9", "last"], ["y"], keepdims=0),
    ]
    constants = {"first": np.array(0), "zero": ints(0), "two": ints(2), "last": ints(2)}
    path = write_graph(tmp_path / "dynamic.onnx", nodes, constants, shape=("N", 3, SIDE, SIDE))
    torch.testing.assert_close(OnnxModule(path)(crops(4)), by_onnxruntime(path, crops(4)), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_finite_differences(tmp_path: Path):
    module = OnnxModule(recogniser(tmp_path / "fixed.onnx")).double()
    assert not list(module.parameters())
    assert torch.autograd.gradcheck(module, crops(2).double().requires_grad_())


def test_a_graph_that_normalises_its_pixels_is_fed_0_to_255(tmp_path: Path):
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["1"]),
        helper.make_node("Mul", ["1", "scale"], ["2"]),
        helper.make_node("Conv", ["2", "w"], ["y"], kernel_shape=[3, 3]),
    ]
    constants = {"mean": np.float32(127.5), "scale": np.float32(1 / 128), "w": weights(4, 3, 3, 3)}
    path = write_graph(tmp_path / "own.onnx", nodes, {name: np.asarray(value) for name, value in constants.items()})
    expected = by_onnxruntime(path, crops(2), normalised=False)
    torch.testing.assert_close(OnnxModule(path)(crops(2)), expected, rtol=1e-5, atol=1e-5)


def test_an_unknown_operator_is_named_with_its_file(tmp_path: Path):
    path = write_graph(tmp_path / "odd.onnx", [node("Tan", "x")], {})
    with pytest.raises(UserError, match=r"odd\.onnx uses the operator Tan, which is not implemented"):
        OnnxModule(path)


def test_an_unknown_setting_is_an_error_when_the_file_is_loaded(tmp_path: Path):
    convolution = node("Conv", "x", "w", kernel_shape=[3, 3], auto_pad="SAME_UPPER")
    path = write_graph(tmp_path / "same.onnx", [convolution], {"w": weights(4, 3, 3, 3)})
    with pytest.raises(UserError, match=r"same\.onnx: operator Conv .* auto_pad SAME_UPPER"):
        OnnxModule(path)


@pytest.mark.parametrize(
    ("shape", "outputs", "message"),
    [
        ((8, 3, SIDE, SIDE), ("y",), "exported for a batch of 8"),
        ((1, 128), ("y",), "not a face recogniser: its input"),
        ((1, 3, SIDE, SIDE), ("y", "x"), "has 2 outputs"),
    ],
)
def test_a_graph_that_is_no_recogniser_is_refused(
    tmp_path: Path, shape: Sequence[int], outputs: Sequence[str], message: str
):
    path = write_graph(tmp_path / "other.onnx", [node("Relu", "x")], {}, shape=shape, outputs=outputs)
    with pytest.raises(UserError, match=message):
        OnnxModule(path)


def test_a_missing_and_a_damaged_file_are_errors_of_one_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.onnx does not exist"):
        OnnxModule(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"this is no graph")
    with pytest.raises(UserError, match=r"bad\.onnx cannot be read as ONNX"):
        OnnxModule(tmp_path / "bad.onnx")


def test_every_operator_of_the_table_is_tried_here():
    in_longer_graphs = {"Cast", "Gemm", "Shape", "Sqrt"}
    assert {case[0] for case in CASES} | in_longer_graphs == set(OPERATORS)
