"""The error of every function in units in the last place, against float64 from the definition.

`python tests/accuracy.py` writes the table into docs/accuracy.md; test_accuracy.py measures again,
and fails where an error is larger than the table says.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle

import jaxtrelu
from jaxtrelu import Gaussian, Rectangle, Sigmoid, Triangle

PAGE = Path(__file__).parent.parent / "docs" / "accuracy.md"
_BEGIN, _END = "<!-- begin of the table -->", "<!-- end of the table -->"
DTYPES = ("float32", "bfloat16", "float16")
#: What the table may say: a measured error is given by the next of these.
LADDER = (0, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)
ROWS, CHANNELS, FEATURES, OUT = 64, 48, 96, 24
VARIANTS = {
    "shift": {},
    "shift, ceiling": {"ceiling": 0.75},
    "hard": {"variant": "hard"},
    "clamp": {"variant": "clamp"},
}
SURROGATES = {one.__name__: one for one in (Rectangle, Triangle, Gaussian, Sigmoid)}
BANDWIDTH = 0.5


def densities(name: str, d):
    """The surrogates' densities, from their definitions."""
    u = d / BANDWIDTH
    if name == "Rectangle":
        return (np.abs(d) < BANDWIDTH / 2) / BANDWIDTH
    if name == "Triangle":
        return np.maximum(1 - np.abs(u), 0) / BANDWIDTH
    if name == "Gaussian":
        return np.exp(-u * u / 2) / (BANDWIDTH * np.sqrt(2 * np.pi))
    s = 1 / (1 + np.exp(-u))
    return s * (1 - s) / BANDWIDTH


def _numpy(dtype: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, dtype, dtype))


def operands(dtype: str) -> dict[str, np.ndarray]:
    """Random operands, rounded to the dtype; thresholds are float32."""
    rng = np.random.default_rng(0)
    shapes = {
        "x": (ROWS, CHANNELS), "other": (ROWS, CHANNELS), "ct": (ROWS, CHANNELS),
        "w_in": (FEATURES, CHANNELS), "w_up": (FEATURES, CHANNELS), "w_out": (FEATURES, OUT),
        "ct_out": (ROWS, OUT), "ct_hidden": (ROWS, FEATURES),
    }  # fmt: skip
    drawn = {name: rng.normal(size=shape).astype(_numpy(dtype)) for name, shape in shapes.items()}
    drawn["t"] = rng.normal(size=CHANNELS).astype("float32") / 2
    drawn["each"] = rng.normal(size=(ROWS, CHANNELS)).astype("float32") / 2
    drawn["t_hidden"] = np.abs(rng.normal(size=FEATURES).astype("float32")) * 4
    return drawn


def measured():
    """``{name: function of the operands}``, all that is measured."""

    def pulled(f, *given, ct):
        return jax.vjp(f, *given)[1](ct)

    found = {}
    for name, options in VARIANTS.items():

        def value(o, options=options):
            return jaxtrelu.thresholded_relu(o["x"], o["t"], **options)

        def gradients(o, options=options):
            return pulled(
                lambda x, t: jaxtrelu.thresholded_relu(x, t, **options), o["x"], o["t"], ct=o["ct"]
            )

        found[f"`thresholded_relu`, {name}"] = value
        found[f"its gradient in x, {name}"] = lambda o, g=gradients: g(o)[0]
        if options.get("variant") != "hard":
            found[f"its gradient in the threshold, {name}"] = lambda o, g=gradients: g(o)[1]
        found[f"`antiderivative`, {name}"] = lambda o, options=options: jaxtrelu.antiderivative(
            o["x"], o["t"], **options
        )
    found["`step`"] = lambda o: jaxtrelu.step(o["x"], o["t"])
    found["`derivative`, shift"] = lambda o: jaxtrelu.derivative(o["x"], o["t"])
    found["`thresholded_glu`, hard"] = lambda o: jaxtrelu.thresholded_glu(
        o["x"], o["other"], o["t"], variant="hard"
    )
    for name, surrogate in SURROGATES.items():

        def estimated(o, surrogate=surrogate):
            f = lambda t: jaxtrelu.jump_relu(o["x"], t, surrogate=surrogate(BANDWIDTH))  # noqa: E731
            return pulled(f, o["each"], ct=o["ct"])[0]

        found[f"`jump_relu`'s gradient in the threshold, {name}"] = estimated

    def linear(x, w, t):
        return jaxtrelu.thresholded_linear(x, w, t)

    found["`thresholded_linear`"] = lambda o: linear(o["x"], o["w_in"].T, o["t_hidden"])
    blocks = {
        "sparse_mlp": lambda x, o: jaxtrelu.sparse_mlp(x, o["w_in"], o["w_out"], o["t_hidden"]),
        "compact_mlp": lambda x, o: jaxtrelu.compact_mlp(x, o["w_in"], o["w_out"], o["t_hidden"]),
        "gated_mlp": lambda x, o: jaxtrelu.gated_mlp(
            x, o["w_in"], o["w_up"], o["w_out"], o["t_hidden"]
        ),
    }
    for name, block in blocks.items():
        found[f"`{name}`"] = lambda o, block=block: block(o["x"], o)
        found[f"`{name}`'s gradient in x"] = lambda o, block=block: pulled(
            lambda x: block(x, o), o["x"], ct=o["ct_out"]
        )[0]
    return found


