"""The tables of docs/contract.md, row by row, against what functions take, return and refuse."""

import functools
import inspect
import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.jet import jet
from jax.sharding import PartitionSpec as P
from public_calls import CALLS

import jaxtrelu
from jaxtrelu import Rectangle

TEXT = (Path(__file__).parent.parent / "docs" / "contract.md").read_text()


def table(heading):
    """The rows of the first table below a heading: lists of cells, by what the first one names."""
    below = "\n" + TEXT.split(f"\n## {heading}\n")[1]
    lines = below.split("\n\n|")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip(" |").split(" |")] for line in lines]


def named(cell):
    return re.findall(r"`(\w+)`", cell)


# arguments

ARGUMENTS = {name: cells for first, *cells in table("Arguments") for name in named(first)}
SAME = "the same"


def promised(name):
    """(by position, by name, required by name, which variant it is); `the same` is looked up."""
    cells = ARGUMENTS[name]
    if cells[0] == SAME:
        before = ARGUMENTS[list(ARGUMENTS)[list(ARGUMENTS).index(name) - 1]]
        cells = [
            cell.replace(SAME, whole) if cell.startswith(SAME) else cell
            for cell, whole in zip(cells, before, strict=True)
        ]
    positional, *rest = cells
    options = [clause for cell in rest for clause in re.split(r"[;,]", cell) if clause.strip()]
    is_variant = [clause for clause in options if clause.strip().startswith("is ")]
    required = [
        named(before)[0]
        for before, after in itertools.pairwise(options)
        if after.strip() == "required"
    ]
    by_name = [n for c in options if c not in is_variant for n in named(c)]
    return (
        named(f"`{'` `'.join(positional.strip('`').split(', '))}`"),
        by_name,
        required,
        is_variant,
    )


def options_of(function, kind):
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is kind}


