"""Training over a mesh, in one process and in several: the run of one device, to rounding."""

import argparse
import dataclasses
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import ClassVar
from unittest.mock import Mock

import jax
import numpy as np
import pytest
import several_processes as several
from jax.sharding import AxisType

from jaxtrelu import sae
from jaxtrelu.__main__ import main
from jaxtrelu._cli import UserError
from jaxtrelu._cli import process as this_process
from jaxtrelu._cli.sae import train as train_command
from jaxtrelu.sae import _pieces

RECIPE = dataclasses.replace(sae.short_run(), batch_size=64, learning_rate_warmup=10)
RNG = np.random.default_rng(0)
X = (RNG.laplace(size=(2000, 24)) @ RNG.normal(size=(24, 16))).astype(np.float32)


def mesh_of(examples, features):
    return jax.make_mesh(
        (examples, features), ("examples", "features"), axis_types=(AxisType.Auto,) * 2,
        devices=jax.devices()[: examples * features],
    )  # fmt: skip


def train(mesh=None, steps=60, **options):
    return sae.train(X, features=128, l0=3.0, steps=steps, recipe=RECIPE, mesh=mesh, **options)


@pytest.mark.parametrize("shape", [pytest.param((8, 1), marks=pytest.mark.slow), (2, 4)])
def test_a_mesh_gives_the_run_of_one_device(shape, tmp_path):
    alone, over = train(), train(mesh_of(*shape), checkpoint_folder=tmp_path, checkpoint_every=20)
    for name, one, other in zip(sae.Weights._fields, alone.weights, over.weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(alone.training.history["l0"], over.training.history["l0"], rtol=1e-2)
    # What was saved there goes on anywhere: here on one device, extended.
    longer = train(steps=80, checkpoint_folder=tmp_path, checkpoint_every=20)
    assert longer.training.resumed_from == 60


def test_meshes_are_checked():
    wrong = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    with pytest.raises(ValueError, match=r"axes .examples. and .features.* but has .rows."):
        train(wrong)
    explicit = jax.make_mesh(
        (2,), ("examples",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2]
    )
    with pytest.raises(ValueError, match="should have automatic axes"):
        train(explicit)
    with pytest.raises(ValueError, match="a batch of 63 examples cannot be shared equally by 8"):
        sae.train(
            X, features=128, l0=3.0, steps=5, mesh=mesh_of(8, 1),
            recipe=dataclasses.replace(RECIPE, batch_size=63),
        )  # fmt: skip
    with pytest.raises(ValueError, match="a dictionary of 130 features cannot be shared"):
        sae.train(X, features=130, l0=3.0, steps=5, recipe=RECIPE, mesh=mesh_of(2, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes", "2"], "need a --coordinator"),
        (["--coordinator", "localhost:1"], "needs --processes and --process"),
        (["--coordinator", "localhost:1", "--processes", "2", "--process", "2"], "below"),
        (["--feature-devices", "2"], "needs --all-devices or a --coordinator"),
        (["--all-devices", "--feature-devices", "3"], "divide the number of devices, 8"),
    ],
)
def test_options_are_checked(options, message, tmp_path, capsys):
    np.save(tmp_path / "x.npy", X)
    command = ["sae", str(tmp_path / "x.npy"), "--output", str(tmp_path / "out"), *options]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.count("jaxtrelu: error:") == 1 and message in said


# several processes: what each reads and writes


def of_processes(rows, *spans):
    """An array of that many rows, of which process i holds those of spans[i]."""
    devices = {
        Mock(process_index=number): (slice(*span), slice(None))
        for number, held in enumerate(spans)
        for span in held
    }
    sharding = SimpleNamespace(devices_indices_map=lambda shape: devices)
    return SimpleNamespace(shape=(rows, 3), sharding=sharding)


@pytest.mark.parametrize(
    ("rows", "spans", "written"),
    [
        (12, [[(0, 6)], [(6, 12)]], [[(0, 6)], [(6, 12)]]),
        (12, [[(0, 12)], [(0, 12)]], [[(0, 6)], [(6, 12)]]),
        (10, [[(None, None)]] * 3, [[(0, 3)], [(3, 6)], [(6, 10)]]),
        (1, [[(0, 1)]] * 2, [[], [(0, 1)]]),
        # Two devices in each of four processes, over features and examples.
        (8, [[(0, 2), (2, 4)], [(4, 6), (6, 8)]] * 2, [[(0, 2)], [(4, 6)], [(2, 4)], [(6, 8)]]),
    ],
)
def test_processes_write_each_row_once_and_share_what_several_hold(rows, spans, written):
    found = _pieces._rows_to_write(of_processes(rows, *spans))
    assert [found[number] for number in range(len(spans))] == written


def test_parts_of_a_batch_are_its_rows_and_read_only_their_strands():
    with several.small_pieces():
        for rows in (several.rows(), sae.Rows(several.X, seed=3)):
            for step in (0, 7, 90):
                whole = rows.batch(step, 64)
                parts = [rows.batch(step, 64, part=slice(a, a + 16)) for a in range(0, 64, 16)]
                np.testing.assert_array_equal(np.concatenate(parts), whole)
        whole, quarter = several.rows(), several.rows()
        steps = range(whole.shuffled_together // 64)
        for step in steps:
            whole.batch(step, 64)
            quarter.batch(step, 64, part=slice(16, 32))
        assert quarter.array.read == whole.array.read / 4 == 480 / 4
        assert "in pieces of 6 rows, 80 together in 16 strands" in whole.order
        with pytest.raises(ValueError, match="a slice without a step"):
            whole.batch(0, 64, part=slice(0, 64, 2))


def test_an_epoch_in_strands_has_a_row_once_and_batches_have_rows_of_all_strands():
    array = np.zeros((2048, 16), np.float32)
    array[:, 0] = np.arange(2048)
    with several.small_pieces():
        rows = sae.Rows(several.Counted([array]), group_bytes=512 * array[0].nbytes)
        assert "32 together in 8 strands" in rows.order
        epochs = [
            np.concatenate([rows.batch(step, 32)[:, 0] for step in range(start, start + 60)])
            for start in (0, 60)
        ]
    for epoch in epochs:
        assert len(np.unique(epoch)) == len(epoch) == 1920  # 15 batches of each group of 512 rows
    assert (epochs[0] != epochs[1]).any() and len(np.unique(epochs)) > 2020
    # 32 rows from all over the 32 pieces of a group, and four rows of each of its 8 strands.
    pieces = [len(np.unique(epochs[0][start : start + 32] // 16)) for start in range(0, 1920, 32)]
    assert np.mean(pieces) > 15


class Told:
    """The process of a number, to whom others have told what they found before it."""

    told: ClassVar = {}

    def __init__(self, number, count):
        self.number, self.count = number, count

    def together(self, attempt):
        return attempt()

    def exchange(self, value):
        self.told[self.number] = value
        return [self.told.get(number, []) for number in range(self.count)]


def test_the_first_pass_finds_the_same_however_it_is_shared():
    with several.small_pieces():
        alone = several.rows().statistics()
        assert several.rows().fingerprint() == alone.fingerprint
        read = []
        for number in (1, 2, 0):
            data, done = several.rows(), []
            (found,) = data._statistics(Told(number, 3), done.append)
            read.append(data.array.read)
            assert sum(done) == 2000
        assert found == alone  # of the last one, to whom all have told
        # A third each, and the first rows, about which all of them sum.
        assert sum(read) == 2000 + 3 * 128 and max(read) < 900
        changed = several.X.copy()
        changed[1999, 3] += 1
        assert sae.Rows(changed).fingerprint() != sae.Rows(several.X).fingerprint()
        changed[[5, 1500], 2] = np.nan
        with pytest.raises(ValueError, match="in rows 5, 1500 "):
            sae.Rows(changed).statistics()


# two processes: the run of one, to rounding, whatever dies


def copied(folder, to):
    shutil.copytree(folder, to)
    return to


def steps_of(folder):
    return sorted({int(path.name[5:15]) for path in folder.glob("step-*")})


def assert_same_files(one, other):
    """The checkpoints of two folders: weights, moments, counters and history, to the bit."""
    names = sorted(path.name for path in one.glob("step-*"))
    assert names == sorted(path.name for path in other.glob("step-*")) and names
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


class Two:
    """What two processes did, and one alone."""

    steps = 40

    def __init__(self, room):
        self.room = room
        self.alone, _, self.read = several.train(steps=self.steps, output=room / "alone")
        shutil.copytree(room / "alone", room / "taken over")
        self.drop_newest(room / "taken over")
        tasks = {
            "examples": {"shape": (2, 1), "model": room / "examples.safetensors"},
            "features": {"shape": (1, 2), "model": room / "features.safetensors"},
            "taken over": {"shape": (1, 2), "model": room / "taken over.safetensors"},
            "full": {"shape": (2, 1), "victim": 1, "full_at": 16},
            "apart": {"shape": (2, 1), "elsewhere": True},
            "pairs": {"shape": (2, 1), "pairs": True, "model": room / "pairs.safetensors"},
        }
        tasks = {
            name: {"output": room / name, "steps": self.steps} | task
            for name, task in tasks.items()
        }
        self.reports = dict(zip(tasks, several.run(2, *tasks.values()), strict=True))

    def drop_newest(self, folder):
        newest = steps_of(folder)[-1]
        for path in folder.glob(f"step-{newest:010d}*"):
            path.unlink()
        assert steps_of(folder) == [newest - several.EVERY]

    def weights(self, name):
        return sae.load(self.room / f"{name}.safetensors").weights


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return Two(tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("name", ["examples", "features", "taken over"])
def test_two_processes_give_the_run_of_one(two, name):
    """Also from the checkpoint of one, which they take over."""
    assert_close(two.alone.weights, two.weights(name))
    for report in two.reports[name]:
        assert (report["count"], report["scale"]) == (2, two.alone.training.scale)
        assert report["resumed_from"] == (32 if name == "taken over" else 0)
        np.testing.assert_allclose(
            report["history"]["l0"], two.alone.training.history["l0"], rtol=1e-3
        )


def test_two_processes_train_a_transcoder(two, tmp_path):
    """With a skip connection; and what they saved goes on with one process."""
    options = {"targets": several.Y, "skip": True}
    alone, _, read = several.train(steps=two.steps, output=tmp_path / "alone", **options)
    found = sae.load(two.room / "pairs.safetensors")
    assert_close(alone.weights, found.weights)
    assert np.abs(found.skip).max() > 0.1
    np.testing.assert_allclose(found.skip, alone.skip, rtol=1e-2, atol=1e-3)
    for report in two.reports["pairs"]:
        assert (report["count"], report["scale"]) == (2, alone.training.scale)
        assert report["read"] < 0.6 * read
        l0 = report["history"]["l0"]
        np.testing.assert_allclose(l0, alone.training.history["l0"], rtol=1e-3)
    two.drop_newest(copied(two.room / "pairs", tmp_path / "run"))
    model, _, _ = several.train(steps=two.steps, output=tmp_path / "run", **options)
    assert model.training.resumed_from == 32
    assert_close(found.weights, model.weights)


def test_each_of_two_processes_reads_its_half(two):
    first, second = two.reports["examples"]
    assert first["measured"] + second["measured"] < 2000 + 2 * 128 + 600
    for report in (first, second):
        assert report["read"] < 0.55 * two.read
    # Where features alone are shared, both need all examples; but they share the first pass.
    assert all(report["read"] > 0.6 * two.read for report in two.reports["features"])


@pytest.mark.parametrize("name", ["examples", "features"])
def test_each_of_two_processes_writes_its_half(two, name):
    folder = two.room / name
    whole = (two.room / "alone" / "step-0000000040.safetensors").stat().st_size
    parts = [folder / f"step-0000000040.{number}-of-2.safetensors" for number in (1, 2)]
    for path in parts:
        assert 0.4 * whole < path.stat().st_size < 0.55 * whole
    assert (folder / "step-0000000040.safetensors").stat().st_size < 0.15 * whole
    assert len(list(folder.glob("step-*"))) == 2 * 3 and not list(folder.glob(".*.part"))


@pytest.mark.parametrize("name", ["examples", "features"])
def test_what_two_processes_saved_goes_on_with_one(two, name, tmp_path):
    two.drop_newest(copied(two.room / name, tmp_path / "run"))
    model, _, _ = several.train(steps=two.steps, output=tmp_path / "run")
    assert model.training.resumed_from == 32
    assert_close(two.alone.weights, model.weights)
    # From now on it is a file, and what is older than the two newest goes with its parts.
    names = sorted(path.name for path in (tmp_path / "run").glob("step-*"))
    assert names[-1] == "step-0000000040.safetensors" and len(names) == 4


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def older(path):
    return path.with_name(path.name.replace("0040.", "0032."))


DAMAGE = {
    "a flipped byte": (flip, "its checksum is not that of its content"),
    "missing": (lambda path: path.unlink(), "no such file or directory"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-9]), ".* does not fit the "),
    "another step's": (lambda path: shutil.copy(older(path), path), "it is of another checkpoint"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_checkpoint_with_a_damaged_part_is_skipped(two, damage, tmp_path):
    folder, (harm, reason) = copied(two.room / "features", tmp_path / "run"), DAMAGE[damage]
    harm(folder / "step-0000000040.2-of-2.safetensors")
    said = (
        r"step-0000000040\.safetensors is damaged, and was skipped: its part "
        r"step-0000000040\.2-of-2\.safetensors: " + reason
    )
    with pytest.warns(UserWarning, match=said):
        model, _, _ = several.train(steps=two.steps, output=folder)
    assert model.training.resumed_from == 32


def test_parts_without_a_checkpoint_are_removed(two, tmp_path):
    folder = copied(two.room / "features", tmp_path / "run")
    (folder / "step-0000000040.safetensors").unlink()  # killed before it was in place
    model, _, _ = several.train(steps=two.steps, output=folder)
    assert model.training.resumed_from == 32
    assert not list(folder.glob("step-0000000040.*-of-2.*"))
    several.train(steps=two.steps, output=folder, fresh=True)
    assert not list(folder.glob("*-of-2.*"))


def test_one_full_disk_stops_both_and_leaves_a_whole_checkpoint(two):
    first, second = (report["error"] for report in two.reports["full"])
    assert first == "ValueError: process 1 has stopped, and says why."
    assert second.startswith("OSError: the checkpoint of step 16 cannot be written to ")
    assert "no space left on device. Earlier checkpoints are kept" in second
    assert steps_of(two.room / "full") == [8]
    resumed, _, _ = several.train(steps=two.steps, output=two.room / "full")
    assert resumed.training.resumed_from == 8


def test_processes_that_see_different_folders_stop(two):
    first, second = (report["error"] for report in two.reports["apart"])
    assert first == "ValueError: process 1 has stopped, and says why."
    assert "has to be one folder that all of them see" in second


def killed_again_and_again(folder, shape, steps, seeds):
    """A run of which one process is killed at a random step, in each attempt; then to its end."""
    count, done = shape[0] * shape[1], 0
    for seed in seeds:
        drawn = random.Random(seed)
        at = drawn.randrange(done + 1, steps)
        task = {"shape": shape, "output": folder, "steps": steps}
        several.run(count, task | {"victim": drawn.randrange(count), "kill_at": at})
        done = at // several.EVERY * several.EVERY
        assert steps_of(folder)[-1:] == ([done] if done else [])
    ((first, *_),) = several.run(count, task)
    assert first["resumed_from"] == done > 0


@pytest.mark.slow
def test_one_of_two_killed_at_random_steps_ends_at_the_same_bits(two):
    folder = two.room / "killed"
    killed_again_and_again(folder, (2, 1), two.steps, seeds=(0, 1))
    assert_same_files(folder, two.room / "examples")


@pytest.mark.slow
def test_one_of_two_that_share_features_killed_ends_at_the_same_bits(two):
    folder = two.room / "killed features"
    killed_again_and_again(folder, (1, 2), two.steps, seeds=(2, 3, 4))
    assert_same_files(folder, two.room / "features")


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(4, 1), (2, 2)])
def test_one_of_four_killed_at_random_steps_ends_at_the_same_bits(two, shape):
    """And four take over what two have begun, and are as good as one."""
    whole, killed, taken = (
        two.room / f"{name} of {shape}" for name in ("whole", "killed", "taken")
    )
    shutil.copytree(two.room / "features", taken)
    two.drop_newest(taken)
    tasks = [
        {"shape": shape, "steps": two.steps, "output": folder, "model": f"{folder}.safetensors"}
        for folder in (whole, taken)
    ]
    reports = several.run(4, *tasks)
    assert [report[0]["resumed_from"] for report in reports] == [0, 32]
    for folder in (whole, taken):
        assert_close(two.alone.weights, sae.load(f"{folder}.safetensors").weights)
    killed_again_and_again(killed, shape, two.steps, seeds=(5, 6, 7))
    assert_same_files(killed, whole)


# the command in several processes


class Processes:
    """Several processes of `jaxtrelu sae train` on the loopback."""

    def __init__(self, room):
        self.room = room
        np.save(room / "x.npy", X)

    def start(self, count, output, *options, steps=400):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        command = [
            sys.executable, "-m", "jaxtrelu", "sae", "train", str(self.room / "x.npy"),
            "--features", "128", "--l0", "3", "--steps", str(steps), "--batch-size", "64",
            "--checkpoint-every", "20", "--output", str(self.room / output),
        ]  # fmt: skip
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "1",
        }  # fmt: skip
        together = ["--coordinator", f"localhost:{port}", "--processes", str(count)]
        started = []
        for number in range(count):
            more = [*together, "--process", str(number), *options] if count > 1 else []
            started.append(
                subprocess.Popen(
                    [*command, *more], env=environment, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
        return started

    def run(self, *args, **options):
        outcomes = []
        for process in self.start(*args, **options):
            out, said = process.communicate(timeout=400)
            outcomes.append((process.returncode, out, said))
        return outcomes

    def weights(self, output):
        return sae.load(self.room / output).weights


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    return Processes(tmp_path_factory.mktemp("processes"))


def assert_close(one, other):
    for name, a, b in zip(sae.Weights._fields, one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "options"),
    [(2, []), (2, ["--feature-devices", "2"]), (4, ["--feature-devices", "2"])],
)
def test_processes_give_the_result_of_one(processes, count, options):
    ((status, _, said),) = processes.run(1, "alone", steps=60)
    assert status == 0, said
    name = f"of {count} {' '.join(options)}"
    outcomes = processes.run(count, name, *options, steps=60)
    assert [status for status, _, _ in outcomes] == [0] * count, outcomes
    assert_close(processes.weights("alone"), processes.weights(name))
    # The first one alone writes and prints (but for what Gloo says of its connections).
    assert ["sae.safetensors" in out for _, out, _ in outcomes] == [True] + [False] * (count - 1)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])  # all are joined through the first one
def test_who_is_left_says_so_in_one_line_and_ends(processes, victim):
    started = processes.start(2, f"left by {victim}", steps=4000)
    left, folder = started[1 - victim], processes.room / f"left by {victim}" / "checkpoints"
    while left.poll() is None and not (folder.exists() and steps_of(folder)):
        time.sleep(0.05)
    started[victim].kill()
    said = left.communicate(timeout=400)[1]
    started[victim].communicate()
    assert left.returncode == 2, said
    (line,) = (line for line in said.splitlines() if line.startswith("jaxtrelu:"))
    assert "as it does when one of" in line and "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_waiting_for_the_others_can_be_ended(processes, number):
    (alone, other) = processes.start(2, "waiting")
    other.kill()
    other.communicate()
    while alone.poll() is None and not is_listening(alone.args):
        time.sleep(0.05)
    alone.send_signal(number)
    said = alone.communicate(timeout=60)[1]
    status, word = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}[
        number
    ]
    assert (alone.returncode, said) == (status, f"jaxtrelu: {word}\n")


def is_listening(command):
    host, port = command[command.index("--coordinator") + 1].split(":")
    with socket.socket() as attempt:
        return attempt.connect_ex((host, int(port))) == 0


@pytest.mark.parametrize("number", [0, 1])
def test_others_that_are_gone_at_the_end_cost_no_results(monkeypatch, number):
    """The first process has written all; another one cannot know."""

    def refused():
        raise jax.errors.JaxRuntimeError("INTERNAL: Shutdown barrier has failed.")

    def end(why, status):
        raise SystemExit(f"{status}, {why}")

    aborts = []
    monkeypatch.setattr(this_process, "is_own_command_line", lambda: True)
    monkeypatch.setattr(this_process, "end", end)
    monkeypatch.setattr(this_process, "end_where_jax_aborts", lambda *given: aborts.append(given))
    monkeypatch.setattr(jax, "process_index", lambda: number)
    monkeypatch.setattr(jax.distributed, "shutdown", refused)
    with pytest.raises((SystemExit, UserError)) as raised:
        train_command._part(argparse.Namespace(coordinator="localhost:1"))
    if number == 0:
        note = "note: another process was gone before the end; the results are complete."
        assert str(raised.value) == f"0, {note}" and aborts == [(note, 0)]
    else:
        assert "Shutdown barrier has failed): start the same command" in str(raised.value)
        assert not aborts
