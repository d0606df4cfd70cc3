"""The primitives and all their rules: a thresholded activation, and the gate it is derived through.

``thresholded_p`` computes any of three outputs in one pass over x:

- ``value``: f(x), in x's dtype;
- ``gate``: one packed bit per element, set where the cotangent passes to x;
- ``window``: one packed bit per element, set where a surrogate of bounded support lets it pass.

``gate_p`` is ``gate(t, words) = t where the bit is set, else 0``: linear in ``t`` and its own
transpose. One JVP rule of the first, written through the second, gives forward mode, reverse mode
and every mixture of them, and reverse mode keeps nothing but the words. A `jax.custom_vjp`, which
forbids forward mode, is not needed.

With the gate g (1 where open), the surrogate's density D and the height J of the jump at the
threshold, dx the tangent of x and dt that of the threshold, the tangent of the value is

- shift:        g (dx - dt)
- clamp:        g dx + (1 - g) dt
- hard, step:   g dx (step: nothing), and with a surrogate - J D dt, with `to_input` also + J D dx
- shift with a surrogate: S (dx - dt), S the smoothed gate, the integral of D
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import jet
from jax.interpreters import ad, batching
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxtrelu import _compat
from jaxtrelu._compat import Primitive
from jaxtrelu._primitive import formulas, lowering
from jaxtrelu._primitive.packing import Packing, choose_packing
from jaxtrelu._primitive.spec import Spec, accumulator_dtype, computation_dtype

OUTPUTS = ("value", "gate", "window")

#: The name under which a checkpoint policy finds the words:
#: ``jax.checkpoint_policies.save_only_these_names(jaxtrelu.RESIDUAL_NAME)``.
RESIDUAL_NAME = "jaxtrelu_gate"


# what the rest of the library calls


def thresholded(x: jax.Array, threshold: jax.Array, spec: Spec) -> jax.Array:
    """Binds the primitive for canonical operands: `threshold` is 0-d or has x's rank."""
    x, threshold = vary_together(x, _beside(x, threshold))
    (value,) = thresholded_p.bind(
        x, threshold, spec=spec, packing=packing_of(x), outputs=("value",)
    )
    return value


def _beside(x: jax.Array, threshold: jax.Array) -> jax.Array:
    """The threshold, sharded (on an explicit mesh) as x is at most, so that the result is as x."""
    of_x, own = jax.typeof(x).sharding, jax.typeof(threshold).sharding
    if not threshold.ndim or all(a in (None, b) for a, b in zip(own.spec, of_x.spec, strict=True)):
        return threshold
    sizes = zip(threshold.shape, x.shape, of_x.spec, strict=True)
    spec = PartitionSpec(*(axis if one == size else None for one, size, axis in sizes))
    return jax.sharding.reshard(threshold, NamedSharding(own.mesh, spec))


def varying_like(array: jax.Array, *others: jax.Array) -> jax.Array:
    """`array`, varying over every mesh axis of a `shard_map` over which one of `others` does."""
    wanted = frozenset().union(*map(_compat.varying_axes, others))
    missing = tuple(sorted(wanted - _compat.varying_axes(array)))
    return lax.pcast(array, missing, to="varying") if missing else array


def once(
    name: str,
    function: Callable,
    static: int = 0,
    *,
    said: str = "can be differentiated once, in reverse mode",
) -> Callable:
    """A part of a gradient, which says so where it is differentiated itself.

    The first `static` arguments are no arrays; `said` is what derivatives there are.
    """

    @functools.partial(jax.custom_jvp, nondiff_argnums=range(static))
    def alone(*operands):
        return function(*operands)

    @alone.defjvp
    def _(*arguments):
        raise NotImplementedError(
            f"{name} {said}. For forward mode and higher derivatives write the same with "
            "jaxtrelu.thresholded_relu between dense products."
        )

    return alone


def vary_together(*operands: jax.Array) -> list[jax.Array]:
    """Inside a `shard_map`, lets all operands vary over every mesh axis that any varies over."""
    return [varying_like(operand, *operands) for operand in operands]


def packing_of(x: jax.Array) -> Packing:
    """The packing of x's gate, given how many parts each axis has, or may have."""
    sharding = jax.typeof(x).sharding
    if all(axis is None for axis in sharding.spec):
        return choose_packing(x.shape, devices=partitioning_devices())
    names = [axis if isinstance(axis, tuple) else (axis,) for axis in sharding.spec]
    shards = [math.prod(sharding.mesh.shape[n] for n in axis if n is not None) for axis in names]
    return choose_packing(x.shape, tuple(shards))