def expected(o: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """``{name: (value, size)}`` in float64; the size is that of the terms that are summed."""
    o = {name: oracle.wide(array) for name, array in o.items()}
    x, t, ct = o["x"], o["t"], o["ct"]
    found = {}

    def alone(name, y):
        found[name] = (y, np.abs(y))

    for name, options in VARIANTS.items():
        alone(f"`thresholded_relu`, {name}", oracle.value(x, t, **options))
        dx, dt = oracle.cotangents(x, t, ct, **options)
        alone(f"its gradient in x, {name}", dx)
        terms = oracle.cotangents(x, np.broadcast_to(t, x.shape), ct, **options)[1]
        found[f"its gradient in the threshold, {name}"] = dt, np.abs(terms).sum(0)
        alone(f"`antiderivative`, {name}", oracle.antiderivative(x, t, **options))
    alone("`step`", (x > t) * 1.0)
    alone("`derivative`, shift", (x > t) * 1.0)
    alone("`thresholded_glu`, hard", oracle.value(x, t, variant="hard") * o["other"])
    for name in SURROGATES:
        dt = -o["each"] * densities(name, x - o["each"]) * ct
        # Of the size that it has at the density's peak: what is small beside that is a tail.
        size = np.abs(o["each"] * densities(name, 0.0) * ct)
        found[f"`jump_relu`'s gradient in the threshold, {name}"] = dt, size

    z, hidden = x @ o["w_in"].T, o["t_hidden"]
    size = np.abs(x) @ np.abs(o["w_in"]).T + np.abs(hidden)
    a, gate = oracle.value(z, hidden), z > hidden
    found["`thresholded_linear`"] = a, size
    y, y_size = a @ o["w_out"], size @ np.abs(o["w_out"])
    dz = gate * (o["ct_out"] @ o["w_out"].T)
    dz_size = np.abs(o["ct_out"]) @ np.abs(o["w_out"]).T
    for name in ("sparse_mlp", "compact_mlp"):
        found[f"`{name}`"] = y, y_size
        found[f"`{name}`'s gradient in x"] = dz @ o["w_in"], dz_size @ np.abs(o["w_in"])
    up, up_size = x @ o["w_up"].T, np.abs(x) @ np.abs(o["w_up"]).T
    found["`gated_mlp`"] = (a * up) @ o["w_out"], (size * up_size) @ np.abs(o["w_out"])
    dh = o["ct_out"] @ o["w_out"].T
    dx = (gate * dh * up) @ o["w_in"] + (dh * a) @ o["w_up"]
    dx_size = (dz_size * up_size) @ np.abs(o["w_in"]) + (dz_size * size) @ np.abs(o["w_up"])
    found["`gated_mlp`'s gradient in x"] = dx, dx_size
    return found


def spacing(size: np.ndarray, dtype: str) -> np.ndarray:
    """A unit in the last place at numbers of this size."""
    info = ml_dtypes.finfo(_numpy(dtype))
    exponent = np.floor(np.log2(np.maximum(size, float(info.smallest_normal))))
    return 2.0 ** (exponent - info.nmant)


def errors(dtype: str) -> dict[str, float]:
    """The largest error of each function, in ulp."""
    drawn = operands(dtype)
    functions = measured()
    given = {name: jnp.asarray(array) for name, array in drawn.items()}
    results = jax.jit(lambda o: {name: f(o) for name, f in functions.items()})(given)
    truth, found = expected(drawn), {}
    for name in functions:
        value, size = truth[name]
        # Densities are kept in the dtype of x, and the gradient is float32.
        kind = dtype if "jump_relu" in name else str(results[name].dtype)
        unit = spacing(size, kind)
        found[name] = float(np.max(np.abs(oracle.wide(results[name]) - value) / unit))
    return found


def rung(error: float) -> float:
    """The error as the table gives it: the next number of the ladder."""
    return next((step for step in LADDER if error <= step * (1 + 1e-6)), np.inf)


def _stated(error: float) -> float:
    """With room for other compilers, where it is not the rounding of the result alone."""
    return rung(error if error <= 0.5 else 1.5 * error)


def table() -> str:
    columns = {dtype: errors(dtype) for dtype in DTYPES}
    lines = [f"| | {' | '.join(DTYPES)} |", f"| --- |{' --- |' * len(DTYPES)}"]
    for name in columns["float32"]:
        cells = " | ".join(f"{_stated(columns[dtype][name]):g}" for dtype in DTYPES)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def held() -> dict[str, dict[str, float]]:
    """The table in the page: ``{dtype: {name: error}}``."""
    text = PAGE.read_text().partition(_BEGIN)[2].partition(_END)[0]
    found: dict[str, dict[str, float]] = {dtype: {} for dtype in DTYPES}
    for line in text.strip().splitlines()[2:]:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for dtype, cell in zip(DTYPES, cells, strict=True):
            found[dtype][name] = float(cell)
    return found


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    page, new = PAGE.read_text(), table()
    before, _, rest = page.partition(_BEGIN)
    PAGE.write_text(f"{before}{_BEGIN}\n{new}\n{_END}{rest.partition(_END)[2]}")
    print(new)
