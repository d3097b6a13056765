"""Put an ONNX graph together node by node."""

from __future__ import annotations

from typing import Any, Union

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET = 16  # the first whose RoiAlign names how coordinates are shifted
IR_VERSION = 8  # the format that came with it: runtimes since 2022 read it

Value = Union[str, np.ndarray, np.generic]


class GraphBuilder:
    """Nodes and constants of a graph that grows.

    Args:
        weights: name to array; `weight` makes constants of them, of the same names.
    """

    def __init__(self, weights: dict[str, np.ndarray]):
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def weight(self, name: str) -> str:
        """A weight of the detector; a KeyError where there is none of this name."""
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(self._weights[name], name)
        return name

    def add(self, kind: str, *inputs: Value, **attributes: Any) -> str:
        """A node with one output; gives the output's name. Arrays become constants."""
        return self.add_many(kind, 1, *inputs, **attributes)[0]

    def add_many(self, kind: str, count: int, *inputs: Value, **attributes: Any) -> list[str]:
        """A node with `count` outputs; gives their names."""
        number = len(self._nodes)
        outputs = [f"{kind}_{number}_{place}" if place else f"{kind}_{number}"
                   for place in range(count)]  # fmt: skip
        names = [v if isinstance(v, str) else self._constant(v) for v in inputs]
        self._nodes.append(helper.make_node(kind, names, outputs, f"{kind}_{number}", **attributes))
        return outputs

    def named(self, value: str, name: str) -> str:
        """`value` under a name of one's choice, for an output of the graph."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name))
        return name

    def _constant(self, array: np.ndarray | np.generic) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants[name] = numpy_helper.from_array(np.asarray(array), name)
        return name

    def model(
        self, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """The whole graph as a model, checked by onnx with the types of all its nodes."""
        constants = list(self._constants.values())
        graph = helper.make_graph(self._nodes, name, inputs, outputs, constants)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return model


def ints(*values: int) -> np.ndarray:
    """Whole numbers as ONNX takes shapes, axes and counts: int64."""
    return np.array(values, np.int64)


def floats(*values: float) -> np.ndarray:
    """float32."""
    return np.array(values, np.float32)
