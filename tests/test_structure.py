"""The shape of the house: imports point down, private looks private, texts name what exists."""

import ast
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxtrelu
from jaxtrelu._primitive.variants import VARIANTS

ROOT = Path(jaxtrelu.__file__).parent
PROJECT = Path(__file__).parent.parent
MODULES = {
    ".".join(("jaxtrelu", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(ROOT.rglob("*.py"))
}

#: What users import, apart from the front door itself.
PUBLIC = ["bits", "sparse", "nnx", "linen", "sae", "theory", "plot", "interop"]

# The rooms, from the ground up: a module may import from its own room and from the rows below; in a
# list a row stands above those that precede it. Rooms of one row know nothing of each other.
LAYERS = [
    ["_interrupts", "_compat", "_surrogates", "_files"],
    ["_primitive"],
    ["_backends"],
    ["_activation", "_calculus", "_linear"],
    ["bits"],
    ["theory"],
    ["sparse"],
    ["_layers"],
    ["nnx", "linen"],
    ["interop"],
    ["sae"],
    ["plot"],
    ["_cli"],
    ["__main__"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


@functools.cache
def _imports(module):
    return list(_find_imports(module))


def _find_imports(module):
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


def _room(module):
    return module.split(".")[1] if "." in module else None


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    room = _room(module)
    if room is None:
        return  # the front door sees everything
    assert room in RANK, f"{module} is in no room: add {room} to LAYERS"
    for target, _ in _imports(module):
        if target.split(".")[0] != "jaxtrelu":
            continue
        below = _room(target)
        if below is None and room == "_cli":
            continue  # a user of the library like others
        assert below is not None, f"{module} imports the front door; import the module meant"
        down = below == room or RANK[below] < RANK[room]
        assert down, f"{module} imports {target}, which does not stand below it"


def _circle(graph):
    """The nodes of a graph that are on a circle, or lead to one."""
    done = set()
    while ready := {n for n, needs in graph.items() if n not in done and needs - {n} <= done}:
        done |= ready
    return sorted(set(graph) - done)


def test_no_circle_of_files():
    """Imports inside functions count: put off, a circle is still one."""
    graph = {
        # A package is what its own __init__ imports; it may import its parts, not they it.
        module: {target for target, _ in _imports(module) if target in MODULES}
        for module in MODULES
    }
    assert not _circle(graph)


@pytest.mark.parametrize("package", [m for m, p in MODULES.items() if p.name == "__init__.py"])
def test_no_circle_of_folders(package):
    """The files and folders of a folder, each folder taken as one."""

    def part(module):
        inside = module.startswith(f"{package}.")
        return module.removeprefix(f"{package}.").split(".")[0] if inside else None

    graph: dict = {part(module): set() for module in MODULES if part(module)}
    for module in MODULES:
        if part(module):
            graph[part(module)] |= {part(t) for t, _ in _imports(module) if part(t)}
    assert not _circle(graph)


def test_a_circle_would_be_found():
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


@pytest.mark.parametrize("module", MODULES)
def test_no_private_jax(module):
    private = [t for t, _ in _imports(module) if re.match(r"(jax|flax|optax)\._", t)]
    assert not private
    assert "jax._src" not in MODULES[module].read_text()


@pytest.mark.parametrize("module", [m for m in MODULES if m != "jaxtrelu"])
def test_public_modules_are_those_that_look_it(module):
    parts = module.split(".")[1:]
    if any(part.startswith("_") for part in parts):
        return
    assert parts[0] in PUBLIC and len(parts) == 1, f"{module} looks public: begin it with _"
    names = {"__all__"}
    tree = ast.parse(MODULES[module].read_text())
    targets = [t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets]
    assert names <= set(targets), f"{module} has no __all__"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_modules_can_be_reached(name):
    assert f"jaxtrelu.{name}" in MODULES
    assert getattr(jaxtrelu, name).__name__ == f"jaxtrelu.{name}"
    assert name in dir(jaxtrelu)


@pytest.mark.parametrize(
    "path", sorted((PROJECT / "benchmarks").glob("*.py")), ids=lambda p: p.name
)
def test_benchmarks_do_without_the_command_line(path):
    assert not re.search(r"jaxtrelu\._?cli", path.read_text())


TEXTS = [
    path
    for pattern in ("*.md", "docs/**/*.md", "jaxtrelu/**/*.py", "benchmarks/*.py", "examples/*.py")
    for path in sorted(PROJECT.glob(pattern))
]


def _exists(dotted):
    """Whether a dotted name is a module of the library, or something in one."""
    module, rest = dotted, []
    while module and module not in MODULES:
        module, _, last = module.rpartition(".")
        rest = [last, *rest]
    value = sys.modules.get(module) or __import__(module, fromlist=["_"])
    for name in rest:
        if not hasattr(value, name):
            return False
        value = getattr(value, name)
    return True


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(PROJECT)))
def test_texts_name_what_exists(path):
    """A module that was renamed or removed is not spoken of any more."""
    named = set(re.findall(r"\bjaxtrelu(?:\.[A-Za-z_]\w*)+", path.read_text()))
    files = {
        n for n in named if n.split(".")[-1] in ("py", "json", "csv", "npy", "svg", "md", "exe")
    }
    assert not [name for name in sorted(named - files) if not _exists(name)]


def test_no_name_of_a_variant_decides_anything():
    """Columns do: outside the table no variant is told from another by its name."""
    names = set(VARIANTS)
    found = []
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare | ast.MatchValue):
                inside = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
                if {value for value in inside if isinstance(value, str)} & names:
                    found.append(f"{module}:{node.lineno}")
    assert not found


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
    names = ("flax", "keras", "matplotlib", "onnx", "optax", "orbax", "sklearn", "rich", "torch")
    heavy = re.compile("|".join((*names, r"jax\.extend", r"jax\..*\.?pallas")))
    assert "jaxtrelu" in added
    assert not [name for name in added if heavy.match(name)]
