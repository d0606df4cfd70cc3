"""A few of the bad days of faults/run.py, which tries many: `make faults`."""

import json
import signal

import pytest
from faults import run

pytestmark = pytest.mark.slow
FAULTS = {
    "SIGKILL": lambda room: run.killed(room, signal.SIGKILL, 2),  # the second as it goes on
    "SIGTERM": lambda room: run.killed(room, signal.SIGTERM, 1),
    "SIGINT": lambda room: run.killed(room, signal.SIGINT, 1),
    "SIGKILL to one of two": lambda room: run.one_of_two(room, 1),
    "full disk": lambda room: run.full_disk(room, 1),
    "flipped byte": lambda room: run.flipped_bytes(room, 2),  # in the newest, and in the others
    "flipped byte of a model": lambda room: run.flipped_models(room, 1),
    "two in one folder": lambda room: run.two_at_once(room, 1),
    "clock, locale, names": run.odd_surroundings,
}


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    return run.Room(tmp_path_factory.mktemp("faults"), seed=1)


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost(room, fault):
    tally = FAULTS[fault](room)
    assert tally.tried and not tally.lost, "\n".join(tally.lost)


def test_a_lost_checkpoint_would_be_noticed(room):
    """The controls: a damaged file under its own name, another result, a traceback."""
    output = room.fresh("damaged")
    (output / "checkpoints").mkdir(parents=True)
    (output / "checkpoints" / "step-0000000005.safetensors").write_bytes(b"not a checkpoint")
    assert run.checkpoints(output) == {5: False}
    assert run.faults_of("Traceback (most recent call last):\n ValueError: x")
    assert run.faults_of("", lines=1) and not run.faults_of("jaxtrelu: terminated\n", lines=1)
    room.expected["history.csv"] += b"\n"
    try:
        wrong = run.completed(room, output)
    finally:
        room.expected["history.csv"] = room.expected["history.csv"][:-1]
    assert wrong == ["another result: history.csv"]


def test_a_kind_that_is_tried_again_takes_the_place_of_what_it_was(tmp_path):
    path = tmp_path / "faults.json"
    for kind, command in (("kill", "one"), ("disk", "two"), ("kill", "three")):
        tally = run.Tally(kind, note=command)
        tally.trial(*(["another result"] if command == "two" else []))
        run.write_json(path, tally, {"command": command})
    found = json.loads(path.read_text())
    assert found["environment"] == {"command": "three"}
    rows = [(row["shape"], row["tried"], row["lost"], row["command"]) for row in found["rows"]]
    assert rows == [("kill", 1, 0, "three"), ("disk", 1, 1, "two")]
