"""The peers' own examples and their own code, compared bit for bit.

Where a peer means another function, the difference is asserted too. ONNX, ONNX Runtime and PyTorch
come with `pip install 'jaxtrelu[conformance]'`; without them their tests are skipped.
"""

import importlib
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrelu import thresholded_relu

NAN = float("nan")
ONNX_CASES = "onnx.backend.test.case.node"


def _need(module):
    """The module, or a skip that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if os.environ.get("JAXTRELU_REQUIRE_CONFORMANCE"):
            raise
        pytest.skip(f"{error}: pip install 'jaxtrelu[conformance]' to compare with {module}")


@pytest.fixture(scope="module")
def torch():
    return _need("torch")


def _assert_same_bits(ours, theirs):
    """Equal dtype, shape and bits; every NaN counts as the same NaN."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    nan = theirs != theirs
    np.testing.assert_array_equal(ours != ours, nan)
    bits = f"u{ours.dtype.itemsize}"
    np.testing.assert_array_equal(
        np.where(nan, 0, ours.view(bits)), np.where(nan, 0, theirs.view(bits))
    )


def _hard(x, threshold, fill=0):
    return thresholded_relu(x, threshold, variant="hard", fill=fill)


# Examples from the peers' documentation and tests, which need no package.


@pytest.mark.parametrize(
    ("x", "options", "expected"),
    [
        pytest.param([[-1, 0], [1, 3]], {}, [[0, 0], [0, 3]], id="tfjs"),
        pytest.param([-10, -5, 0, 5, 10], {"threshold": 5}, [0, 0, 0, 0, 10], id="keras"),
        pytest.param([2, 0, 1], {}, [2, 0, 0], id="paddle"),
        pytest.param(
            [0.5, 1.5, 2.5], {"threshold": 2, "fill": -1}, [-1, -1, 2.5], id="paddle-value"
        ),
        pytest.param([-1.5, 0, 1.2, 2, 2.2], {"threshold": 2}, [0, 0, 0, 0, 2.2], id="onnx"),
        pytest.param(
            [-2, -0.5, 0, 0.5], {"threshold": -1}, [0, -0.5, 0, 0.5], id="caffe2-negative"
        ),
    ],
)
def test_documented_examples(x, options, expected):
    _assert_same_bits(
        thresholded_relu(jnp.float32(x), variant="hard", **options), np.float32(expected)
    )


def test_pytorch_integers_example():
    x = jnp.arange(-3, 4)
    _assert_same_bits(_hard(x, 0, fill=99), np.int32([99, 99, 99, 99, 1, 2, 3]))


def test_coreml_keeps_the_threshold_itself():
    """CoreML's gate is open where x >= alpha, ours where x > alpha."""
    x = jnp.float32([[-1, 2, -3], [4, -5, 6]])
    coreml = np.float32([[0, 2, 0], [4, 0, 6]])
    ours = _hard(x, 2)
    _assert_same_bits(ours, np.float32([[0, 0, 0], [4, 0, 6]]))
    np.testing.assert_array_equal(np.asarray(ours != coreml), x == 2)


def test_gradient_for_a_negative_threshold():
    """Caffe2 reads the mask off the output, and gives [0, -1, 0, 1] here, or [0, 0, 0, 1]."""
    x = jnp.float32([-2, -0.5, 0, 0.5])
    gradient = jax.grad(lambda x: _hard(x, -1.0).sum())(x)
    _assert_same_bits(gradient, np.float32([0, 1, 1, 1]))


# ONNX


@pytest.fixture(scope="module")
def onnx_cases():
    """Of this operator alone: `collect_testcases` makes those of all operators, in five seconds."""
    node = _need(ONNX_CASES)
    _need(f"{ONNX_CASES}.thresholdedrelu")
    return [case for case in node._NodeTestCases if "thresholdedrelu" in case.name]


def _alpha(case):
    """The attribute alpha; an expanded case holds it in its first constant."""
    attributes = {a.name: a.f for a in case.model.graph.node[0].attribute}
    return attributes.get("alpha", attributes.get("value_float", 1.0))