def partitioning_devices() -> int:
    """Over how many devices a partitioner may share what is traced now."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and AxisType.Auto not in mesh.axis_types:
        return 1
    return jax.device_count()


def gate(
    t: jax.Array,
    words: jax.Array,
    packing: Packing,
    *,
    invert: bool = False,
    implementation: str | None = None,
) -> jax.Array:
    """`t` where the bit in `words` is set (`invert`: clear), exactly 0 elsewhere, even for NaN."""
    return gate_p.bind(t, words, packing=packing, invert=invert, implementation=implementation)


# the tangent of the value


def residual_names(spec: Spec, has_dx: bool, has_dt: bool) -> tuple[str, ...]:
    """Which packed outputs the tangent reads: what reverse mode keeps."""
    traits, surrogate = spec.traits, spec.surrogate
    bounded = surrogate is not None and surrogate.half_width is not None
    if surrogate is not None and traits.jump is None:
        return ("window",) if bounded and (has_dx or has_dt) else ()
    names = []
    if (has_dx and traits.input_slope) or (has_dt and any(traits.threshold_slope)):
        names.append("gate")
    if surrogate is not None and bounded and (has_dt or (has_dx and surrogate.to_input)):
        names.append("window")
    return tuple(names)


def value_tangent(
    x: jax.Array,
    threshold: jax.Array,
    dx: jax.Array | None,
    dt: jax.Array | None,
    words: dict[str, jax.Array],
    spec: Spec,
    packing: Packing,
) -> jax.Array | None:
    """The tangent of the value, in x's dtype; None where it is identically zero.

    Tangents that are None are zero. The result is linear in both, so JAX can transpose it.
    """
    traits, surrogate = spec.traits, spec.surrogate
    _gate = functools.partial(gate, packing=packing, implementation=spec.implementation)
    # In one sum before the gate: two gates on the same words would unpack them twice.
    pushed = _sum(_signed(dx, traits.input_slope, x), _signed(dt, traits.threshold_slope[0], x))
    if surrogate is not None and traits.jump is None:
        total = _estimated(pushed, x, threshold, words, spec, packing)
    else:
        total = None if pushed is None else _gate(pushed, words["gate"])
        beside = _signed(dt, traits.threshold_slope[1], x)
        if beside is not None:
            total = _sum(total, _gate(beside, words["gate"], invert=True))
        if surrogate is not None:
            jumped = _jumped(x, threshold, dx, dt, spec)
            total = _sum(total, _estimated(jumped, x, threshold, words, spec, packing))
    return None if total is None else total.astype(x.dtype)


def _jumped(x, threshold, dx, dt, spec: Spec) -> jax.Array | None:
    """J (dx - dt), with the density in it where that is a constant; dx only with `to_input`."""
    surrogate = spec.surrogate
    assert surrogate is not None
    height = formulas.jump_height(threshold, spec)
    if surrogate.flat:
        height = height / surrogate.bandwidth
    from_threshold = None if dt is None else spread(-height * dt, x)
    if dx is None or not surrogate.to_input:
        return from_threshold
    return _sum(_scaled(dx, height, x), from_threshold)


def _scaled(tangent: jax.Array, small: jax.Array, x: jax.Array) -> jax.Array:
    """``tangent * small``, for a tangent of x's shape.

    Written as a product over batch dimensions alone, which XLA turns into a multiplication with a
    broadcast: broadcast before the multiplication, the factor would be kept at full size.
    """
    tangent = spread(tangent, x)
    kept = tuple(d for d in range(small.ndim) if small.shape[d] == x.shape[d])
    types = (jax.typeof(x), jax.typeof(small))
    explicit = any(axis is not None for of in types for axis in of.sharding.spec)
    if explicit or len(kept) == x.ndim:
        return tangent * spread(small, x)
    small = lax.reshape(small.astype(tangent.dtype), tuple(x.shape[d] for d in kept))
    batch = (kept, tuple(range(len(kept))))
    product = lax.dot_general(tangent, small, (((), ()), batch), precision=lax.Precision.HIGHEST)
    # The batch dimensions come out first.
    free = tuple(d for d in range(x.ndim) if d not in kept)
    return lax.transpose(product, [(*kept, *free).index(d) for d in range(x.ndim)])


def _estimated(pushed, x, threshold, words, spec: Spec, packing: Packing) -> jax.Array | None:
    """`pushed` times the density or smoothed gate, exactly 0 outside a bounded window."""
    assert spec.surrogate is not None
    if pushed is None:
        return None
    if spec.traits.jump is None or not spec.surrogate.flat:
        pushed = pushed * spread(formulas.smoothed(x, threshold, spec), x)
    if "window" not in words:
        return pushed
    return gate(pushed, words["window"], packing, implementation=spec.implementation)


def spread(small: jax.Array, x: jax.Array) -> jax.Array:
    """Broadcasts a 0-d array, or one of x's rank, to x's shape, in the dtype of x's tangents.

    The transpose sums a cotangent back to the shape of `small`, in float32 at least.
    """
    arithmetic = computation_dtype(x.dtype)
    if small.shape == x.shape:
        return small.astype(arithmetic)
    accumulate = accumulator_dtype(x.dtype, small.dtype)
    kept = tuple(d for d in range(small.ndim) if small.shape[d] == x.shape[d])
    small = lax.reshape(small.astype(accumulate), tuple(x.shape[d] for d in kept))
    sharding = jax.typeof(x).sharding
    explicit = any(axis is not None for axis in sharding.spec)
    full = lax.broadcast_in_dim(small, x.shape, kept, out_sharding=sharding if explicit else None)
    return full.astype(arithmetic)


def _signed(tangent: jax.Array | None, slope: int, x: jax.Array) -> jax.Array | None:
    """``slope * tangent`` with x's shape."""
    if tangent is None or slope == 0:
        return None
    tangent = spread(tangent, x)
    if slope == 1:
        return tangent
    return -tangent if slope == -1 else slope * tangent


