"""What the real TPU compiler, from the package libtpu, accepts; no TPU is needed."""

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
    pytest.mark.xdist_group("libtpu"),
]
GENERATIONS = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")
ELEMENTWISE = {"thresholded_relu_tpu", "thresholded_gate_tpu"}
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


def summed(x, threshold):
    return jaxtrelu.thresholded_relu(x, threshold).astype(jnp.float32).sum()


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

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_linear(self, devices, generation, dtype):
        def loss(x, w, b, threshold):
            return jaxtrelu.thresholded_linear(x, w, b, threshold).astype(jnp.float32).sum()

        operands = ((600, 200), (200, 1100), (1100,), (1100,))
        gradient = jax.grad(loss, argnums=(0, 1, 2, 3))
        program = compiled(gradient, devices(generation), *((s, dtype) for s in operands))
        assert kernels(program) == LINEAR


def test_vmap(devices):
    gradient = jax.vmap(jax.grad(summed, argnums=(0, 1)))
    program = compiled(gradient, devices("v5e:2x2"), ((4, 32, 512), "float32"), ((4,), "float32"))
    assert kernels(program) == ELEMENTWISE


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