def test_onnx_backend_cases(onnx_cases):
    assert len({case.name for case in onnx_cases}) == 6
    for case in onnx_cases:
        for (x,), (expected,) in case.data_sets:
            _assert_same_bits(_hard(jnp.asarray(x), _alpha(case)), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("alpha", [1.0, 0.1, 0.0, -0.7])
def test_onnxruntime(dtype, alpha):
    onnx, runtime = _need("onnx"), _need("onnxruntime")
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = onnx.helper.make_node("ThresholdedRelu", ["x"], ["y"], alpha=alpha)
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", element, [None])],
        [onnx.helper.make_tensor_value_info("y", element, [None])],
    )
    opset = [onnx.helper.make_opsetid("", 10)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    # No subnormal numbers: XLA's CPU back end reads them as zero, ONNX Runtime does not.
    above = dtype(alpha) + np.finfo(dtype).eps
    edges = [alpha, above, -0.0, 0.0, np.inf, -np.inf]
    x = np.concatenate([edges, np.random.default_rng(0).normal(size=4001)]).astype(dtype)
    (theirs,) = session.run(None, {"x": x})
    # It compares in float32 whatever the dtype of x: an array for a threshold does so here.
    _assert_same_bits(_hard(jnp.asarray(x), jnp.float32(alpha)), theirs)


# PyTorch


def _from_torch(tensor):
    """NumPy has no bfloat16 of its own: through float32, which holds every bfloat16."""
    tensor = tensor.detach()
    if str(tensor.dtype) == "torch.bfloat16":
        return np.asarray(jnp.asarray(tensor.float().numpy(), jnp.bfloat16))
    return tensor.numpy()


FLOATS = ["float64", "float32", "float16", "bfloat16"]


def _torch_operands(torch, dtype):
    """x with the boundary, both zeros, infinities and NaN in it; a cotangent as wild."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=1000)
    x[:7] = [0.5, -0.5, -0.0, 0.0, np.inf, -np.inf, NAN]
    ct = rng.normal(size=1000)
    ct[7:10] = [NAN, np.inf, -np.inf]
    x[7:13] = [-3, -3, -3, 3, 3, 3]
    kind = getattr(torch, dtype)
    return torch.tensor(x).to(kind), torch.tensor(ct).to(kind)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("threshold", "value"), [(0.5, 0.0), (-0.5, 0.0), (0.0, 20.0)])
def test_pytorch_threshold_and_its_gradient(torch, dtype, threshold, value):
    x, ct = _torch_operands(torch, dtype)
    theirs = torch.nn.functional.threshold(x, threshold, value)
    theirs_dx = torch.ops.aten.threshold_backward(ct, x, threshold)
    with jax.enable_x64(True):
        ours, vjp = jax.vjp(lambda x: _hard(x, threshold, value), jnp.asarray(_from_torch(x)))
        (ours_dx,) = vjp(jnp.asarray(_from_torch(ct)))
        _assert_same_bits(ours, _from_torch(theirs))
        _assert_same_bits(ours_dx, _from_torch(theirs_dx))


@pytest.mark.parametrize("dtype", FLOATS)
def test_pytorch_relu_of_the_difference(torch, dtype):
    x, ct = _torch_operands(torch, dtype)
    leaf = x.clone().requires_grad_()
    theirs = torch.nn.functional.relu(leaf - 0.5)
    theirs.backward(ct)
    with jax.enable_x64(True):
        ours, vjp = jax.vjp(lambda x: thresholded_relu(x, 0.5), jnp.asarray(_from_torch(x)))
        (ours_dx,) = vjp(jnp.asarray(_from_torch(ct)))
        _assert_same_bits(ours, _from_torch(theirs))
        _assert_same_bits(ours_dx, _from_torch(leaf.grad))


def test_pytorch_lets_nan_pass_with_gradient_one(torch):
    x = torch.tensor([NAN, 1.0, -1.0], requires_grad=True)
    theirs = torch.nn.functional.threshold(x, 0.0, 0.0)
    theirs.sum().backward()
    gradient = jax.grad(lambda x: _hard(x, 0.0).sum())(jnp.float32([NAN, 1, -1]))
    _assert_same_bits(gradient, x.grad.numpy())
    _assert_same_bits(gradient, np.float32([1, 1, 0]))


def test_pytorch_opinfo_samples(torch):
    """The samples by which PyTorch tests its own operator, every dtype that it lists."""
    ops = _need("torch.testing._internal.common_methods_invocations").op_db
    (info,) = (op for op in ops if op.name == "nn.functional.threshold")
    compared = 0
    with jax.enable_x64(True):
        for dtype in info.dtypes:
            for sample in info.sample_inputs("cpu", dtype, requires_grad=False):
                threshold, value = sample.args
                theirs = torch.nn.functional.threshold(sample.input, threshold, value)
                _assert_same_bits(
                    _hard(jnp.asarray(_from_torch(sample.input)), threshold, value),
                    _from_torch(theirs),
                )
                compared += 1
    assert compared >= 4 * len(info.dtypes) > 0
