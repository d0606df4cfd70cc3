"""Every public function of arrays as an artifact of `jax.export`, and the table of what survives.

`python tests/export_cases.py` writes the table into docs/export.md; test_export_all.py checks that
it is that of today.
"""

import functools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from public_calls import CALLS, W_IN, W_OUT, X

import jaxtrelu

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
PAGE = Path(__file__).parent.parent / "docs" / "export.md"
_BEGIN, _END = "<!-- begin of the table -->", "<!-- end of the table -->"

JUMP = jaxtrelu.Rectangle(1.0)
#: The operands of each call whose first axis is the batch.
BATCHED = {
    "thresholded_glu": (0, 1),
    "bits.rank": (0, 1),
    "bits.select": (0, 1),
    "bits.compact": (0, 1),
    "bits.expand": (0, 1),
}


class Case(NamedTuple):
    """A function of arrays, with operands for a batch of any size."""

    function: Callable
    operands: tuple
    batched: tuple[int, ...]
    differentiable: tuple[int, ...]

    def of(self, batch: int) -> list[np.ndarray]:
        """The operands for another batch: their rows again and again."""
        return [
            np.resize(o, (batch, *o.shape[1:])) if i in self.batched else np.asarray(o)
            for i, o in enumerate(self.operands)
        ]


def _with_record(x, w_in, w_out, norms):
    """`entry_sum` of a record that has the batch's size."""
    y, record = jaxtrelu.sparse_mlp(x, w_in, w_out, 0.25, with_activity=True)

    def activations():
        return jaxtrelu.thresholded_relu(x @ w_in.T, 0.25)

    penalty = jaxtrelu.entry_sum(lambda f, norm: f * norm, record, activations, norms)
    return jnp.sum(y) + penalty


def cases() -> dict[str, Case]:
    """The calls of the table of public functions, and those that need a record made first."""
    found = {}
    for name, call in CALLS.items():
        differentiable = call.floating if call.differentiable else ()
        function = functools.partial(call.__call__)
        found[name] = Case(function, call.operands, BATCHED.get(name, (0,)), differentiable)
    # Other ways through the same functions; features are more than an example's lists hold.
    rng = np.random.default_rng(1)
    x, w = (rng.normal(size=(n, 16)).astype(np.float32) for n in (3, 70))
    thresholds = np.full(70, 3, np.float32)
    for way in ({"products": "gathers"}, {"screen": True}):
        ((option, value),) = way.items()
        function = functools.partial(jaxtrelu.sparse_mlp, variant="hard", surrogate=JUMP, **way)
        label = f"sparse_mlp, {option}={value!r}"
        found[label] = Case(function, (x, w, w, thresholds), (0,), (0, 1, 2, 3))
    norms = np.linspace(0.5, 2, 7, dtype=np.float32)
    found["entry_sum"] = Case(_with_record, (X, W_IN, W_OUT, norms), (0,), (0, 1, 2, 3))
    return found


def exported(case: Case) -> export.Exported:
    """One artifact for all platforms and any batch."""
    (batch,) = export.symbolic_shape("batch")
    types = [
        jax.ShapeDtypeStruct((batch, *o.shape[1:]) if i in case.batched else o.shape, o.dtype)
        for i, o in enumerate(map(np.asarray, case.operands))
    ]
    return export.export(jax.jit(case.function), platforms=PLATFORMS)(*types)


def weighted(result) -> jax.Array:
    """A number that depends on all of a result's floating-point numbers."""
    leaves = [r for r in jax.tree.leaves(result) if jnp.issubdtype(r.dtype, jnp.floating)]
    return sum(jnp.sum(r * (1 + jnp.arange(r.size).reshape(r.shape) % 3)) for r in leaves)


#: Run without jaxtrelu: reads artifacts, calls them and their gradients.
READER = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax import export

def weighted(result):
    leaves = [r for r in jax.tree.leaves(result) if jnp.issubdtype(r.dtype, jnp.floating)]
    return sum(jnp.sum(r * (1 + jnp.arange(r.size).reshape(r.shape) % 3)) for r in leaves)

