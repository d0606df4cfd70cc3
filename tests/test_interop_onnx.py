"""Networks from ONNX files and back: values, thresholds that learn, files that others wrote."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrelu
from jaxtrelu import Rectangle, interop

onnx = pytest.importorskip("onnx", reason="pip install 'jaxtrelu[onnx]' to read and write ONNX")
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(0)
EDGES = [0.5, 0.25, -0.0, 0.0, np.inf, -np.inf, 3.0, 1.25]


def made(nodes, inputs, outputs, weights=None, *, opset=17, ir_version=8, rank=2):
    """A model as a program that is none of ours would write it."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * rank) for n in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = ir_version
    onnx.checker.check_model(model)
    return model


def in_runtime(model, *inputs):
    runtime = pytest.importorskip("onnxruntime", reason="jaxtrelu[conformance] has ONNX Runtime")
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [one.name for one in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))


def values(dtype, channels=8):
    x = np.concatenate([EDGES, RNG.normal(size=channels * 13 - len(EDGES))])
    return x.reshape(-1, channels).astype(dtype)


def assert_same_bits(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    kind = f"u{ours.dtype.itemsize}"
    np.testing.assert_array_equal(ours.view(kind), theirs.view(kind))


OPTIONS = {
    "shift": {},
    "capped": {"ceiling": 0.75},
    "hard": {"variant": "hard"},
    "filled": {"variant": "hard", "fill": -2},
    "clamp": {"variant": "clamp"},
}
THRESHOLDS = {"number": 0.5, "negative": -0.7, "channel": np.linspace(-1, 1, 8, dtype=np.float32)}


@pytest.mark.parametrize("kind", THRESHOLDS)
@pytest.mark.parametrize("variant", OPTIONS)
def test_activations_are_exact_in_the_runtime(variant, kind):
    for dtype in ("float32", "float16"):
        network = interop.activation(THRESHOLDS[kind], **OPTIONS[variant], dtype=dtype)
        model = interop.to_onnx(network, shapes=[(None, 8)])
        operators = [node.op_type for node in model.graph.node]
        standard = variant == "hard" and kind != "channel"
        assert ("ThresholdedRelu" in operators) == standard
        assert len(operators) == 1 if standard else {"LessOrEqual", "Where"} <= set(operators)
        x = values(dtype)
        expected = jaxtrelu.thresholded_relu(jnp.asarray(x), THRESHOLDS[kind], **OPTIONS[variant])
        assert_same_bits(network(x), expected)
        (theirs,) = in_runtime(model, x)
        assert_same_bits(theirs, expected)


@pytest.mark.parametrize("variant", OPTIONS)
def test_float64_is_a_subgraph(variant):
    with jax.enable_x64(True):
        network = interop.activation(0.1, **OPTIONS[variant], dtype="float64")
        model = interop.to_onnx(network, shapes=[(None, 8)])
        assert "ThresholdedRelu" not in [node.op_type for node in model.graph.node]
        x = values("float64")
        expected = jaxtrelu.thresholded_relu(jnp.asarray(x), 0.1, **OPTIONS[variant])
        assert_same_bits(in_runtime(model, x)[0], expected)


def test_nan_stays_in_the_subgraph_and_not_in_onnx_s_operator():
    x = np.float32([np.nan, 1.0])
    for options in OPTIONS.values():
        network = interop.activation(np.full(2, 0.5, np.float32), **options)
        (theirs,) = in_runtime(interop.to_onnx(network, shapes=[(2,)]), x)
        assert np.isnan(theirs[0]) and np.isnan(network(x)[0])
    hard = interop.activation(0.5, variant="hard")
    assert np.isnan(hard(x)[0]) and in_runtime(interop.to_onnx(hard, shapes=[(2,)]), x)[0][0] == 0


@pytest.mark.parametrize("kind", THRESHOLDS)
@pytest.mark.parametrize("variant", OPTIONS)
def test_what_is_written_is_read_back(variant, kind, tmp_path):
    network = interop.activation(THRESHOLDS[kind], **OPTIONS[variant])
    interop.to_onnx(network, tmp_path / "a.onnx", shapes=[("n", 8)])
    again = interop.from_onnx(tmp_path / "a.onnx")
    (threshold,) = again.thresholds
    np.testing.assert_array_equal(again.parameters[threshold], network.parameters["threshold"])
    (node,) = again.graph.activations
    assert {"ceiling": None, "fill": 0} | dict(node.attributes) == {
        "variant": "shift", "ceiling": None, "fill": 0, **OPTIONS[variant],
    }  # fmt: skip
    x = values("float32")
    assert_same_bits(again(x), network(x))
    first, second = onnx.load(tmp_path / "a.onnx").graph, interop.to_onnx(again).graph
    assert [n.op_type for n in first.node] == [n.op_type for n in second.node]
    sizes = second.output[0].type.tensor_type.shape.dim
    assert [size.dim_param or size.dim_value for size in sizes] == ["n", 8]


def classifier():
    rng = np.random.default_rng(1)
    shapes = {"w1": (16, 6), "b1": (16,), "w2": (16, 3)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["z"], transB=1),
        helper.make_node("ThresholdedRelu", ["z"], ["a"], name="act", alpha=0.5),
        helper.make_node("MatMul", ["a", "w2"], ["logits"]),
    ]
    return made(nodes, {"x": ["batch", 6]}, ["logits"], weights)