def _sum(a: jax.Array | None, b: jax.Array | None) -> jax.Array | None:
    if a is None or b is None:
        return a if b is None else b
    return a + b


# gate_p: impl, lowering and reference, abstract evaluation, jvp, transpose, batch


def _gate_xla(
    t: jax.Array, words: jax.Array, *, packing: Packing, invert: bool, implementation: str | None
) -> jax.Array:
    # Tied to the cotangent, the unpacking cannot move before the cotangent exists: into the forward
    # pass, where XLA would keep the mask alive instead of the words.
    t, words = lax.optimization_barrier((t, words))
    mask = packing.unpack(words, t.shape)
    zero = jnp.zeros((), t.dtype)
    return jnp.where(mask, zero, t) if invert else jnp.where(mask, t, zero)


gate_p = Primitive("thresholded_gate")


@gate_p.def_abstract_eval
def _gate_abstract(t, words, **params):
    return t.update(weak_type=False)


# d gate(t, words) = gate(dt, words); the words are integers and have no tangent.
ad.defjvp(gate_p, lambda dt, t, words, **params: gate_p.bind(dt, words, **params), None)


def _gate_transpose(cotangent, t, words, **params):
    # The matrix is diagonal, so it is its own transpose.
    if type(cotangent) is ad.Zero:
        return [ad.Zero(t.aval), None]
    return [gate_p.bind(cotangent, words, **params), None]


ad.primitive_transposes[gate_p] = _gate_transpose


def _gate_batch(operands, dims, **params):
    size = next(o.shape[d] for o, d in zip(operands, dims, strict=True) if d is not None)
    t, words = (
        jnp.broadcast_to(o, (size, *o.shape)) if d is None else jnp.moveaxis(o, d, 0)
        for o, d in zip(operands, dims, strict=True)
    )
    return gate_p.bind(t, words, **params), 0


batching.primitive_batchers[gate_p] = _gate_batch


lowering.register(
    gate_p,
    _gate_xla,
    lambda params: params["implementation"],
    static=("packing", "invert", "implementation"),
)


# thresholded_p: impl, lowering and reference


def _thresholded_xla(x, threshold, *, spec: Spec, packing: Packing, outputs: Sequence[str]):
    results = []
    for output in outputs:
        if output == "value":
            results.append(formulas.value(x, threshold, spec))
        else:
            results.append(packing.pack(getattr(formulas, output)(x, threshold, spec)))
    if len(results) > 1:
        # Tied to the value, the packing cannot be put off to the backward pass, where XLA would
        # keep x alive for it.
        results = list(lax.optimization_barrier(tuple(results)))
    return results


thresholded_p = Primitive("thresholded_relu")
thresholded_p.multiple_results = True


# abstract evaluation


@thresholded_p.def_abstract_eval
def _thresholded_abstract(x, threshold, *, spec, packing, outputs):
    like_x = x.update(weak_type=False)  # with x's sharding and the axes over which it varies
    if outputs == ("value",):
        return [like_x]
    words = jax.eval_shape(lambda x: packing.pack(x == x), like_x)
    like_words = _compat.like_type(like_x, words)
    return [like_x if output == "value" else like_words for output in outputs]


# jvp


