"""The scripts of examples/, run as their readers run them; they check themselves what they show."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAND_INS = ROOT / "tests" / "golden" / "stand_ins.py"


def printed(script, tmp_path, interpreter=(sys.executable,)):
    """What an example prints; what it writes comes into a folder of the test."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)
    }  # fmt: skip
    if str(STAND_INS) in interpreter:
        # JAX would compress what it keeps by a stand-in for zstandard.
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [*interpreter, str(ROOT / "examples" / script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def missing(what):
    """Skips, except where nothing may be skipped for want of a peer."""
    assert not os.environ.get("JAXTRELU_REQUIRE_CONFORMANCE"), f"{what} is not installed"
    pytest.skip(f"{what} is not installed: `make conformance` brings it")


@pytest.mark.slow
def test_half_the_memory(tmp_path):
    found = printed("half_the_memory.py", tmp_path)
    before, after = map(int, re.findall(r"(\d+) MB", found))
    assert before > after
    assert "the same: True" in found


def test_onnx_threshold_that_learns(tmp_path):
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")):
        missing("ONNX Runtime")
    found = printed("onnx_threshold_that_learns.py", tmp_path)
    assert "largest difference from ONNX Runtime" in found
    assert {path.name for path in tmp_path.glob("*/*.onnx")} == {"model.onnx", "learned.onnx"}


def test_from_saelens_and_back(tmp_path):
    """SAELens, with stand-ins for the language models that it asks for and does not use here."""
    peers = os.environ.get("JAXTRELU_PEERS")
    if peers is None:
        missing("SAELens")
    found = printed("from_saelens_and_back.py", tmp_path, (peers, str(STAND_INS)))
    assert "read by SAELens" in found
    assert {path.name for path in tmp_path.glob("*/back/*")} == {
        "cfg.json", "sae_weights.safetensors"
    }  # fmt: skip


def test_new_variant_and_back_end(tmp_path):
    found = printed("new_variant_and_back_end.py", tmp_path)
    assert "logging: thresholded_relu, thresholded_gate, thresholded_linear" in found


def test_each_example_is_tested_and_says_what_it_needs():
    here = Path(__file__).read_text()
    scripts = sorted((ROOT / "examples").glob("*.py"))
    assert len(scripts) == 4
    for script in scripts:
        assert f'printed("{script.name}"' in here
        first = script.read_text().split('"""')[1]
        assert "Needs: pip install" in first and f"python examples/{script.name}" in first
