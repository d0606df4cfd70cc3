"""What is imported when first used is found before that, too: by `dir`, and by what asks it."""

import json
import subprocess
import sys

import pytest
from cases import quick
from test_public import MODULES

CODE = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
before = set(vars(module))
listed = dir(module)
values = {name: hasattr(module, name) for name in module.__all__}
print(json.dumps([sorted(before), listed, values]))
"""


@pytest.mark.parametrize("name", quick(MODULES, {"jaxtrelu", "jaxtrelu.sae"}))
def test_dir_lists_every_public_name(name):
    """In a process of its own: what another test has imported is there in any case."""
    found = subprocess.run(
        [sys.executable, "-c", CODE, name], capture_output=True, text=True, check=True
    )
    before, listed, values = json.loads(found.stdout.splitlines()[-1])
    assert all(values.values())
    assert set(MODULES[name].__all__) <= set(listed)
    assert listed == sorted(set(listed)) and set(before) <= set(listed)
    if name in ("jaxtrelu", "jaxtrelu.sae"):
        assert set(values) - set(before), "nothing is put off here any more: drop this line"
