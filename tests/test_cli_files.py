"""Output files: checked first, and written whole or not at all."""

import os
import sys

import pytest

from jaxtrelu import _files
from jaxtrelu._files import OutputError


def test_write_files_replaces_and_leaves_nothing_else(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    paths = _files.write_files(tmp_path, {"a.txt": "new", "b.bin": b"\x00"})
    assert [path.name for path in paths] == ["a.txt", "b.bin"]
    assert (tmp_path / "a.txt").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.bin"]


def test_write_files_writes_all_or_none(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("old")
    calls = []

    def full_disk(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match="no space left"):
        _files.write_files(tmp_path, {"a.txt": "new", "b.txt": "new"})
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_written_files_have_ordinary_permissions(tmp_path):
    (tmp_path / "plain").touch()
    path = _files.write_file(tmp_path / "written", "x")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_checks_create_nothing(tmp_path):
    assert _files.check_folder(tmp_path / "new" / "deeper") == tmp_path / "new" / "deeper"
    assert _files.check_file(tmp_path / "new" / "x.png") == tmp_path / "new" / "x.png"
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for write in (_files.check_file, lambda path: _files.write_file(path, "text")):
        with pytest.raises(OutputError, match="a device or a pipe, which would be replaced"):
            write(tmp_path / "pipe")
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_unwritable_places(tmp_path):
    (tmp_path / "file").touch()
    for bad in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(OutputError, match="cannot write"):
            _files.check_folder(bad)
    with pytest.raises(OutputError, match="the name of a folder is needed"):
        _files.check_folder("")
    with pytest.raises(OutputError, match="it is a folder"):
        _files.check_file(tmp_path)
    with pytest.raises(OutputError, match="cannot write"):
        _files.check_file(tmp_path / ("x" * 300) / "y" / ("z" * 300))
    if sys.platform == "linux":
        with pytest.raises(OutputError, match="cannot write"):
            _files.check_folder("/proc/here")
