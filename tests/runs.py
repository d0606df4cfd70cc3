"""Ways to run several functions at once, each as ``run(functions, operands)``, both by name.

The results are by name too. Operands of two axes are those of x's shape: the rows that a mesh, pmap
or a symbolic shape is about. `cases.together` and `cases.over_cases` take any of these.
"""

import jax
from jax import export
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

#: An entry for each program that was compiled in this process. JAX lets go of a listener only with
#: all others, so there is one for all tests.
COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: COMPILED.append(event) if "backend_compile" in event else None
)

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def step_by_step(functions, operands):
    return {name: function(*operands[name]) for name, function in functions.items()}


def one_program(functions, operands):
    """The usual way: one compilation for all."""
    return jax.jit(lambda operands: step_by_step(functions, operands))(operands)


def without_jit(functions, operands):
    with jax.disable_jit():
        return step_by_step(functions, operands)


def ahead_of_time_and_donated(functions, operands):
    """The first operand of each function is donated."""
    firsts = {name: first + 0 for name, (first, *_) in operands.items()}
    others = {name: rest for name, (_, *rest) in operands.items()}

    def program(firsts, others):
        return {name: f(firsts[name], *others[name]) for name, f in functions.items()}

    compiled = jax.jit(program, donate_argnums=0).lower(firsts, others).compile()
    results = compiled(firsts, others)
    kept = [name for name, first in firsts.items() if not first.is_deleted()]
    assert not kept, f"not donated: {kept}"
    return results


def checked(functions, operands):
    program = checkify.checkify(
        lambda operands: one_program(functions, operands), errors=checkify.float_checks
    )
    error, results = program(operands)
    error.throw()
    return results


def nans_watched(functions, operands):
    with jax.debug_nans(True):
        return one_program(functions, operands)


def exported(functions, operands):
    """One artifact for all platforms and any number of rows."""
    (n,) = export.symbolic_shape("n")

    def type_of(operand):
        shape = (n, *operand.shape[1:]) if operand.ndim == 2 else operand.shape
        return jax.ShapeDtypeStruct(shape, operand.dtype)

    def program(operands):
        return step_by_step(functions, operands)

    types = jax.tree.map(type_of, operands)
    return export.export(jax.jit(program), platforms=PLATFORMS)(types).call(operands)


def mesh_of_rows(count, kind):
    """A mesh of one axis, "rows", over the first devices."""
    return jax.make_mesh((count,), ("rows",), axis_types=(kind,), devices=jax.devices()[:count])


def on_an_explicit_mesh(functions, operands):
    """With a row, or several, on each device."""
    (count,) = {o.shape[0] for o in jax.tree.leaves(operands) if o.ndim == 2}
    mesh = mesh_of_rows(count, AxisType.Explicit)

    def placed(operand):
        spec = P("rows", None) if operand.ndim == 2 else P()
        return jax.device_put(operand, NamedSharding(mesh, spec))

    with jax.set_mesh(mesh):
        return one_program(functions, jax.tree.map(placed, operands))


def row_by_device(functions, operands):
    """By pmap, over the rows."""
    axes = jax.tree.map(lambda operand: 0 if operand.ndim == 2 else None, operands)
    return jax.pmap(lambda operands: step_by_step(functions, operands), in_axes=(axes,))(operands)