def test_the_table_names_every_operation():
    operations = [name for name in CALLS if "." not in name and name != "entry_sum"]
    assert sorted(ARGUMENTS) == sorted(operations)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_are_those_of_the_table_in_that_order(name):
    positional, by_name, required, _ = promised(name)
    function = getattr(jaxtrelu, name)
    first = options_of(function, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    then = options_of(function, inspect.Parameter.KEYWORD_ONLY)
    assert list(first) == positional
    assert set(then) == set(by_name)
    assert [n for n in then if n in by_name] == list(then)
    assert [n for n, default in then.items() if default is inspect.Parameter.empty] == required
    kinds = [option_kind(n) for n in then]
    assert kinds == sorted(kinds), "biases, then which function it is, then how it is computed"


def option_kind(name):
    return 0 if re.fullmatch(r"b|b_\w+", name) else 1 if name in WHICH else 2


WHICH = ("variant", "ceiling", "fill", "surrogate")
DEFAULTS = dict(
    re.findall(r"`(\w+)=([^`]+)`", TEXT.split("**Defaults**")[1].split("`capacity=None`")[0])
)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_defaults_are_the_same_everywhere(name):
    parameters = inspect.signature(getattr(jaxtrelu, name)).parameters
    _, by_name, required, _ = promised(name)
    for option in {"threshold", *by_name} - set(required):
        default = parameters[option].default
        if option == "with_activity":
            assert default is False
        elif option in DEFAULTS:
            assert str(default) == DEFAULTS[option].strip('"'), option
        else:
            assert default is None, option
    assert {"variant", "threshold", "ceiling", "fill", "surrogate"} <= set(DEFAULTS)


@pytest.mark.parametrize("name", [n for n in ARGUMENTS if promised(n)[3]])
def test_a_namesake_is_the_variant_that_the_table_says(name):
    (variant,) = named(promised(name)[3][0])
    x, threshold = CALLS[name].operands
    options = {"surrogate": Rectangle(0.5)} if promised(name)[2] else {}
    same = jaxtrelu.thresholded_relu(x, threshold, variant=variant, **options)
    np.testing.assert_array_equal(getattr(jaxtrelu, name)(x, threshold, **options), same)


NOTES = {
    mark: [n for n in ARGUMENTS if any(mark in cell for cell in ARGUMENTS[n])] for mark in "¹²³"
}
REFUSED = {
    "¹": [({"fill": 1, "variant": "hard"}, ValueError), ({"variant": "clamp"}, ValueError)],
    "²": [({"surrogate": jaxtrelu.Gaussian(0.1)}, ValueError)],
    "³": [({"implementation": "experimental_mosaic_gpu"}, NotImplementedError)],
}


@pytest.mark.parametrize(
    ("name", "mark"), [(n, m) for m, names in NOTES.items() for n in names if n != SAME]
)
def test_what_a_note_excludes_is_refused(name, mark):
    operands = CALLS[name].operands
    for options, error in REFUSED[mark]:
        with pytest.raises(error):
            jax.eval_shape(functools.partial(getattr(jaxtrelu, name), **options), *operands)


def test_an_option_that_a_function_does_not_have_is_an_error():
    for name in ARGUMENTS:
        for option in {"variant", "ceiling", "fill", "surrogate", "capacity"} - {
            *promised(name)[1]
        }:
            with pytest.raises(TypeError, match=option):
                getattr(jaxtrelu, name)(*CALLS[name].operands, **{option: None})


@pytest.mark.parametrize(
    ("name", "examples", "share"),
    [
        ("sparse_mlp", 3, 1 / 32),
        ("gated_mlp", 9, 1 / 32),
        ("gated_mlp", 8, 1 / 2),
        ("compact_mlp", 3, 1 / 8),
    ],
)
@pytest.mark.parametrize("features", [2048, 40])
def test_the_share_that_a_capacity_of_none_is(name, examples, share, features):
    """By the programs: one with that number, spelled out, is the same."""
    x, w = jnp.zeros((examples, 2)), jnp.zeros((features, 2))
    weights = [w] * (3 if name == "gated_mlp" else 2)

    def program(capacity):
        function = functools.partial(getattr(jaxtrelu, name), capacity=capacity)
        if name == "compact_mlp":  # whose lists are what it keeps for the gradient
            function = jax.grad(total(function))
        return re.sub(r"0x[0-9a-f]+", "", str(jax.make_jaxpr(function)(x, *weights)))

    said = max(32, round(features * share))
    default = program(None)
    assert default == program(said)
    assert default != program(said - 8)


def total(function):
    return lambda *operands: jnp.sum(jax.tree.leaves(function(*operands))[0])


# dtypes


@pytest.mark.parametrize("name", ARGUMENTS)
def test_float8_is_taken_but_by_blocks(name):
    call = CALLS[name]
    function = functools.partial(call.how, call.function, **call.options)
    *operands, threshold = call.operands
    narrow = [jax.ShapeDtypeStruct(o.shape, jnp.float8_e4m3fn) for o in operands]
    if any(block in name for block in ("sparse_mlp", "compact_mlp", "gated_mlp")):
        with pytest.raises(TypeError, match=r"no arithmetic of its own\. Pass x\.astype"):
            jax.eval_shape(function, *narrow, threshold)
    else:
        assert jax.eval_shape(function, *narrow, threshold).dtype == jnp.float8_e4m3fn


@pytest.mark.parametrize("name", ARGUMENTS)
def test_operations_that_take_integers_are_those_that_the_page_names(name):
    text = (Path(__file__).parent.parent / "docs" / "functions.md").read_text()
    (line,) = re.findall(r"^- (.*) take integers", text, re.MULTILINE)
    options = {"surrogate": Rectangle(1.0)} if promised(name)[2] else {}
    function = functools.partial(getattr(jaxtrelu, name), **options)
    *operands, threshold = (np.ones(np.shape(o), np.int32) for o in CALLS[name].operands)
    if name in named(line):
        assert jax.eval_shape(function, *operands, threshold).dtype == np.int32
    else:
        with pytest.raises(TypeError, match="should be floating point"):
            jax.eval_shape(function, *operands, threshold)


# transformations

SURROGATE = {"surrogate": Rectangle(1.0, to_input=True)}


def members(first):
    """The operations that a row of the second table speaks of."""
    names = named(first)
    if "and its namesakes" in first:
        names += ["shifted_relu", "jump_relu"]
    return names


TRANSFORMATIONS = {}
_above = []
for _first, *_cells in table("Which transformations work"):
    _cells = [b if c == "as above" else c for c, b in zip(_cells, _above or _cells, strict=True)]
    TRANSFORMATIONS |= dict.fromkeys(members(_first), _cells)
    _above = _cells


def expected(cell, with_surrogate):
    """Whether a transformation works, in the words of the table."""
    plainly, _, otherwise = cell.partition("; with a surrogate ")
    if with_surrogate and otherwise:
        plainly = otherwise
    if "; without a surrogate 0" in plainly:
        return True
    return {
        "yes": True, "yes, 0": True, "is one": None, "no": False, "refused": False,
        "refused, as its surrogate is": False, "reverse mode only": False,
    }[plainly]  # fmt: skip


CASES = [
    (name, surrogate)
    for name in TRANSFORMATIONS
    for surrogate in (False, True)
    if (surrogate or name != "jump_relu")
    and (not surrogate or "surrogate" in inspect.signature(getattr(jaxtrelu, name)).parameters)
]


def prepared(name, with_surrogate):
    call = CALLS[name]
    options = {k: v for k, v in call.options.items() if k not in ("surrogate", "variant")}
    options |= SURROGATE if with_surrogate else {}
    function = functools.partial(call.how, call.function, **options)
    return function, [jnp.asarray(o) for o in call.operands]


def test_the_second_table_has_every_operation():
    assert sorted(TRANSFORMATIONS) == sorted(ARGUMENTS)


def once(function):
    """The function of operands with a leading axis of size 1."""
    return lambda *operands: function(*(o[0] for o in operands))


FIRST = {
    "jit": lambda f, o: jax.eval_shape(jax.jit(f), *o),
    "vmap": lambda f, o: jax.eval_shape(jax.vmap(f), *(a[None] for a in o)),
    "checkpoint": lambda f, o: jax.eval_shape(jax.checkpoint(f), *o),
    "scan": lambda f, o: jax.eval_shape(
        lambda *o: jax.lax.scan(lambda c, step: (c, f(*step)), 0, tuple(a[None] for a in o)), *o
    ),
    "shard_map": lambda f, o: jax.jit(
        jax.shard_map(f, mesh=jax.make_mesh((1,), ("i",)), in_specs=P(), out_specs=P())
    ).lower(*o),
    "export": lambda f, o: jax.export.export(jax.jit(f))(*o),
}


@pytest.mark.parametrize(("name", "surrogate"), CASES)
def test_the_transformations_that_work_for_all(name, surrogate):
    function, operands = prepared(name, surrogate)
    assert TRANSFORMATIONS[name][0] == "yes"
    header = TEXT.split("## Which transformations work")[1].splitlines()[2]
    assert set(re.findall(r"`(\w+)`", header)) | {"export"} == {*FIRST, "jet"}
    for transformed in FIRST.values():
        transformed(function, operands)


@pytest.mark.parametrize(("name", "surrogate"), CASES)
def test_reverse_mode(name, surrogate):
    function, operands = prepared(name, surrogate)
    works = expected(TRANSFORMATIONS[name][1], surrogate)
    if works is None:
        return  # sparse_mlp_vjp, whose gradients have a test file
    gradient = jax.grad(total(function), range(len(operands)))
    if surrogate or not TRANSFORMATIONS[name][1].endswith(" 0"):
        shapes = jax.eval_shape(gradient, *operands)
        assert [s.shape for s in shapes] == [o.shape for o in operands]
    else:
        assert not any(np.any(slope) for slope in jax.jit(gradient)(*operands))


@pytest.mark.parametrize(("name", "surrogate"), CASES)
def test_forward_mode_and_higher_derivatives(name, surrogate):
    function, operands = prepared(name, surrogate)

    def forward(*operands):
        return jax.jvp(function, operands, operands)

    second = jax.hessian(total(function), range(len(operands)))
    refused = f"can't apply forward-mode|{name} can be differentiated once, in reverse mode"
    if name == "sparse_mlp_vjp":
        refused = "sparse_mlp_vjp cannot be differentiated: .* what the pullback returns"
    # Lowered, since a `jax.custom_vjp` refuses forward mode no earlier.
    for derivative in (forward, second):
        if expected(TRANSFORMATIONS[name][2], surrogate):
            jax.eval_shape(derivative, *operands)
        else:
            with pytest.raises((TypeError, NotImplementedError, ValueError), match=refused):
                jax.jit(derivative).lower(*operands)


@pytest.mark.parametrize(("name", "surrogate"), CASES)
def test_taylor_mode(name, surrogate):
    function, operands = prepared(name, surrogate)
    series = tuple([jnp.ones_like(o), jnp.zeros_like(o)] for o in operands)

    def taylor():
        return jax.eval_shape(lambda *o: jet(function, o, series), *operands)

    if expected(TRANSFORMATIONS[name][3], surrogate):
        taylor()
    else:
        # JAX 0.12 has no message of its own for a `jax.custom_vjp` here, and trips over it.
        with pytest.raises((NotImplementedError, TypeError, AttributeError)):
            taylor()


# in Flax

LAYERS = {
    "ThresholdedReLU": "thresholded_relu",
    "JumpReLU": "jump_relu",
    "CompactMLP": "compact_mlp",
}


@pytest.mark.parametrize("flax", ["nnx", "linen"])
@pytest.mark.parametrize(("layer", "operation"), LAYERS.items())
def test_layers_take_the_options_of_their_operation(flax, layer, operation):
    assert f"`nnx.{layer}`" in TEXT.split("## In Flax")[1]
    kind = getattr(getattr(jaxtrelu, flax), layer)
    of_layer = inspect.signature(kind.__init__).parameters
    of_function = inspect.signature(getattr(jaxtrelu, operation)).parameters
    for option in promised(operation)[1]:
        if option_kind(option):  # biases are parameters of the layer
            assert of_layer[option].default == of_function[option].default, option
    start = of_function["threshold"].default if layer != "JumpReLU" else 1e-3
    assert of_layer["threshold"].default == start