def test_a_threshold_of_onnx_learns_and_goes_back(tmp_path):
    optax = pytest.importorskip("optax")
    onnx.save(classifier(), tmp_path / "model.onnx")
    x = RNG.normal(size=(256, 6)).astype(np.float32)
    network = interop.from_onnx(tmp_path / "model.onnx", surrogate=Rectangle(0.5))
    assert network.thresholds == ("act.threshold",)
    assert set(network.parameters) == {"w1", "b1", "w2", "act.threshold"}
    np.testing.assert_allclose(network(x), in_runtime(classifier(), x)[0], rtol=1e-5, atol=1e-5)

    # Towards the network whose thresholds are other ones, one per channel.
    wanted = np.linspace(0, 1.5, 16).astype(np.float32)
    y = network.replace({"act.threshold": wanted})(x)
    learned = network.replace({"act.threshold": np.full(16, 0.5, np.float32)})
    optimizer = optax.adam(0.02)
    state = optimizer.init(learned)

    @jax.jit
    def step(network, state):
        def loss(network):
            return jnp.mean((network(x) - y) ** 2)

        value, gradient = jax.value_and_grad(loss)(network)
        # Only the threshold: the weights are right.
        gradient = jax.tree.map(jnp.zeros_like, gradient).replace(
            {"act.threshold": gradient.parameters["act.threshold"]}
        )
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(network, updates), state, value

    losses = []
    for _ in range(150):
        learned, state, value = step(learned, state)
        losses.append(float(value))
    assert losses[-1] < losses[0] / 10
    found = np.asarray(learned.parameters["act.threshold"])
    assert np.abs(found - wanted).mean() < np.abs(0.5 - wanted).mean() / 3

    model = interop.to_onnx(learned, tmp_path / "learned.onnx")
    np.testing.assert_allclose(in_runtime(model, x)[0], learned(x), rtol=1e-5, atol=1e-5)
    again = interop.from_onnx(tmp_path / "learned.onnx", surrogate=Rectangle(0.5))
    assert again.thresholds == ("act.threshold",)
    for name, value in learned.parameters.items():
        np.testing.assert_array_equal(again.parameters[name], value)


def test_a_surrogate_is_checked_and_a_network_shown_in_one_line():
    for wrong in (0.3, "rectangle", Rectangle):
        with pytest.raises(TypeError, match="`surrogate`"):
            interop.activation(0.5, variant="hard", surrogate=wrong)
    shown = repr(interop.activation(0.5))
    assert shown == "Network(x -> y: 1 nodes, 1 parameters, thresholds threshold)"


