"""The shape of the house: imports point one way, files stay short, public names are documented."""

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxtrelu

ROOT = Path(jaxtrelu.__file__).parent
MODULES = {
    ".".join(("jaxtrelu", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(ROOT.rglob("*.py"))
}

# From the ground up. A module may import from its own row and from the rows above it in this list;
# a package stands for all that is in it.
LAYERS = [
    ["_compat", "packing"],
    ["surrogates", "variants", "_door"],
    ["kernels"],
    ["dispatch", "gate", "tangents", "primitive", "taylor", "operation"],
    ["functions", "calculus", "linear"],
    ["bits", "sparse"],
    ["sae", "_layer_core", "_jump_core", "nnx", "linen"],
    ["cli", "__main__"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
MAX_LINES = 250


def _imports(module):
    """Pairs (imported module, whether the import runs when the module is imported)."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text())
    nested = {
        id(node)
        for scope in ast.walk(tree)
        if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(scope)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            # `from package import name` imports the module package.name where there is one.
            targets = [
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base
                for alias in node.names
            ]
        else:
            continue
        for target in targets:
            yield target, id(node) not in nested


def _layer(module):
    return module.split(".")[1] if "." in module else None


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    layer = _layer(module)
    if layer is None:
        return  # the front door sees everything
    assert layer in RANK, f"{module} is in no layer: add {layer} to LAYERS"
    for target, _ in _imports(module):
        if target.split(".")[0] != "jaxtrelu":
            continue
        below = _layer(target)
        assert below is not None, f"{module} imports the front door; import the module meant"
        assert RANK[below] <= RANK[layer], f"{module} imports {target}, which stands above it"


def test_no_import_cycles():
    graph = {
        module: {t for t, at_import in _imports(module) if at_import and t in MODULES}
        for module in MODULES
    }
    # `import a.b` runs a's __init__ first: a package that imports its own parts is no cycle.
    done = set()
    while ready := {m for m, needs in graph.items() if m not in done and needs - {m} <= done}:
        done |= ready
    assert done == set(graph), f"import cycle among {sorted(set(graph) - done)}"


@pytest.mark.parametrize("module", MODULES)
def test_no_private_jax(module):
    private = [t for t, _ in _imports(module) if re.match(r"(jax|flax|optax)\._", t)]
    assert not private
    assert "jax._src" not in MODULES[module].read_text()


@pytest.mark.parametrize("module", MODULES)
def test_files_stay_short(module):
    assert len(MODULES[module].read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module):
    assert ast.get_docstring(ast.parse(MODULES[module].read_text())), f"{module} has no docstring"


def test_import_is_light():
    code = """
import json, sys
import jax
before = set(sys.modules)
import jaxtrelu
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    added = json.loads(out.stdout.splitlines()[-1])
    heavy = re.compile(r"flax|matplotlib|optax|orbax|sklearn|rich|jax\.extend|jax\..*\.?pallas")
    assert "jaxtrelu" in added
    assert not [name for name in added if heavy.match(name)]


def _public(kind):
    return [name for name in jaxtrelu.__all__ if kind(getattr(jaxtrelu, name))]


FUNCTIONS = _public(inspect.isfunction)
CLASSES = _public(inspect.isclass)


def test_every_public_name_exists():
    assert set(jaxtrelu.__all__) <= set(dir(jaxtrelu))
    assert len(jaxtrelu.__all__) == len(set(jaxtrelu.__all__))
    assert {"thresholded_relu", "derivative", "antiderivative"} <= set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS + CLASSES)
def test_public_docstrings_are_complete(name):
    value = getattr(jaxtrelu, name)
    text = inspect.getdoc(value) or ""
    wanted = [">>>"]
    if inspect.isfunction(value):
        wanted += ["Args:", "Returns:", "Raises:"]
    missing = [section for section in wanted if section not in text]
    assert not missing, f"the docstring of jaxtrelu.{name} has no {missing}"
    first = text.splitlines()[0]
    assert first.endswith("."), f"jaxtrelu.{name}: the summary is one sentence on the first line"
    if inspect.isfunction(value):
        arguments = text.split("Args:")[1].split("Returns:")[0]
        for parameter in inspect.signature(value).parameters:
            assert re.search(rf"^\s+`?\*?{parameter}`?:", arguments, re.MULTILINE), (
                f"jaxtrelu.{name} does not describe {parameter}"
            )


@pytest.mark.parametrize("name", FUNCTIONS + CLASSES)
def test_public_names_are_typed(name):
    parameters = inspect.signature(getattr(jaxtrelu, name)).parameters.values()
    assert not [p.name for p in parameters if p.annotation is inspect.Parameter.empty]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_options_are_keyword_only(name):
    """Arrays and the threshold come first; everything after them is named by the caller."""
    for parameter in inspect.signature(getattr(jaxtrelu, name)).parameters.values():
        assert parameter.kind is not parameter.VAR_KEYWORD, f"{name} passes **{parameter} through"
        operand = re.search("Array|Activity", str(parameter.annotation))  # a record of arrays
        if not operand and parameter.name != "threshold":
            assert parameter.kind is parameter.KEYWORD_ONLY, f"{name}: {parameter} by position"
