#!/usr/bin/env python
"""A model from ONNX whose ThresholdedRelu learns, and the way back to ONNX.

A convolution and two layers with a ThresholdedRelu behind two of them, written as another program
would write it, are read, given one threshold for each channel, trained, and written again; ONNX
Runtime then computes what was trained. With a file of yours, begin at `interop.from_onnx`.

Needs: pip install 'jaxtrelu[onnx]' optax onnxruntime. Seconds on a laptop.

    python examples/onnx_threshold_that_learns.py
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import optax
from onnx import TensorProto, helper, numpy_helper

from jaxtrelu import Rectangle, interop

CHANNELS, HIDDEN, CLASSES, STEPS = 8, 32, 4, 200
rng = np.random.default_rng(0)


def write_model(path):
    """What stands for your file: images of 8 x 8 pixels to the scores of four classes."""
    weights = {
        "kernel": rng.normal(size=(CHANNELS, 1, 3, 3)) / 3,
        "w1": rng.normal(size=(CHANNELS * 16, HIDDEN)) / np.sqrt(CHANNELS * 16),
        "w2": rng.normal(size=(HIDDEN, CLASSES)) / np.sqrt(HIDDEN),
    }
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("ThresholdedRelu", ["c"], ["open"], name="first", alpha=0.3),
        helper.make_node("MaxPool", ["open"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w1"], ["z"]),
        helper.make_node("ThresholdedRelu", ["z"], ["h"], name="second", alpha=0.3),
        helper.make_node("MatMul", ["h", "w2"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", CLASSES])],
        [numpy_helper.from_array(value.astype(np.float32), n) for n, value in weights.items()],
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)


def images(count):
    """Images whose class is the quarter that is brighter."""
    labels = rng.integers(0, CLASSES, count)
    x = rng.normal(size=(count, 1, 8, 8)).astype(np.float32)
    for row, label in enumerate(labels):
        down, right = 4 * (label // 2), 4 * (label % 2)
        x[row, 0, down : down + 4, right : right + 4] += 0.5
    return x, labels


def difference(network, path, x):
    """The largest difference between the network here and the file in ONNX Runtime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return float(np.abs(session.run(None, {"x": x})[0] - np.asarray(network(x))).max())


def main():
    folder = Path(tempfile.mkdtemp(prefix="jaxtrelu-"))
    write_model(folder / "model.onnx")
    x, labels = images(512)

    # The bandwidth of the surrogate is in the units of what arrives at the activation.
    network = interop.from_onnx(folder / "model.onnx", surrogate=Rectangle(0.5))
    print("thresholds:", {t: float(network.parameters[t]) for t in network.thresholds})
    print(f"largest difference from ONNX Runtime: {difference(network, folder / 'model.onnx', x)}")

    # One for each channel: shaped so that it broadcasts against (rows, channels, height, width).
    start = {
        "first.threshold": jnp.full((CHANNELS, 1, 1), 0.3, jnp.float32),
        "second.threshold": jnp.full(HIDDEN, 0.3, jnp.float32),
    }
    network = network.replace(start)
    parameters = network.parameters
    optimizer = optax.adam(3e-3)
    state = optimizer.init(parameters)

    @jax.jit
    def step(parameters, state):
        def loss(parameters):
            scores = network.replace(parameters)(x)
            return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

        value, gradient = jax.value_and_grad(loss)(parameters)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(parameters, updates), state, value

    losses = []
    for _ in range(STEPS):
        parameters, state, value = step(parameters, state)
        losses.append(float(value))
    network = network.replace(parameters)

    print(f"loss: {losses[0]:.3f} -> {losses[-1]:.3f}")
    for name in network.thresholds:
        moved = np.asarray(network.parameters[name])
        print(f"{name}: 0.3 -> {moved.min():.3f} to {moved.max():.3f}")
        assert np.abs(moved - 0.3).max() > 0.02
    assert losses[-1] < losses[0] / 2

    written = interop.to_onnx(network, folder / "learned.onnx")
    print("written as:", ", ".join(node.op_type for node in written.graph.node))
    found = difference(network, folder / "learned.onnx", x)
    print(f"{folder / 'learned.onnx'}: largest difference from ONNX Runtime {found:.1g}")
    assert found < 1e-3


if __name__ == "__main__":
    main()