def test_without_a_surrogate_a_threshold_of_hard_has_no_gradient():
    network = interop.from_onnx(classifier())
    x = jnp.ones((4, 6))
    gradient = jax.grad(lambda network: (network(x) ** 2).sum())(network)
    assert not np.any(gradient.parameters["act.threshold"])
    assert np.any(gradient.parameters["w1"])


# every operator of the table, against the runtime

VECTOR = {"x": ["n", 6]}
IMAGE = {"x": [2, 4, 9, 11]}
TWO = {"x": ["n", 6], "other": ["n", 6]}
W = RNG.normal(size=(6, 5)).astype(np.float32)
CONVOLUTION = {"w": RNG.normal(size=(8, 2, 3, 3)).astype(np.float32), "b": np.ones(8, np.float32)}
STATISTICS = {name: RNG.uniform(0.5, 2, size=4).astype(np.float32) for name in ("s", "b", "m", "v")}
INTEGERS = {
    "shape": np.array([0, 2, -1]), "axes": np.array([1]), "place": np.array([3, 0]),
    "starts": np.array([4, 1]), "ends": np.array([-99, 5]), "both": np.array([1, 0]),
    "steps": np.array([-1, 2]),
}  # fmt: skip
NUMBERS = {"low": np.float32(-0.5), "high": np.float32(0.75), "two": np.float32(2)}

OPERATIONS = {
    **{
        name: (name, VECTOR, {}, {})
        for name in (
            "Abs", "Erf", "Exp", "Identity", "LeakyRelu", "LogSoftmax", "Neg", "Relu", "Sigmoid",
            "Sign", "Softmax", "Softplus", "Tanh", "Elu", "ReduceMean", "ReduceMax", "Flatten",
            "Dropout", "Transpose",
        )
    },
    **{
        name: (name, TWO, {}, {}) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum")
    },
    "Gelu": ("Gelu", VECTOR, {}, {"opset": 20}),
    "Gelu tanh": ("Gelu", VECTOR, {"approximate": "tanh"}, {"opset": 20}),
    "Gemm": ("Gemm", VECTOR, {"alpha": 0.5, "beta": 2.0}, {"w": W, "b": np.ones(5, np.float32)}),
    "MatMul": ("MatMul", VECTOR, {}, {"w": W}),
    "Clip": ("Clip", VECTOR, {}, {"low": NUMBERS["low"], "high": NUMBERS["high"]}),
    "Pow": ("Pow", VECTOR, {}, {"two": NUMBERS["two"]}),
    "Concat": ("Concat", TWO, {"axis": 1}, {}),
    "Reshape": ("Reshape", VECTOR, {}, {"shape": INTEGERS["shape"]}),
    "Unsqueeze": ("Unsqueeze", VECTOR, {}, {"axes": INTEGERS["axes"]}),
    "Gather": ("Gather", VECTOR, {"axis": 1}, {"place": INTEGERS["place"]}),
    "Slice": (
        "Slice", VECTOR, {}, {k: INTEGERS[k] for k in ("starts", "ends", "both", "steps")},
    ),
    "ReduceSum": ("ReduceSum", VECTOR, {"keepdims": 0}, {"axes": INTEGERS["axes"]}),
    "Softmax 11": ("Softmax", IMAGE, {"axis": 1}, {"opset": 11}),
    "LayerNormalization": (
        "LayerNormalization", VECTOR, {},
        {"s": np.full(6, 1.5, np.float32), "b": np.ones(6, np.float32)},
    ),
    "Conv": (
        "Conv", IMAGE, {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]},
        CONVOLUTION,
    ),
    "Conv same": ("Conv", IMAGE, {"group": 2, "auto_pad": "SAME_LOWER", "strides": [2, 2]},
                  CONVOLUTION),
    "MaxPool": ("MaxPool", IMAGE, {"kernel_shape": [3, 2], "strides": [2, 2],
                                   "pads": [1, 0, 1, 1]}, {}),
    "AveragePool": ("AveragePool", IMAGE, {"kernel_shape": [2, 3], "auto_pad": "SAME_UPPER"}, {}),
    "AveragePool padded": (
        "AveragePool", IMAGE,
        {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}, {},
    ),
    "GlobalAveragePool": ("GlobalAveragePool", IMAGE, {}, {}),
    "BatchNormalization": ("BatchNormalization", IMAGE, {}, STATISTICS),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_operators_against_the_runtime(name):
    operator, inputs, attributes, weights = OPERATIONS[name]
    opset = weights.get("opset", 17)
    weights = {k: v for k, v in weights.items() if k != "opset"}
    node = helper.make_node(operator, [*inputs, *weights], ["y"], **attributes)
    rank = {"Unsqueeze": 3, "Reshape": 3, "ReduceSum": 1}.get(name, 4 if inputs is IMAGE else 2)
    model = made([node], inputs, ["y"], weights, opset=opset, rank=rank)
    given = [
        RNG.normal(size=[s if isinstance(s, int) else 3 for s in shape]).astype(np.float32)
        for shape in inputs.values()
    ]
    network = interop.from_onnx(model)
    (expected,) = in_runtime(model, *given)
    np.testing.assert_allclose(network(*given), expected, rtol=2e-5, atol=2e-6)
    # Under jit shapes are known, and what is computed from them stays so.
    np.testing.assert_allclose(
        jax.jit(lambda network, *given: network(*given))(network, *given),
        expected, rtol=2e-5, atol=2e-6,
    )  # fmt: skip
    (again,) = in_runtime(interop.to_onnx(network), *given)
    np.testing.assert_array_equal(again, expected)


