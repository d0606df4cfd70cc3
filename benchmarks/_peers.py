"""The peers outside JAX, each at its best: all threads, and in place or into a bound output."""

import importlib
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np

THREADS = len(os.sched_getaffinity(0))
Peers = dict[str, Callable[[], Any]]


def optional(module: str) -> ModuleType | None:
    """The module, or None and a line that says what is missing from the table."""
    try:
        return importlib.import_module(module)
    except ImportError:
        print(f"{module} is not installed, so not compared: pip install 'jaxtrelu[bench]'",
              file=sys.stderr)  # fmt: skip
        return None


def memory_bounds(x: np.ndarray) -> Peers:
    """A copy into an output that exists, and the cheapest pass that writes where it reads.

    The copy touches two buffers; an operation in place touches one, and can be faster.
    """
    target, own = np.zeros_like(x), x.copy()
    pool = ThreadPoolExecutor(THREADS)
    parts = list(zip(np.array_split(target, THREADS), np.array_split(x, THREADS), strict=True))
    own_parts = np.array_split(own, THREADS)

    def copy() -> None:
        for _ in pool.map(lambda part: np.copyto(*part), parts):
            pass

    def negate() -> None:
        for _ in pool.map(lambda part: np.negative(part, out=part), own_parts):
            pass

    return {
        "memcpy": copy,
        "memcpy, 1 thread": lambda: np.copyto(target, x),
        "x := -x in place, NumPy on all threads": negate,
    }


def numpy_forward(variant: str, x: np.ndarray, threshold: float) -> Peers:
    threshold = x.dtype.type(threshold)
    if variant == "shift":
        return {"NumPy": lambda: np.maximum(x - threshold, 0)}
    return {"NumPy": lambda: np.where(x > threshold, x, x.dtype.type(0))}


def numpy_in_place(x: np.ndarray, threshold: float) -> Peers:
    x, threshold = x.copy(), x.dtype.type(threshold)

    def shift() -> np.ndarray:
        np.subtract(x, threshold, out=x)
        return np.maximum(x, 0, out=x)

    return {"NumPy": shift}


def torch_peers(variant: str, mode: str, x: np.ndarray, ct: np.ndarray, threshold: float) -> Peers:
    """F.threshold is `hard`, F.relu of the difference is `shift`."""
    torch = optional("torch")
    if torch is None:
        return {}
    torch.set_num_threads(THREADS)
    functional = torch.nn.functional
    tensor, cotangent = torch.from_numpy(x.copy()), torch.from_numpy(ct)

    def act(t):
        if variant == "hard":
            return functional.threshold(t, threshold, 0.0)
        return functional.relu(t - threshold)

    def forward():
        with torch.inference_mode():
            return act(tensor).numpy()

    def in_place():
        with torch.inference_mode():
            return functional.relu_(tensor.sub_(threshold)).numpy()

    leaf = tensor.clone().requires_grad_()

    def both():
        y = act(leaf)
        (gradient,) = torch.autograd.grad(y, leaf, cotangent)
        return y.detach().numpy(), gradient.numpy()

    work = {"forward": forward, "in place": in_place, "forward+backward": both}
    name = "PyTorch F.threshold" if variant == "hard" else "PyTorch F.relu(x-θ)"
    return {name: work[mode]}


def torch_dense(x: np.ndarray, w: np.ndarray, b: np.ndarray, threshold: float) -> Peers:
    torch = optional("torch")
    if torch is None:
        return {}
    torch.set_num_threads(THREADS)
    tx, tw, tb = map(torch.from_numpy, (x, w, b))

    def forward():
        with torch.inference_mode():
            return torch.nn.functional.relu_(torch.addmm(tb, tx, tw).sub_(threshold)).numpy()

    return {"PyTorch F.relu(x-θ)": forward}


def onnxruntime_forward(x: np.ndarray, threshold: float) -> Peers:
    """ThresholdedRelu, which is `hard`, into an output that is bound and so used again."""
    onnx, runtime = optional("onnx"), optional("onnxruntime")
    if onnx is None or runtime is None:
        return {}
    kind = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    operands = [onnx.helper.make_tensor_value_info(name, kind, [None]) for name in "xy"]
    node = onnx.helper.make_node("ThresholdedRelu", ["x"], ["y"], alpha=threshold)
    graph = onnx.helper.make_graph([node], "peer", operands[:1], operands[1:])
    opset = [onnx.helper.make_opsetid("", 10)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding, y = session.io_binding(), np.empty_like(x)
    for bind, name, array in ((binding.bind_input, "x", x), (binding.bind_output, "y", y)):
        bind(name, "cpu", 0, x.dtype, array.shape, array.ctypes.data)

    def forward() -> np.ndarray:
        session.run_with_iobinding(binding)
        return y

    return {"ONNX Runtime (bound output)": forward}
