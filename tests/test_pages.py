"""The pages of docs/ whose code is a program to follow: it runs, and gives what it says."""

import doctest
import importlib
import os
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
#: The pages, and what has to be installed for each.
PAGES = {
    "coming_from_onnx.md": ("onnx", "onnxruntime", "optax"),
    "coming_from_keras.md": ("keras",),
    "coming_from_pytorch.md": ("torch", "flax"),
    "equinox.md": ("equinox", "optax"),
}


@pytest.mark.parametrize("name", PAGES)
def test_pages_run(name, tmp_path):
    os.environ.setdefault("KERAS_BACKEND", "jax")
    for module in PAGES[name]:
        try:
            importlib.import_module(module)
        except ImportError as error:
            if os.environ.get("JAXTRELU_REQUIRE_CONFORMANCE"):
                raise
            pytest.skip(f"{error}: pip install 'jaxtrelu[conformance]' to run the pages")
    path = DOCS / name
    blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
    test = doctest.DocTestParser().get_doctest(
        "".join(blocks), {"folder": tmp_path}, name, str(path), 0
    )
    assert len(test.examples) >= 10
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    runner.run(test, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)