def test_shapes_that_are_computed_stay_known():
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axes"], ["m"]),
        helper.make_node("Concat", ["m", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Greater", ["r", "half"], ["g"]),
        helper.make_node("Cast", ["g"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["r", "c"], ["y"]),
    ]
    weights = {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([-1])}
    model = made(nodes, {"x": ["n", 2, 3]}, ["y"], weights)
    x = RNG.normal(size=(5, 2, 3)).astype(np.float32)
    network = interop.from_onnx(model)
    assert not network.parameters
    np.testing.assert_array_equal(jax.jit(network.__call__)(x), in_runtime(model, x)[0])


# what is refused


def test_all_unknown_operators_are_named():
    nodes = [
        helper.make_node("LSTM", ["x", "w", "w"], ["a"], hidden_size=2),
        helper.make_node("NonZero", ["a"], ["y"]),
    ]
    model = made(nodes, {"x": [1, 1, 1]}, ["y"], {"w": np.ones((1, 8, 2), np.float32)})
    with pytest.raises(NotImplementedError, match="LSTM, NonZero, which are not known"):
        interop.from_onnx(model)


def test_options_that_are_not_computed_are_named():
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], ceil_mode=1)
    network = interop.from_onnx(made([node], IMAGE, ["y"], rank=4))
    with pytest.raises(NotImplementedError, match=r"MaxPool \(output 'y'\): ceil_mode"):
        network(np.ones((2, 4, 9, 11), np.float32))


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*nothing\.onnx"):
        interop.from_onnx(tmp_path / "nothing.onnx")
    (tmp_path / "text.onnx").write_text("no protobuf at all, but a text of some length")
    with pytest.raises(ValueError, match="is no ONNX file"):
        interop.from_onnx(tmp_path / "text.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match="is no ONNX file"):
        interop.from_onnx(tmp_path / "empty.onnx")


def test_what_is_no_model_and_no_network():
    with pytest.raises(TypeError, match=r"but is bytes. Pass onnx.load_from_string of it"):
        interop.from_onnx(b"abc")
    with pytest.raises(
        TypeError, match=r"`model` should be the path of an ONNX file, .* but is int"
    ):
        interop.from_onnx(3)
    with pytest.raises(
        TypeError, match=r"`network` should be a jaxtrelu.interop.Network, but is fu"
    ):
        interop.to_onnx(lambda x: x)
    with pytest.raises(TypeError, match=r"takes arrays, in the order of its inputs \(x\), and not"):
        interop.activation(0.5)({"x": jnp.ones(3)})


def test_a_comparison_of_another_exporter_is_computed_as_it_stands():
    """As docs/coming_from_onnx.md says: its threshold has no gradient, and is none of those."""
    x = np.array([[0.4, 0.5, 0.6, 1.0]], np.float32)
    nodes = [helper.make_node("Greater", ["x", "t"], ["open"])]
    nodes += [helper.make_node("Where", ["open", "x", "zero"], ["y"])]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in "xy"]
    held = {"t": np.full(4, 0.5, np.float32), "zero": np.zeros((), np.float32)}
    stored = [numpy_helper.from_array(array, name) for name, array in held.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    network = interop.from_onnx(helper.make_model(graph))
    assert network.thresholds == () and list(network.parameters) == ["t"]
    np.testing.assert_array_equal(network(x), np.where(x > 0.5, x, 0))
    gradient = jax.grad(lambda p: network.replace(p)(x).sum())(network.parameters)
    assert not np.asarray(gradient["t"]).any()


def test_writing_to_what_is_no_file(tmp_path):
    network = interop.activation(0.5)
    with pytest.raises(OSError, match="it is a folder"):
        interop.to_onnx(network, tmp_path, shapes=[(2,)])
    assert not list(tmp_path.iterdir())


def test_calls_and_parameters_are_checked():
    network = interop.from_onnx(classifier())
    with pytest.raises(ValueError, match=r"takes 1 inputs \(x\), and not 2"):
        network(1.0, 2.0)
    words = (
        r"for x of shape \(2, 15\): \w+ \(output '\w+'\) is given shapes \(2, 15\) and \(16, 6\)"
    )
    with pytest.raises(ValueError, match=words):
        network(np.ones((2, 15), np.float32))
    with pytest.raises(ValueError, match=r"for x of shape \(2, 15\): "):
        jax.jit(network)(np.ones((2, 15), np.float32))
    x = RNG.normal(size=(2, 6)).astype(np.float32)
    np.testing.assert_allclose(jax.jit(network)(x), network(x), rtol=1e-5)
    with pytest.raises(ValueError, match="no parameter 'w3'; there are: w1"):
        network.replace({"w3": 0.0})
    with pytest.raises(ValueError, match=r"'w1' has shape \(16, 6\), and not \(6, 16\)"):
        network.replace({"w1": np.ones((6, 16))})
    with pytest.raises(ValueError, match="is NaN"):
        interop.to_onnx(network.replace({"act.threshold": np.nan}))
    with pytest.raises(ValueError, match=r"shape of its input 'x'. Pass shapes="):
        interop.to_onnx(interop.activation(0.5))
    with pytest.raises(ValueError, match="for each of 1 inputs, but holds 2"):
        interop.to_onnx(network, shapes=[(1, 6), (1, 6)])
    with pytest.raises(ValueError, match="shapes do not fit the network"):
        interop.to_onnx(network, shapes=[(2, 7)])


def test_old_operators_are_upgraded_by_the_user():
    node = helper.make_node("ThresholdedRelu", ["x"], ["y"])
    model = made([node], VECTOR, ["y"], opset=10)
    network = interop.from_onnx(model)
    assert network.parameters["y.threshold"] == 1  # ONNX's default
    interop.to_onnx(network)
    channels = network.replace({"y.threshold": np.ones(6)})
    with pytest.raises(ValueError, match=r"need 12\. Read it from onnx\.version_converter"):
        interop.to_onnx(channels)
    upgraded = interop.from_onnx(onnx.version_converter.convert_version(model, 17))
    interop.to_onnx(upgraded.replace({upgraded.thresholds[0]: np.ones(6)}))


def test_a_subgraph_that_others_changed_is_read_as_it_is():
    network = interop.activation(np.float32([0.5, 1.0]))
    model = interop.to_onnx(network, shapes=[(2,)])
    (described,) = json.loads(model.metadata_props[0].value)
    assert described["attributes"]["variant"] == "shift"
    model.graph.node[0].name = "renamed"
    again = interop.from_onnx(model)
    assert not again.thresholds and set(again.parameters) == {"threshold"}
    x = jnp.float32([2.0, 2.0])
    assert again(x).tolist() == network(x).tolist() == [1.5, 1.0]


# networks of Flax


def test_flax_layers_are_exact_in_the_runtime():
    nnx = pytest.importorskip("flax.nnx")
    from jaxtrelu.nnx import CompactMLP, JumpReLU, ThresholdedReLU

    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Linear(6, 16, rngs=rngs),
        ThresholdedReLU(0.1, features=16, learned=True, ceiling=1.5),
        nnx.Linear(16, 12, use_bias=False, rngs=rngs),
        JumpReLU(12, surrogate=Rectangle(0.1), threshold=0.05),
        jax.nn.gelu,
        nnx.Sequential(
            CompactMLP(12, 40, 5, threshold=0.2, rngs=rngs), ThresholdedReLU(0.01, variant="hard")
        ),
    )
    x = RNG.normal(size=(7, 6)).astype(np.float32)
    network = interop.from_flax(model)
    np.testing.assert_allclose(network(x), model(x), rtol=1e-5, atol=1e-6)
    written = interop.to_onnx(network, shapes=[("batch", 6)])
    np.testing.assert_allclose(in_runtime(written, x)[0], model(x), rtol=1e-4, atol=1e-5)
    assert len(network.thresholds) == len(interop.from_onnx(written).thresholds) == 4