def _thresholded_jvp(primals, tangents, *, spec, packing, outputs):
    """The formulas above. Keeps the words that they read; words have no tangent."""
    x, threshold = primals
    dx, dt = (None if type(t) is ad.Zero else t for t in tangents)
    moved = "value" in outputs
    residuals = residual_names(spec, dx is not None, dt is not None) if moved else ()
    wanted = tuple(o for o in OUTPUTS if o in outputs or o in residuals)
    values = thresholded_p.bind(x, threshold, spec=spec, packing=packing, outputs=wanted)
    found = dict(zip(wanted, values, strict=True))
    words = {name: checkpoint_name(found[name], RESIDUAL_NAME) for name in residuals}
    dy = value_tangent(x, threshold, dx, dt, words, spec, packing) if moved else None
    zeros = {o: ad.Zero(jax.typeof(found[o]).to_tangent_aval()) for o in outputs}
    return (
        [found[o] for o in outputs],
        [dy if o == "value" and dy is not None else zeros[o] for o in outputs],
    )


ad.primitive_jvps[thresholded_p] = _thresholded_jvp


# transpose


def _thresholded_transpose(cotangents, x, threshold, **params):
    raise NotImplementedError(
        "a thresholded activation is not linear in x or in its threshold, so it has no transpose. "
        "Use jax.vjp or jax.grad, which transpose its tangent."
    )


ad.primitive_transposes[thresholded_p] = _thresholded_transpose


# batch


def _thresholded_batch(operands, dims, *, spec, packing, outputs):
    x, threshold = operands
    x_dim, t_dim = dims
    size = x.shape[x_dim] if x_dim is not None else threshold.shape[t_dim]
    x = jnp.broadcast_to(x, (size, *x.shape)) if x_dim is None else jnp.moveaxis(x, x_dim, 0)
    if t_dim is not None:
        threshold = jnp.moveaxis(threshold, t_dim, 0)
        if threshold.ndim < x.ndim:  # one number per example
            threshold = threshold.reshape(size, *(1,) * (x.ndim - 1))
    elif threshold.ndim:
        threshold = threshold[None]
    if outputs == ("value",):  # nothing is packed yet, so words may run on over the examples
        packing = packing_of(x)
    values = thresholded_p.bind(x, threshold, spec=spec, packing=packing, outputs=outputs)
    return values, [0] * len(values)


batching.primitive_batchers[thresholded_p] = _thresholded_batch


# lowering

lowering.register(
    thresholded_p,
    _thresholded_xla,
    lambda params: params["spec"].implementation,
    static=("spec", "packing", "outputs"),
)


# dead code


def _thresholded_dead_code(used, eqn):
    """Drops outputs that nobody reads: under `jax.checkpoint` the first forward packs no words."""
    if not any(used):
        return [False] * len(eqn.invars), None
    outputs = tuple(o for o, u in zip(eqn.params["outputs"], used, strict=True) if u)
    outvars = [v for v, u in zip(eqn.outvars, used, strict=True) if u]
    params = dict(eqn.params, outputs=outputs)
    return [True] * len(eqn.invars), eqn.replace(params=params, outvars=outvars)


_compat.register_dead_code_rule(thresholded_p, _thresholded_dead_code)


# Taylor mode, `jax.experimental.jet`


def _thresholded_jet(primals, series, *, spec, packing, outputs):
    """The function is linear on both sides of the threshold: every order goes through the gate."""
    if spec.surrogate is not None:
        raise NotImplementedError(
            "jet of a thresholded activation with a surrogate is not defined: the surrogate is a "
            "rule for first derivatives, not the derivative of a function. Pass surrogate=None, or "
            "nest jax.jvp."
        )
    x, threshold = primals
    names = residual_names(spec, True, True)
    wanted = tuple(o for o in OUTPUTS if o in outputs or o in names)
    values = thresholded_p.bind(x, threshold, spec=spec, packing=packing, outputs=wanted)
    found = dict(zip(wanted, values, strict=True))

    def term(dx, dt):
        tangent = value_tangent(x, threshold, dx, dt, found, spec, packing)
        return jnp.zeros_like(x) if tangent is None else tangent

    terms = [term(dx, dt) for dx, dt in zip(*series, strict=True)]
    return [found[o] for o in outputs], [
        terms if o == "value" else [jnp.zeros_like(found[o])] * len(terms) for o in outputs
    ]


def _gate_jet(primals, series, **params):
    t, words = primals
    return gate_p.bind(t, words, **params), [gate_p.bind(s, words, **params) for s in series[0]]


_jet_rules: dict = jet.jet_rules
_jet_rules[thresholded_p] = _thresholded_jet
_jet_rules[gate_p] = _gate_jet


def _name_jet(primals, series, **params):
    return _name_p.bind(*primals, **params), series[0]


# JAX has no rule for `checkpoint_name`, which the words pass through; it is the identity.
_name_p = _compat.checkpoint_name_primitive()
_jet_rules.setdefault(_name_p, _name_jet)
