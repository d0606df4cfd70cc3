"""A training run in several processes on the loopback; and as a script, one of these processes.

`run` starts them, with a task: output (folder), steps, shape (of the mesh), and, to be killed at a
step, victim and kill_at. Data, pieces and spans are small, so that all that is shared is shared.
"""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import warnings

import numpy as np

from jaxtrelu import sae
from jaxtrelu.sae import _rows
from jaxtrelu.sae._shards import Shards

FEATURES, BATCH, EVERY = 128, 64, 8
RNG = np.random.default_rng(0)
X = (RNG.laplace(size=(2000, 24)) @ RNG.normal(size=(24, 16))).astype(np.float32)
RECIPE = dataclasses.replace(
    sae.short_run(), batch_size=BATCH, learning_rate_warmup=10, resample_every=20
)
# A run is tried, and a process that waits for one that is dead ends, in less than this.
PATIENCE = 120


class Counted(Shards):
    """Shards that count the rows that are read."""

    read = 0

    def __getitem__(self, rows):
        found = super().__getitem__(rows)
        self.read += len(found)
        return found


@contextlib.contextmanager
def small_pieces():
    """16 rows in a piece, and 32 pieces in a group of 8 strands; 128 rows in a span."""
    names = {"_CHUNK_BYTES": 16 * X[0].nbytes, "_SPAN_BYTES": 128 * X[0].nbytes}
    before = {name: getattr(_rows, name) for name in names}
    try:
        for name, value in names.items():
            setattr(_rows, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(_rows, name, value)


def rows():
    """The data as four shards, of which a group is a fourth; inside of `small_pieces`."""
    return sae.Rows(
        Counted(np.split(X, [300, 1000, 1500])), held_out=100, group_bytes=512 * X[0].nbytes
    )


def train(mesh=None, *, steps, output=None, **options):
    """(model, rows read before the first step, rows read in all)."""
    with small_pieces(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # far from its target after so few steps
        data, measured = rows(), []
        on_step = options.pop("on_step", None)

        def first_step(step, entry):
            measured.append(data.array.read)
            if on_step:
                on_step(step, entry)

        model = sae.train(
            data, features=FEATURES, l0=8.0, steps=steps, recipe=RECIPE, mesh=mesh, log_every=10,
            checkpoint_folder=output, checkpoint_every=EVERY, on_step=first_step, **options,
        )  # fmt: skip
        return model, measured[0] if measured else data.array.read, data.array.read


def start(count, **task):
    """The processes, started."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_NUM_CPU_DEVICES": "1",
    }  # fmt: skip
    started = []
    for number in range(count):
        own = task | {"address": address, "count": count, "number": number}
        command = [sys.executable, __file__, json.dumps(own, default=str)]
        started.append(
            subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    return started


def run(count, **task):
    """What each process reports, or None of those that were killed."""
    started = start(count, **task)
    if "victim" in task:
        victim = started[task["victim"]]
        said = victim.communicate(timeout=PATIENCE)[1]
        assert victim.returncode == -signal.SIGKILL, said
        for process in started:  # as Slurm does
            process.kill()
            process.communicate()
        return [None] * count
    reports = []
    for process in started:
        out, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
        reports.append(json.loads(out.splitlines()[-1]))  # after what Gloo says
    return reports


def main():
    task = json.loads(sys.argv[1])
    import jax
    from jax.sharding import AxisType

    jax.distributed.initialize(task["address"], task["count"], task["number"])
    mesh = jax.make_mesh(
        tuple(task["shape"]), ("examples", "features"), axis_types=(AxisType.Auto,) * 2
    )

    def on_step(step, entry):
        if (task["number"], step) == (task.get("victim"), task.get("kill_at")):
            os.kill(os.getpid(), signal.SIGKILL)

    model, measured, read = train(mesh, steps=task["steps"], output=task["output"], on_step=on_step)
    if jax.process_index() == 0 and "model" in task:
        sae.save(model, task["model"])
    history = {name: column.tolist() for name, column in model.training.history.items()}
    report = {"measured": measured, "read": read, "resumed_from": model.training.resumed_from}
    print(json.dumps(report | {"history": history}))


if __name__ == "__main__":
    main()
