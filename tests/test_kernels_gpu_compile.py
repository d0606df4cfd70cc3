"""What the real GPU compilers, XLA's and ptxas, make of the kernels; no GPU is needed."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest


def missing() -> list[str]:
    parts = {"jax_plugins.xla_cuda12": "jax[cuda12-local]", "nvidia.cuda_nvcc": "ptxas"}
    found = {}
    for module in parts:
        try:
            found[module] = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found[module] = None
    return [parts[module] for module in parts if found[module] is None]


pytestmark = [
    pytest.mark.skipif(
        bool(missing()),
        reason=f"the GPU compiler is not installed: pip install 'jaxtrelu[kernels-test-gpu]' "
        f"(missing: {', '.join(missing())})",
    ),
]
TARGETS = {"h100": "sm_90a", "a100": "sm_80"}


@pytest.fixture(scope="module", params=TARGETS)
def built(request, tmp_path_factory):
    """(target, the programs by case, what ptxas said of each kernel)."""
    target = request.param
    if target == "a100" and jax.__version_info__ < (0, 12):
        pytest.skip(f"JAX {jax.__version__}: Mosaic GPU compiles for 8.x from 0.12 on")
    room = tmp_path_factory.mktemp(target)
    script = Path(__file__).with_name("gpu_targets.py")
    done = subprocess.run(
        [sys.executable, str(script), target, str(room)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    programs = json.loads((room / "programs.json").read_text())
    return target, programs, {path.name: path.read_text() for path in room.glob("*.ptxas")}


def test_every_kernel_compiles(built):
    target, programs, ptxas = built
    kernels = {name: text for name, text in programs.items() if not name.startswith("peer")}
    assert len(kernels) == {"h100": 20, "a100": 16}[target]
    for name, text in kernels.items():
        count = text.count('custom_call_target="mosaic_gpu_v2"')
        assert count >= (3 if name.startswith("linear") else 2), f"{name}: {text[:500]}"
    wanted = {"thresholded_relu_gpu", "thresholded_gate_gpu"}
    if target == "h100":
        wanted |= {f"thresholded_linear_{part}gpu" for part in ("", "dx_", "dw_")}
    entries = "".join(ptxas.values())
    assert wanted == set(re.findall(r"entry function '(\w+?_gpu)_mosaic", entries))


def test_no_register_is_spilled(built):
    target, _, ptxas = built
    for name, text in ptxas.items():
        assert f"for '{TARGETS[target]}'" in text, name
        assert re.search(r"\b0 bytes spill stores, 0 bytes spill loads", text), f"{name}: {text}"


def test_epilogue_of_the_peer(built):
    """cuBLASLt takes bias and ReLU with the threshold in the bias; `shift` as written only bias."""
    _, programs, _ = built
    assert '"epilogue":"BIAS_RELU"' in programs["peer folded"]
    assert '"epilogue":"BIAS_RELU"' not in programs["peer shift"]
    assert "__cublas$lt$matmul" in programs["peer shift"]


def test_products_of_a_block(built):
    """Dense by default; by gathers, no loop has a length that the compiler does not know."""
    target, programs, _ = built
    if target != "h100":
        pytest.skip("compiled for one target")

    def found(case):
        text = programs[f"peer {case}"]
        loops = [line for line in text.splitlines() if " while(" in line]
        unknown = [line for line in loops if "known_trip_count" not in line]
        # Those of guards, which run only where a NaN stands beside a 0.
        guards = [line for line in unknown if "branch_1_fun" in line]
        return {
            "loops": len(unknown) - len(guards),
            "guards": len(guards),
            "fusions": len(re.findall(r" fusion\(", text)),
            "bytes": programs[f"peer bytes of peer {case}"],
        }

    dense = found("dense block")
    assert dense["loops"] == dense["guards"] == 0
    default = found("block")
    assert default["loops"] == 0
    assert default["bytes"] <= 1.1 * dense["bytes"]
    gathers = found("block by gathers")
    # Those of the dense side, for rows that hold more than their slots.
    assert gathers["loops"] == 0 and gathers["guards"] == default["guards"]
    assert gathers["fusions"] <= 130
    # Nothing of the size of all gathered rows, which would be 400 MB, is written out.
    assert gathers["bytes"] <= 1.6 * dense["bytes"]
    # That the count sees loops:
    assert found("block by loops")["loops"] > 0
