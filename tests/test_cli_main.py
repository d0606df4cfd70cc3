"""The command line as a whole: help, errors, files, and what is imported when."""

import json
import os
import subprocess
import sys

import pytest

from jaxtrelu.__main__ import main
from jaxtrelu.cli import errors, files, parser, process


def refused(capsys, *argv):
    """Runs a command that must be refused, and returns the sentence that says why."""
    assert main([str(word) for word in argv]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("jaxtrelu: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in out + err
    return err


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in parser.COMMANDS:
        assert f"\n    {command} " in out
    assert process.SWITCH in out


@pytest.mark.parametrize("command", parser.COMMANDS)
def test_help_of_each_command(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"usage: jaxtrelu {command}" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("jaxtrelu ")


def test_unknown_command_and_option(capsys):
    assert "'comapre'" in refused(capsys, "comapre")
    assert "--colour" in refused(capsys, "plot", "--colour", "red")
    assert "COMMAND" in refused(capsys)


def test_help_and_info_load_nothing_heavy():
    code = """
import json, sys
from jaxtrelu.__main__ import main
assert main(["--help"]) == 0 and main(["compare", "--help"]) == 0 and main(["info"]) == 0
heavy = {"flax", "optax", "orbax", "matplotlib", "rich", "sklearn"}
print(json.dumps(sorted(heavy & set(sys.modules))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_a_missing_extra_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for module in [name for name in sys.modules if name.startswith("jaxtrelu.cli.plot_")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, "jaxtrelu.cli.style", raising=False)
    message = refused(capsys, "plot", "--output", tmp_path / "plot.png")
    assert "matplotlib" in message
    assert "pip install 'jaxtrelu[cli]'" in message


def test_other_missing_modules_are_defects():
    assert errors.missing_extra(ModuleNotFoundError(name="jaxtrelu.cli.nothing")) is None
    assert errors.missing_extra(ModuleNotFoundError("no name")) is None


@pytest.mark.parametrize(("raised", "status"), [(KeyboardInterrupt, 130), (errors.UserError, 2)])
def test_exit_status(raised, status, monkeypatch, capsys):
    def stop(args):
        raise raised("stopped")

    monkeypatch.setattr(parser.load("info"), "run", stop)
    assert main(["info"]) == status
    assert capsys.readouterr().err.count("\n") == 1


def test_a_defect_is_not_hidden(monkeypatch):
    def fail(args):
        raise ZeroDivisionError

    monkeypatch.setattr(parser.load("info"), "run", fail)
    with pytest.raises(ZeroDivisionError):
        main(["info"])


def test_a_closed_pipe_is_no_error():
    command = [sys.executable, "-m", "jaxtrelu", "info"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.close()
        assert b"Traceback" not in child.stderr.read()
        assert child.wait() in (0, 141)


def test_info_reports_versions_devices_and_lowerings(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert ["jax", __import__("jax").__version__] in lines
    for platform in ("cpu", "cuda", "rocm", "tpu"):
        assert any(line[0] == platform and len(line) > 1 for line in lines), platform


# Files: whole or not at all.


def test_write_files_replaces_and_leaves_nothing_else(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    paths = files.write_files(tmp_path, {"a.txt": "new", "b.bin": b"\x00"})
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
    with pytest.raises(errors.UserError, match="no space left"):
        files.write_files(tmp_path, {"a.txt": "new", "b.txt": "new"})
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_written_files_have_ordinary_permissions(tmp_path):
    (tmp_path / "plain").touch()
    path = files.write_file(tmp_path / "written", "x")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_checks_create_nothing(tmp_path):
    assert files.check_folder(tmp_path / "new" / "deeper") == tmp_path / "new" / "deeper"
    assert files.check_file(tmp_path / "new" / "x.png") == tmp_path / "new" / "x.png"
    assert list(tmp_path.iterdir()) == []


def test_unwritable_places(tmp_path):
    (tmp_path / "file").touch()
    for bad in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(errors.UserError, match="cannot write"):
            files.check_folder(bad)
    with pytest.raises(errors.UserError, match="the name of a folder is needed"):
        files.check_folder("")
    with pytest.raises(errors.UserError, match="it is a folder"):
        files.check_file(tmp_path)
    with pytest.raises(errors.UserError, match="cannot write"):
        files.check_file(tmp_path / ("x" * 300) / "y" / ("z" * 300))
    if sys.platform == "linux":
        with pytest.raises(errors.UserError, match="cannot write"):
            files.check_folder("/proc/here")


# Huge pages.


def test_huge_pages_are_asked_for_once(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(process.platform, "libc_ver", lambda: ("glibc", "2.39"))
    asked = process.huge_page_environment({"HOME": "/"})
    assert asked == {"HOME": "/", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    assert process.huge_page_environment(asked) is None


def test_huge_pages_keep_what_the_user_set(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(process.platform, "libc_ver", lambda: ("glibc", "2.39"))
    other = process.huge_page_environment({"GLIBC_TUNABLES": "glibc.malloc.check=1"})
    assert other["GLIBC_TUNABLES"] == "glibc.malloc.check=1:glibc.malloc.hugetlb=1"
    assert process.huge_page_environment({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}) is None
    assert process.huge_page_environment({process.SWITCH: "0"}) is None


def test_huge_pages_need_glibc(monkeypatch):
    monkeypatch.setattr(process.platform, "libc_ver", lambda: ("", ""))
    assert process.huge_page_environment({}) is None


def test_only_its_own_process_is_restarted(monkeypatch):
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("restarted somebody else's process"))
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest"])
    process.restart_with_huge_pages()


def test_its_own_process_is_restarted_with_the_same_arguments(monkeypatch):
    seen = []
    monkeypatch.setattr(os, "execve", lambda *given: seen.append(given))
    monkeypatch.setattr(process, "huge_page_environment", lambda _: {"GLIBC_TUNABLES": "x"})
    monkeypatch.setattr(sys, "argv", ["/usr/bin/jaxtrelu", "compare"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "/usr/bin/jaxtrelu", "compare"])
    process.restart_with_huge_pages()
    assert seen == [
        (
            sys.executable,
            [sys.executable, "/usr/bin/jaxtrelu", "compare"],
            {"GLIBC_TUNABLES": "x"},
        )
    ]


def test_the_flag_against_wrong_sums(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/nowhere")
    process.avoid_wrong_sums("0.12.0")
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=/nowhere"
    process.avoid_wrong_sums("0.10.2")
    process.avoid_wrong_sums("0.10.2")
    expected = "--xla_dump_to=/nowhere --xla_cpu_experimental_ynn_fusion_type="
    assert os.environ["XLA_FLAGS"] == expected
