"""Networks from PyTorch modules: values, thresholds, files that PyTorch wrote, what is refused."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrelu import Rectangle, interop

torch = pytest.importorskip("torch", reason="jaxtrelu[conformance] has PyTorch")
from torch import nn
from torch.nn import functional

RNG = np.random.default_rng(0)


def assert_close(network, module, *shape):
    x = RNG.normal(size=shape).astype(np.float32)
    with torch.no_grad():
        expected = module.eval()(torch.tensor(x)).numpy()
    np.testing.assert_allclose(jax.jit(network.__call__)(x), expected, rtol=1e-5, atol=1e-5)
    return x, expected


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16), nn.Threshold(0.25, 0.0), nn.Dropout(0.5), nn.Linear(16, 12, bias=False),
        nn.Threshold(-0.1, -1.0), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 3), nn.Softmax(-1),
    )  # fmt: skip


def test_weights_and_thresholds_are_taken_over():
    module = perceptron()
    network = interop.from_torch(module, surrogate=Rectangle(0.5))
    assert network.thresholds == ("1.threshold", "4.threshold")
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(network.parameters[name], tensor.numpy())
    assert network.parameters["4.threshold"] == np.float32(-0.1)
    x, _ = assert_close(network, module, 9, 6)
    assert module.training is False or module.train()
    gradient = jax.grad(lambda network: (network(x)[:, 0] ** 2).sum())(network)
    assert gradient.parameters["1.threshold"] != 0
    assert gradient.parameters["4.threshold"] != 0


def test_the_gradient_of_weights_is_pytorch_s():
    module = perceptron().eval()
    network = interop.from_torch(module)
    x = RNG.normal(size=(9, 6)).astype(np.float32)
    (module(torch.tensor(x))[:, 0] ** 2).sum().backward()
    gradient = jax.grad(lambda network: (network(x)[:, 0] ** 2).sum())(network)
    for name, tensor in module.named_parameters():
        np.testing.assert_allclose(
            gradient.parameters[name], tensor.grad.numpy(), rtol=1e-3, atol=1e-5, err_msg=name
        )


class Images(nn.Module):
    """Convolutions, functions and methods, a residual connection, and numbers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.same = nn.Conv2d(8, 8, 3, padding="same", groups=2, bias=False)
        self.pool, self.mean = nn.MaxPool2d(2), nn.AvgPool2d(2, padding=1)
        self.head = nn.Linear(8 * 2 * 2, 5)
        self.scale = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x):
        h = functional.threshold(self.norm(self.conv(x)), 0.2, 0.0)
        h = h + 0.5 * torch.relu(self.same(h))
        h = self.mean(self.pool(h))
        return (self.head(torch.flatten(h, 1)) * self.scale).tanh() - 1.0


def test_images_and_functions():
    torch.manual_seed(1)
    module = Images()
    module(torch.randn(16, 3, 10, 14))  # statistics that are not 0 and 1
    network = interop.from_torch(module)
    assert network.thresholds == ("threshold.threshold",)
    assert "norm.running_mean" in network.graph.constants
    assert_close(network, module, 2, 3, 10, 14)


def test_through_onnx_and_back(tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    for module, shape in ((perceptron(), (4, 6)), (Images(), (2, 3, 10, 14))):
        network = interop.from_torch(module)
        x, expected = assert_close(network, module, *shape)
        interop.to_onnx(network, tmp_path / "a.onnx", shapes=[("batch", *shape[1:])])
        session = runtime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
        (theirs,) = session.run(None, {session.get_inputs()[0].name: x})
        np.testing.assert_allclose(theirs, expected, rtol=1e-5, atol=1e-5)
        again = interop.from_onnx(onnx.load(tmp_path / "a.onnx"))
        assert set(again.parameters) == set(network.parameters)
        np.testing.assert_allclose(again(x), expected, rtol=1e-5, atol=1e-5)


def test_a_file_that_pytorch_wrote(tmp_path):
    """Its own exporter to ONNX, which spells out what has no operator there."""
    pytest.importorskip("onnx")
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), nn.LogSoftmax(-1)).eval()
    x = torch.randn(4, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), tmp_path / "m.onnx", dynamo=False, opset_version=17)
    network = interop.from_onnx(tmp_path / "m.onnx")
    np.testing.assert_allclose(network(x.numpy()), module(x).detach(), rtol=1e-5, atol=1e-5)
    assert {name for name, _ in module.named_parameters()} <= set(network.parameters)


def test_bfloat16_weights():
    module = nn.Sequential(nn.Linear(6, 8), nn.Threshold(0.5, 0.0)).to(torch.bfloat16)
    network = interop.from_torch(module)
    assert network.parameters["0.weight"].dtype == jnp.bfloat16
    assert network.parameters["1.threshold"].dtype == jnp.float32
    x = torch.randn(5, 6, dtype=torch.bfloat16)
    ours = network(jnp.asarray(x.float().numpy(), jnp.bfloat16))
    np.testing.assert_allclose(
        np.asarray(ours, np.float32), module(x).detach().float(), rtol=2e-2, atol=2e-2
    )


def test_nan_stays_as_in_pytorch():
    network = interop.from_torch(nn.Threshold(0.5, 7.0))
    assert np.isnan(network(jnp.float32([np.nan, 0.5]))[0])
    assert network(jnp.float32([0.0, 0.5, 1.0])).tolist() == [7.0, 7.0, 1.0]


class Depends(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.PReLU()), "the layer '0' is a PReLU, which is not known here"),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")), "padding_mode"),
        (Depends(), "cannot trace the module"),
    ],
)
def test_what_is_not_known_is_named(module, message):
    with pytest.raises(NotImplementedError, match=message):
        interop.from_torch(module)


def test_a_file_of_weights_has_no_layers():
    with pytest.raises(TypeError, match="A state_dict has no layers"):
        interop.from_torch(perceptron().state_dict())