room, *names = sys.argv[1:]
for name in names:
    given = np.load(f"{room}/{name}.npz")
    read = export.deserialize(bytearray(open(f"{room}/{name}.artifact", "rb").read()))
    out = {}
    for batch in (3, 5):
        operands = [given[f"{batch}_{i}"] for i in range(len(given["count"]))]
        numbers = tuple(given["differentiable"].tolist())

        def both(*operands):
            def total(*floating):
                whole = list(operands)
                for i, o in zip(numbers, floating):
                    whole[i] = o
                result = read.call(*whole)
                return weighted(result), result
            if not numbers:
                return read.call(*operands), ()
            floating = [operands[i] for i in numbers]
            gradient, result = jax.grad(total, tuple(range(len(numbers))), has_aux=True)(*floating)
            return result, gradient

        result, gradient = jax.jit(both)(*operands)
        out |= {f"{batch}_result_{i}": r for i, r in enumerate(jax.tree.leaves(result))}
        out |= {f"{batch}_gradient_{i}": r for i, r in enumerate(gradient)}
    np.savez(f"{room}/{name}.out.npz", **out)
assert "jaxtrelu" not in sys.modules
"""


class Survived(NamedTuple):
    """What became of a function."""

    bytes: int = 0
    gradient: bool = False
    failed: str = ""


def survey(room: Path, names=None) -> dict[str, Survived]:
    """Exports, serialises, and runs in a fresh process; what differs from here is a failure."""
    found: dict[str, Survived] = {}
    every = {name: case for name, case in cases().items() if names is None or name in names}
    for name, case in every.items():
        order = 1 if case.differentiable else 0
        try:
            artifact = exported(case)
            assert artifact.platforms == PLATFORMS, name
            data = artifact.serialize(vjp_order=order)
        except Exception as error:
            found[name] = Survived(failed=f"{type(error).__name__}: {error}".splitlines()[0])
            continue
        (room / f"{name}.artifact").write_bytes(data)
        operands = {f"{batch}_{i}": o for batch in (3, 5) for i, o in enumerate(case.of(batch))}
        numbers = np.array(case.differentiable, int)
        np.savez(
            room / f"{name}.npz",
            **operands,
            count=np.zeros(len(case.operands)),
            differentiable=numbers,
        )
        found[name] = Survived(len(data), bool(case.differentiable))
    alive = [name for name, one in found.items() if not one.failed]
    command = [sys.executable, "-c", READER, str(room), *alive]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    for name in alive:
        case, got = every[name], np.load(room / f"{name}.out.npz")
        for batch in (3, 5):
            for key, expected in _expected(case, case.of(batch)).items():
                np.testing.assert_allclose(
                    got[f"{batch}_{key}"], expected, rtol=2e-5, atol=2e-5, err_msg=f"{name} {key}"
                )
    return found


def _expected(case: Case, operands: list) -> dict[str, np.ndarray]:
    def both(*operands):
        def total(*floating):
            whole = list(operands)
            for i, o in zip(case.differentiable, floating, strict=True):
                whole[i] = o
            result = case.function(*whole)
            return weighted(result), result

        if not case.differentiable:
            return case.function(*operands), ()
        floating = [operands[i] for i in case.differentiable]
        numbers = tuple(range(len(floating)))
        gradient, result = jax.grad(total, numbers, has_aux=True)(*floating)
        return result, gradient

    result, gradient = jax.jit(both)(*operands)
    return {
        **{f"result_{i}": np.asarray(r) for i, r in enumerate(jax.tree.leaves(result))},
        **{f"gradient_{i}": np.asarray(r) for i, r in enumerate(gradient)},
    }


def table(found: dict[str, Survived]) -> str:
    """The table as the page has it: no sizes, which differ between versions of JAX."""
    lines = [
        "| | cpu, cuda, rocm, tpu | any batch | with its gradient |",
        "| --- | --- | --- | --- |",
    ]
    for name, one in found.items():
        shown = ", ".join(f"`{part}`" for part in name.split(", "))
        if one.failed:
            lines.append(f"| {shown} | no: {one.failed} | | |")
            continue
        gradient = "yes" if one.gradient else "has none"
        if name == "sparse_mlp_vjp":
            gradient = "its pullback is in the artifact"
        lines.append(f"| {shown} | yes | yes | {gradient} |")
    return "\n".join(lines)


def held() -> str:
    """The table in the page."""
    return PAGE.read_text().partition(_BEGIN)[2].partition(_END)[0].strip()


def write(text: str) -> None:
    page = PAGE.read_text()
    before, _, rest = page.partition(_BEGIN)
    PAGE.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{rest.partition(_END)[2]}")


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        results = survey(Path(folder))
    write(table(results))
    print(table(results))
    sys.exit(bool(re.search("no: ", table(results))))
