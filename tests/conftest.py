"""Set-up shared by all tests: the CPU with eight virtual devices, and strict promotion."""

import importlib.metadata
import os

_JAX = tuple(int(part) for part in importlib.metadata.version("jax").split(".")[:2])

# Read when the back end starts, so set before the first `import jax`. A flag that is already there
# wins.
_FLAGS = ["--xla_force_host_platform_device_count=8"]
if _JAX < (0, 11):
    # jaxlib 0.10's CPU back end sums some vmapped reductions wrongly:
    # https://github.com/jax-ml/jax/issues/39103
    _FLAGS.append("--xla_cpu_experimental_ynn_fusion_type=")
os.environ["XLA_FLAGS"] = " ".join([*_FLAGS, os.environ.get("XLA_FLAGS", "")]).strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.pop("JAX_ENABLE_X64", None)

import jax
import pytest


@pytest.fixture
def strict_promotion():
    """Makes JAX refuse an implicit promotion of dtypes or ranks: a library must not rely on one."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