def test_flax_channels_on_another_axis():
    pytest.importorskip("flax.nnx")
    from jaxtrelu.nnx import ThresholdedReLU

    threshold = np.linspace(-1, 1, 4, dtype=np.float32)
    x = RNG.normal(size=(2, 4, 3, 5)).astype(np.float32)
    layer = ThresholdedReLU(threshold, axis=-3)
    assert_same_bits(interop.from_flax(layer)(x), layer(x))
    with pytest.raises(NotImplementedError, match="Count it from the end"):
        interop.from_flax(ThresholdedReLU(threshold, axis=1))


def test_flax_layers_that_are_unknown_are_named():
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Sequential(nnx.LayerNorm(4, rngs=nnx.Rngs(0)))
    with pytest.raises(NotImplementedError, match=r"the layer .0. is LayerNorm, .* Known are"):
        interop.from_flax(model)

    class Own(nnx.Module):
        def __init__(self):
            self.first, self.act = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu

    with pytest.raises(NotImplementedError) as refused:
        interop.from_flax(Own())
    message = str(refused.value)
    assert message.startswith("`model` is Own, which is not known here. Known are Sequential, ")
    # What is named is known, and what is proposed works.
    for word in ("Linear", "ThresholdedReLU", "relu", "gelu", "nnx.Sequential(model.first"):
        assert word in message
    own = Own()
    x = RNG.normal(size=(5, 4)).astype(np.float32)
    network = interop.from_flax(nnx.Sequential(own.first, own.act))
    np.testing.assert_allclose(network(x), nnx.relu(own.first(x)), rtol=1e-6)
    with pytest.raises(NotImplementedError, match="`model` is the class Own, which"):
        interop.from_flax(Own)
    with pytest.raises(ValueError, match=r"for x of shape \(5, 3\): MatMul .* and \(4, 3\), and"):
        network(x[:, :3])
