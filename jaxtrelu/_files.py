"""Output files: checked before the long work starts, and written whole or not at all."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


class OutputError(Exception):
    """An output cannot be written. The message is one sentence that says where and why."""


def check_folder(folder: str | os.PathLike) -> Path:
    """Returns `folder` as a path if files could be written there, without creating it.

    Raises:
        OutputError: if it is not a folder, or if it (or, where it does not exist yet, its nearest
            existing parent) refuses a file.
    """
    if not os.fspath(folder):
        raise OutputError("cannot write to '': the name of a folder is needed.")
    path = Path(folder).expanduser()
    try:
        nearest = path
        while not nearest.exists():
            if nearest.is_symlink():
                raise OutputError(f"cannot write to {path}: {nearest} is a link to nothing.")
            nearest = nearest.parent
        if not nearest.is_dir():
            raise OutputError(f"cannot write to {path}: {nearest} is a file, not a folder.")
        # Asking for a real file: permission bits do not tell about read-only file systems.
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise OutputError(f"cannot write to {path}: {_reason(error)}.") from None
    return path


def check_file(file: str | os.PathLike) -> Path:
    """Returns `file` as a path if it could be written (an existing file would be replaced).

    Raises:
        OutputError: if it is a folder, or if its folder refuses a file.
    """
    path = Path(file).expanduser()
    if not path.name:
        raise OutputError(f"cannot write to {str(file)!r}: a file name is needed.")
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise OutputError(f"cannot write to {path}: {_reason(error)}.") from None
    if is_folder:
        raise OutputError(f"cannot write to {path}: it is a folder; pass a file name.")
    check_folder(path.parent)
    _check_ordinary(path)
    return path


def write_files(folder: Path, contents: Mapping[str, bytes | str]) -> list[Path]:
    """Writes every file of `contents` (name: content) into `folder`; on failure, none of them.

    All of them are first written under temporary names, and only then put in place, so a full
    disk or an interrupt leaves the files of an earlier run as they were.

    Returns:
        The paths, in the order of `contents`.

    Raises:
        OutputError: if the operating system refuses.
    """
    pending: dict[Path, Path] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            target = folder / name
            target.parent.mkdir(exist_ok=True)  # a name may lie in a folder of its own
            part = target.parent / f".{target.name}.{os.getpid()}.part"
            pending[part] = target
            data = content.encode("utf-8") if isinstance(content, str) else content
            with open(part, "xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        for target in pending.values():
            _check_ordinary(target)
        for part, target in pending.items():
            os.replace(part, target)
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {_reason(error)}.") from None
    finally:
        for part in pending:
            part.unlink(missing_ok=True)
    return list(pending.values())


def write_file(path: Path, content: bytes | str) -> Path:
    """Writes one file, whole or not at all. See `write_files`."""
    return write_files(path.parent, {path.name: content})[0]


def _check_ordinary(path: Path) -> None:
    """Raises OutputError for what is there and no file, such as a device, which would be lost."""
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a device or a pipe, which would be replaced"
        raise OutputError(f"cannot write to {path}: it is {what}.")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
