"""Networks from Keras models: values, thresholds, files that Keras wrote, what is refused."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrelu import Rectangle, interop

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras", reason="jaxtrelu[conformance] has Keras")
from keras import layers

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)


def assert_close(network, model, *shape):
    x = RNG.normal(size=shape).astype(np.float32)
    expected = np.asarray(model(x, training=False))
    np.testing.assert_allclose(jax.jit(network.__call__)(x), expected, rtol=1e-5, atol=1e-5)
    return x, expected


def perceptron():
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(16),
            layers.ReLU(threshold=0.25, name="first"),
            layers.Dropout(0.5),
            layers.Dense(12, activation="gelu", use_bias=False),
            layers.ReLU(max_value=0.5, name="second"),
            layers.ReLU(negative_slope=0.1),
            layers.Dense(3, activation="softmax"),
        ]
    )


def test_weights_and_thresholds_are_taken_over():
    model = perceptron()
    network = interop.from_keras(model, surrogate=Rectangle(0.5))
    assert network.thresholds == ("first.threshold", "second.threshold")
    assert network.parameters["first.threshold"] == np.float32(0.25)
    dense = model.layers[0]
    np.testing.assert_array_equal(network.parameters[f"{dense.name}.kernel"], dense.kernel)
    x, _ = assert_close(network, model, 9, 6)
    gradient = jax.grad(lambda network: (network(x)[:, 0] ** 2).sum())(network)
    assert gradient.parameters["first.threshold"] != 0
    assert gradient.parameters["second.threshold"] != 0


def images():
    x = keras.Input((10, 14, 3))
    h = layers.Conv2D(8, 3, strides=2, padding="same")(x)
    h = layers.BatchNormalization()(h)
    h = layers.ReLU(threshold=0.2, name="open")(h)
    left = layers.Conv2D(8, 3, padding="same", activation="relu", groups=2)(h)
    h = layers.Add()([h, left])
    h = layers.Concatenate()([layers.MaxPooling2D(2)(h), layers.AveragePooling2D(2)(h)])
    means = layers.GlobalAveragePooling2D()(h)
    y = layers.Dense(5)(layers.Concatenate()([layers.Flatten()(h), means]))
    return keras.Model(x, layers.Activation("tanh")(y))


def test_images_and_branches():
    model = images()
    norm = next(one for one in model.layers if isinstance(one, layers.BatchNormalization))
    for variable in norm.weights:  # statistics that are not 0 and 1
        variable.assign(RNG.uniform(0.5, 1.5, size=variable.shape))
    network = interop.from_keras(model)
    assert network.thresholds == ("open.threshold",)
    assert_close(network, model, 2, 10, 14, 3)


@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_files_that_keras_wrote(kind, tmp_path):
    if kind == "h5":
        pytest.importorskip("h5py")
    for model, shape in ((perceptron(), (4, 6)), (images(), (2, 10, 14, 3))):
        path = tmp_path / f"model.{kind}"
        model.save(path)
        assert_close(interop.from_keras(path), model, *shape)


def test_the_thresholded_relu_of_keras_2(tmp_path):
    """Keras 3 has no such layer; a file of Keras 2 names it in its configuration."""
    h5py = pytest.importorskip("h5py")
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8), layers.ReLU(name="act")])
    path = tmp_path / "old.h5"
    model.save(path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        (act,) = [c for c in config["config"]["layers"] if c["config"].get("name") == "act"]
        act["class_name"] = "ThresholdedReLU"
        act["config"] = {"name": "act", "trainable": True, "dtype": "float32", "theta": 0.5}
        for key in ("module", "registered_name"):
            act.pop(key, None)
        file.attrs["model_config"] = json.dumps(config)
    network = interop.from_keras(path)
    assert network.thresholds == ("act.threshold",)
    assert network.parameters["act.threshold"] == 0.5
    x = RNG.normal(size=(9, 6)).astype(np.float32)
    z = np.asarray(model.layers[0](x))
    np.testing.assert_allclose(network(x), np.where(z > 0.5, z, 0), rtol=1e-5, atol=1e-6)


def test_through_onnx_and_back(tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    for model, shape in ((perceptron(), (4, 6)), (images(), (2, 10, 14, 3))):
        network = interop.from_keras(model)
        x, expected = assert_close(network, model, *shape)
        interop.to_onnx(network, tmp_path / "a.onnx")
        session = runtime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
        (theirs,) = session.run(None, {session.get_inputs()[0].name: x})
        np.testing.assert_allclose(theirs, expected, rtol=1e-5, atol=1e-5)
        again = interop.from_onnx(tmp_path / "a.onnx")
        assert set(again.parameters) == set(network.parameters)
        np.testing.assert_allclose(again(x), expected, rtol=1e-5, atol=1e-5)


def test_keras_relu_is_strict_at_its_threshold():
    model = keras.Sequential([keras.Input((4,)), layers.ReLU(threshold=0.5)])
    x = np.float32([[0.25, 0.5, 0.75, -3.0]])
    expected = [[0.0, 0.0, 0.75, 0.0]]
    assert np.abs(model(x)).tolist() == expected
    assert interop.from_keras(model)(jnp.asarray(x)).tolist() == expected


def test_operations_on_the_tensors_of_a_functional_model():
    """The threshold of Keras is a function, and no layer."""
    x = keras.Input((6,))
    h = keras.ops.threshold(layers.Dense(8)(x), 0.25, -0.5)
    h = keras.activations.relu(layers.Dense(8)(h), threshold=0.125)
    model = keras.Model(x, layers.Dense(3)(h))
    network = interop.from_keras(model, surrogate=Rectangle(0.5))
    assert sorted(map(float, (network.parameters[name] for name in network.thresholds))) == [
        0.125, 0.25,
    ]  # fmt: skip
    assert_close(network, model, 9, 6)
    at = keras.Input((4,))
    model = keras.Model(at, keras.ops.threshold(at, 0.5, 3.0))
    x = jnp.float32([[0.25, 0.5, 0.75, -3.0]])
    assert interop.from_keras(model)(x).tolist() == [[3.0, 3.0, 0.75, 3.0]]


class Subclassed(keras.Model):
    def call(self, x):
        return x


def of_operation(function):
    x = keras.Input((4,))
    return keras.Model(x, layers.Dense(2)(function(x)))


def shared():
    x = keras.Input((4,))
    dense = layers.Dense(4)
    return keras.Model(x, dense(dense(x)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: [layers.PReLU()], "is a PReLU, which is not known here"),
        (lambda: [layers.Dense(2, activation="selu")], "the activation 'selu'"),
        (lambda: [layers.ReLU(max_value=1, threshold=0.5)], "a max_value beside a threshold"),
        (lambda: [layers.ReLU(negative_slope=0.1, threshold=0.5)], "a negative_slope beside"),
        (shared, "used more than once"),
        (
            lambda: of_operation(lambda x: keras.ops.hard_shrink(x, 0.5)),
            r"^the operation 'hard_shrink\w*' is a HardShrink, which is not known here",
        ),
        # No layer Add, which has no scalars.
        (lambda: of_operation(lambda x: x + 1.0), r"^the operation 'add\w*' is a Add, which is"),
        (
            lambda: of_operation(lambda x: keras.activations.relu(x, threshold=1, max_value=2)),
            "a max_value beside a threshold",
        ),
    ],
)
def test_what_is_not_known_is_named(model, message):
    found = model()
    if isinstance(found, list):
        found = keras.Sequential([keras.Input((4,)), *found])
    with pytest.raises(NotImplementedError, match=message):
        interop.from_keras(found)


def test_what_is_no_model(tmp_path):
    with pytest.raises(TypeError, match=r"should be a keras\.Model or a path, but is a Dense"):
        interop.from_keras(layers.Dense(3))
    with pytest.raises(TypeError, match=r"should be a keras\.Input"):
        interop.from_keras(keras.Sequential([layers.Dense(3)]))
    with pytest.raises(TypeError, match="a Sequential or functional model, but is a Subclassed"):
        interop.from_keras(Subclassed())
    with pytest.raises(FileNotFoundError, match=r"no file .*nothing\.keras"):
        interop.from_keras(tmp_path / "nothing.keras")
