"""The contract of the public names: documented, typed with axes, called, and at home in every mode.

What is public: the names in `__all__` of the public modules. Calls come from one table.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import beartype
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from public_calls import CALLS, Call

import jaxtrelu

MODULES = {
    name: importlib.import_module(name)
    for name in (
        "jaxtrelu",
        *(
            f"jaxtrelu.{m}"
            for m in ("bits", "sparse", "nnx", "linen", "sae", "theory", "plot", "interop")
        ),
    )
}
# What is re-exported at the front door has its home there.
PUBLIC = {
    f"{module}.{name}": getattr(MODULES[module], name)
    for module in MODULES
    for name in MODULES[module].__all__
    if module == "jaxtrelu" or name not in jaxtrelu.__all__
}
FUNCTIONS = {
    name: value for name, value in PUBLIC.items() if inspect.isfunction(inspect.unwrap(value))
}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}


def methods(cls) -> dict[str, Callable | property]:
    """The public methods and properties that a class of the library defines or inherits."""
    found = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("jaxtrelu"):
            found |= {
                name: getattr(value, "__func__", value)
                for name, value in vars(base).items()
                if not name.startswith("_")
                and (inspect.isfunction(value) or isinstance(value, property | classmethod))
            }
    return found


METHODS = {
    f"{name}.{method}": value
    for name, cls in CLASSES.items()
    for method, value in methods(cls).items()
    if method != "setup"  # called by Flax
}


def by_name(table):
    return pytest.mark.parametrize("name", table)


def test_every_public_name_exists_once():
    for name, module in MODULES.items():
        assert len(set(module.__all__)) == len(module.__all__), name
        assert not [n for n in module.__all__ if not hasattr(module, n)]
    assert len(FUNCTIONS) + len(CLASSES) >= 60
    others = set(PUBLIC) - set(FUNCTIONS) - set(CLASSES)
    assert others == {
        *("jaxtrelu.RESIDUAL_NAME", "jaxtrelu.bits", "jaxtrelu.sparse", "jaxtrelu.theory"),
    }


# documented


def described(name: str, section: str) -> bool:
    """Whether a section of a docstring describes a parameter, alone or together with others."""
    return bool(re.search(rf"^\s*([\w*]+, )*\*?{name}(, [\w*]+)*:", section, re.MULTILINE))


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^(Args|Attributes|Returns|Raises|Example|Source):", text, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def raises(function) -> bool:
    tree = ast.parse(inspect.getsource(function))
    return any(isinstance(node, ast.Raise) for node in ast.walk(tree))


def summary_of(value) -> str:
    text = inspect.getdoc(value) or ""
    first = text.split("\n\n")[0]
    assert first.endswith((".", ":")), f"the summary is a sentence on the first line: {first!r}"
    assert "\n" not in first, "the summary fits on one line"
    return text


@by_name(FUNCTIONS)
def test_functions_are_documented(name):
    function = inspect.unwrap(FUNCTIONS[name])
    found = sections(summary_of(function))
    parameters = inspect.signature(function).parameters
    if parameters:
        undescribed = [p for p in parameters if not described(p, found.get("Args", ""))]
        assert not undescribed, f"{name} does not describe {undescribed}"
    assert "Returns" in found
    # The application refuses what is its own; the library also what its checks refuse.
    if raises(function) or not name.startswith("jaxtrelu.sae."):
        assert "Raises" in found
    if not name.startswith("jaxtrelu.sae."):
        assert ">>>" in function.__doc__


@by_name(CLASSES)
def test_classes_are_documented(name):
    cls = CLASSES[name]
    text = summary_of(cls)
    found = sections(text)
    if issubclass(cls, tuple):  # a record: a string below each field
        (tree,) = ast.parse(inspect.getsource(cls)).body
        body = list(zip(tree.body, tree.body[1:] + [None], strict=True))
        bare = [
            node.target.id
            for node, after in body
            if isinstance(node, ast.AnnAssign)
            and not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))
        ]
    else:
        own = dataclasses.is_dataclass(cls) or "__init__" in vars(cls)
        parameters = inspect.signature(cls.__init__).parameters if own else ()
        names = [n for n in parameters if n not in ("self", "parent", "name")]
        if issubclass(cls, jaxtrelu.Surrogate):  # described where they are inherited from
            found = sections(inspect.getdoc(jaxtrelu.Surrogate))
        where = found.get("Args", "") + found.get("Attributes", "")
        bare = [n for n in names if not described(n, where)]
    assert not bare, f"{name} does not describe {bare}"


@by_name(METHODS)
def test_methods_are_documented_and_typed(name):
    method = METHODS[name]
    function = method.fget if isinstance(method, property) else inspect.unwrap(method)
    text = summary_of(function)
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    undescribed = [p.name for p in parameters if not re.search(rf"\b{p.name}\b", text)]
    assert not undescribed, f"{name} does not describe {undescribed}"
    assert signature.return_annotation is not signature.empty
    assert not [p.name for p in parameters if p.annotation is p.empty]


# typed


@by_name({**FUNCTIONS, **CLASSES})
def test_public_names_are_typed(name):
    value = PUBLIC[name]
    signature = inspect.signature(value)
    own = inspect.isfunction(inspect.unwrap(value)) or "__init__" in vars(value)
    if own:
        assert not [p.name for p in signature.parameters.values() if p.annotation is p.empty]
    if name in FUNCTIONS:
        assert signature.return_annotation is not signature.empty


OF_ARRAYS = [name for name in FUNCTIONS if name.rpartition(".")[0] in ("jaxtrelu", "jaxtrelu.bits")]


def call_of(name) -> Call:
    return CALLS[name.removeprefix("jaxtrelu.")]


def test_the_table_has_every_function():
    assert [f"jaxtrelu.{name}" for name in CALLS] == sorted(
        OF_ARRAYS, key=[f"jaxtrelu.{name}" for name in CALLS].index
    )
    for name in OF_ARRAYS:
        assert call_of(name).function is FUNCTIONS[name]


@by_name(OF_ARRAYS)
def test_options_are_keyword_only(name):
    """Operands and the threshold come first; everything after them is named by the caller."""
    for parameter in inspect.signature(FUNCTIONS[name]).parameters.values():
        assert parameter.kind is not parameter.VAR_KEYWORD, f"{name} passes **{parameter} through"
        operand = re.search(r"\[|Array|Activity|^int$", str(parameter.annotation))
        if parameter.default is not parameter.empty and not operand:
            assert parameter.kind is parameter.KEYWORD_ONLY, f"{name}: {parameter} by position"
    names = [
        p.name
        for p in inspect.signature(FUNCTIONS[name]).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    assert "threshold" not in names[:-1], "the threshold is the last of the positional ones"


def checked(function):
    return jaxtyping.jaxtyped(function, typechecker=beartype.beartype)


def an_axis_more(result):
    """The result with an axis more on its first array."""
    if not isinstance(result, tuple):
        return result[..., None]
    first = an_axis_more(result[0])
    rest = result[1:]
    return type(result)(first, *rest) if hasattr(result, "_fields") else (first, *rest)


@by_name(OF_ARRAYS)
def test_annotations_name_the_axes(name):
    """They hold for a valid call, and notice a result of another rank."""
    call, function = call_of(name), FUNCTIONS[name]
    # Only traced: the axes are known then.
    jax.eval_shape(functools.partial(call, function=checked(function)), *call.operands)

    @functools.wraps(function)
    def wrong(*args, **kwargs):
        return an_axis_more(function(*args, **kwargs))

    with pytest.raises(jaxtyping.TypeCheckError):
        jax.eval_shape(functools.partial(call, function=checked(wrong)), *call.operands)


# Operands of which an axis or a rank is not that of the others.
WRONG = {
    "thresholded_glu": {1: (3, 8)},
    "thresholded_linear": {1: (6, 7)},
    "sparse_mlp": {1: (7, 6), 2: (8, 4)},
    "sparse_mlp_vjp": {1: (7, 6), 2: (8, 4)},
    "compact_mlp": {1: (7, 6), 2: (8, 4)},
    "gated_mlp": {1: (7, 6), 2: (7, 6), 3: (8, 4)},
    "bits.rank": {1: (3, 2)},
    "bits.compact": {1: (3, 64)},
    "bits.expand": {1: (1, 4)},
}


@pytest.mark.parametrize(("name", "place"), [(n, i) for n, wrong in WRONG.items() for i in wrong])
def test_annotations_notice_a_wrong_operand(name, place):
    call = CALLS[name]
    operands = list(call.operands)
    operands[place] = np.ones(WRONG[name][place], operands[place].dtype)
    with pytest.raises(jaxtyping.TypeCheckError):
        jax.eval_shape(functools.partial(call, function=checked(call.function)), *operands)


# called

TESTS = {
    path.name: ast.parse(path.read_text())
    for path in Path(__file__).parent.glob("*.py")
    if path.name not in ("test_public.py", "public_calls.py")
}


def _dotted(node) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@functools.cache
def used() -> tuple[set[str], set[str]]:
    """(full names that tests mention, other than to import them; attributes that they read)."""
    mentions, attributes = set(), set()
    for tree in TESTS.values():
        known = {}  # what a name stands for in this file
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                known |= {a.asname or a.name: a.name for a in node.names if a.asname}
            if isinstance(node, ast.ImportFrom):
                known |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}

        def full(node, known=known) -> str:
            first, dot, rest = _dotted(node).partition(".")
            return known.get(first, first) + dot + rest

        for node in ast.walk(tree):
            if isinstance(node, ast.Name | ast.Attribute):
                mentions.add(full(node))
            if isinstance(node, ast.Attribute):
                attributes.add(node.attr)
    return mentions, attributes


def is_used(name: str) -> bool:
    """Whether a test calls it, or hands it on, by whatever path inside its module it is reached."""
    module, _, short = name.rpartition(".")
    return any(m.startswith(f"{module}.") and m.endswith(f".{short}") for m in used()[0])


@by_name(FUNCTIONS)
def test_every_function_is_used_in_a_test(name):
    assert is_used(name), f"no test uses {name}"


@by_name(CLASSES)
def test_every_class_is_used_in_a_test(name):
    """Itself, or (a record) a function or a method that returns it."""
    short = name.rpartition(".")[2]
    makers = [f for f, value in FUNCTIONS.items() if short in returned(value) and is_used(f)]
    makers += [
        m for m in METHODS if short in returned(METHODS[m]) and m.rpartition(".")[2] in used()[1]
    ]
    assert is_used(name) or makers, f"no test uses {name}"


def returned(value) -> str:
    if isinstance(value, property):
        value = value.fget
    return str(inspect.signature(value).return_annotation)


@by_name(METHODS)
def test_every_method_is_used_in_a_test(name):
    assert name.rpartition(".")[2] in used()[1], f"no test uses {name}"


# modes of configuration


def with_gradient(call: Call) -> Callable:
    """The call, and where it is differentiable its gradient in every floating operand."""

    def total(*operands):
        result = call(*operands)
        first = jax.tree.leaves(result)[0]
        return jnp.sum(first, dtype=first.dtype), result

    def run(*operands):
        result = call(*operands)
        floating = jnp.issubdtype(jax.tree.leaves(result)[0].dtype, jnp.floating)
        if not (floating and call.floating and call.differentiable):
            return result, ()
        return result, jax.grad(total, call.floating, has_aux=True)(*operands)[0]

    return run


# Step by step: of the products one, in `make test`, tells for all that share its checks and lists.
SLOWLY = {"gated_mlp", "compact_mlp", "sparse_mlp_vjp"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOWLY)) for n in CALLS]
)
def test_in_strict_modes(name):
    """No promotion of ranks or dtypes is relied on, in 32 and in 64 bits, and no tracer leaks."""
    call = CALLS[name]
    run = with_gradient(call)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        with jax.checking_leaks():  # nothing that was traced is used again: slow, so once
            result, gradient = jax.eval_shape(run, *map(jnp.asarray, call.operands))
        narrow = jax.tree.leaves(result)[0].dtype
        assert [g.dtype for g in gradient] == [np.float32] * len(gradient)
        with jax.enable_x64(True):
            operands = [
                jnp.asarray(o, jnp.float64) if o.dtype == np.float32 else jnp.asarray(o)
                for o in call.operands
            ]
            wide, gradient = jax.eval_shape(run, *operands)
    first = jax.tree.leaves(wide)[0]
    # An operand's dtype is the result's; what is no number of the operands', stays as it is.
    assert first.dtype == (np.float64 if narrow == np.float32 else narrow)
    assert [g.dtype for g in gradient] == [np.float64] * len(gradient)


@by_name(CALLS)
def test_while_debugging_nans(name):
    """No NaN comes up on the way to a result that has none; and the modes change no value."""
    call = CALLS[name]
    # Compiled once and run on a few numbers: the compiler need not try hard.
    quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    run = jax.jit(with_gradient(call), compiler_options=quickly)
    with jax.debug_nans(True):
        result, gradient = run(*call.operands)
    for leaf in jax.tree.leaves((result, gradient)):
        assert np.isfinite(leaf).all()
    if gradient and name not in ("derivative",):  # which has none
        assert any(np.any(g) for g in gradient)
