"""What the real TPU compiler, from the package libtpu, accepts; no TPU is needed."""

import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import jaxtrelu

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="the TPU compiler is not installed: pip install 'jaxtrelu[kernels-test]'",
    ),
]
GENERATIONS = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")
ELEMENTWISE = {"thresholded_relu_tpu", "thresholded_gate_tpu"}
BY_NAME = {"implementation": "mosaic_tpu"}
VARIANTS = {"row": {"ceiling": 0.75}, "full": {"variant": "hard", "fill": -2}}
LINEAR = {"thresholded_linear_tpu", "thresholded_linear_dx_tpu", "thresholded_linear_dw_tpu"}


@pytest.fixture
def devices(monkeypatch):
    """The devices of a generation, known to the compiler only."""
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    return lambda generation: topologies.get_topology_desc(generation, "tpu").devices


def compiled(function, devices, *operands):
    on_one = SingleDeviceSharding(devices[0])
    types = [jax.ShapeDtypeStruct(shape, dtype, sharding=on_one) for shape, dtype in operands]
    return jax.jit(function).lower(*types).compile()


def kernels(program) -> set:
    """The names of the kernels in the compiled program."""
    return set(re.findall(r"thresholded_\w+?_tpu", program.as_text()))


def summed(x, threshold, **options):
    return jaxtrelu.thresholded_relu(x, threshold, **options).astype(jnp.float32).sum()


def linear(x, w, b, threshold, **options):
    return jaxtrelu.thresholded_linear(x, w, threshold, b=b, **options).astype(jnp.float32).sum()


@pytest.mark.parametrize("generation", GENERATIONS)
class TestCompiles:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize(
        ("shape", "threshold"), [((3, 40, 5000), ()), ((70, 256), (256,)), ((70, 256), (70, 256))]
    )
    def test_elementwise(self, devices, generation, dtype, shape, threshold):
        gradient = jax.grad(summed, argnums=(0, 1))
        program = compiled(gradient, devices(generation), (shape, dtype), (threshold, dtype))
        assert kernels(program) == ELEMENTWISE

    def test_float16(self, devices, generation):
        """By name: a TPU has no float16, and the kernel reads its bits."""
        gradient = jax.grad(functools.partial(summed, **BY_NAME), argnums=(0, 1))
        operands = ((70, 300), "float16"), ((300,), "float16")
        assert kernels(compiled(gradient, devices(generation), *operands)) == ELEMENTWISE

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_linear(self, devices, generation, dtype):
        operands = ((600, 200), (200, 1100), (1100,), (1100,))
        gradient = jax.grad(linear, argnums=(0, 1, 2, 3))
        program = compiled(gradient, devices(generation), *((s, dtype) for s in operands))
        assert kernels(program) == LINEAR


@pytest.mark.parametrize("shape", [(), (1,), (5, 33), (70, 160), (2, 3, 5, 7)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["row", "full"])
def test_any_shape_by_name(devices, shape, dtype, kind):
    threshold = (*shape[:-1], 1)[-len(shape) :] if kind == "row" and shape else shape
    gradient = jax.grad(functools.partial(summed, **VARIANTS[kind], **BY_NAME), argnums=(0, 1))
    operands = (shape, dtype), (threshold, "float32")
    assert kernels(compiled(gradient, devices("v5e:2x2"), *operands)) == ELEMENTWISE


def test_window(devices):
    """The words of a surrogate's window, a third output of the forward kernel."""

    def loss(x, threshold):
        return jaxtrelu.jump_relu(x, threshold, surrogate=jaxtrelu.Rectangle(0.5)).sum()

    operands = ((70, 300), "float32"), ((300,), "float32")
    program = compiled(jax.grad(loss, argnums=(0, 1)), devices("v5e:2x2"), *operands)
    assert kernels(program) == ELEMENTWISE


@pytest.mark.parametrize("threshold", [(), (30, 20, 1), (30, 20, 300)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_linear_thresholds(devices, threshold, dtype):
    operands = ((30, 20, 70), (70, 300), (300,))
    gradient = jax.grad(functools.partial(linear, variant="clamp"), argnums=(0, 1, 2, 3))
    types = [*((s, dtype) for s in operands), (threshold, "float32")]
    assert kernels(compiled(gradient, devices("v5e:2x2"), *types)) == LINEAR


@pytest.mark.parametrize(("dtype", "axes"), [("float32", (0, 0)), ("bfloat16", (1, None))])
def test_vmap(devices, dtype, axes):
    gradient = jax.vmap(jax.grad(summed, argnums=(0, 1)), in_axes=axes)
    threshold = () if axes[1] is None else (4,)
    operands = ((4, 4, 32, 512), dtype), (threshold, "float32")
    assert kernels(compiled(gradient, devices("v5e:2x2"), *operands)) == ELEMENTWISE


def test_linear_under_vmap(devices):
    """By name, the kernels run once per example."""
    gradient = jax.vmap(
        jax.grad(functools.partial(linear, **BY_NAME), argnums=(0, 1)), (0, 0, None, None)
    )
    operands = ((3, 64, 200), (3, 200, 256), (256,), ())
    program = compiled(gradient, devices("v5e:2x2"), *((s, "bfloat16") for s in operands))
    assert kernels(program) == LINEAR


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(devices, check_vma):
    mesh = Mesh(np.array(devices("v5e:2x2")), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data", None))
    x = jax.ShapeDtypeStruct((256, 512), jnp.float32, sharding=rows)
    mapped = jax.shard_map(
        jax.grad(lambda x: summed(x, 0.5)),
        mesh=mesh,
        in_specs=rows.spec,
        out_specs=rows.spec,
        check_vma=check_vma,
    )
    assert kernels(jax.jit(mapped).lower(x).compile()) == ELEMENTWISE


def test_automatic_partition_takes_xla(devices):
    mesh = Mesh(np.array(devices("v5e:2x2")), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data", None))
    x = jax.ShapeDtypeStruct((256, 512), jnp.float32, sharding=rows)
    program = jax.jit(jax.grad(lambda x: summed(x, 0.5))).lower(x).compile()
    assert kernels(program) == set()
    assert "all-gather" not in program.as_text()

    def named(x):
        return jaxtrelu.thresholded_relu(x, 0.5, implementation="mosaic_tpu")

    with pytest.raises(NotImplementedError, match=r"wrap the call in a jax\.shard_map"):
        jax.jit(named).lower(x)


def test_value_alone_takes_xla(devices):
    program = compiled(summed, devices("v5e:2x2"), ((64, 512), "float32"), ((), "float32"))
    assert kernels(program) == set()


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_other_dtypes_take_xla(devices, dtype):
    def both(x):
        return jax.vjp(lambda x: jaxtrelu.thresholded_relu(x, 1), x)[0]

    assert kernels(compiled(both, devices("v5e:2x2"), ((64, 512), dtype))) == set()


def test_why_the_kernel_is_the_default(devices):
    """XLA's own packing along lanes moves over twice the bytes, while this holds."""

    def forward(x):
        y, pull = jax.vjp(lambda x: jaxtrelu.thresholded_relu(x, 1.0, implementation="xla"), x)
        return y, pull

    shape = (1024, 4096)
    program = compiled(forward, devices("v5e:2x2"), (shape, "float32"))
    needed = 1024 * 4096 * (4 + 4 + 1 / 8)
    assert program.cost_analysis()["bytes accessed"] > 2 * needed
