"""Files that are whole or absent (written beside, flushed, renamed), folders held by one run, room on the disk."""

import errno
import hashlib
import io
import json
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from sae_lib.util.errors import ArtifactError, first_line
from sae_lib.util.memory import readable_bytes
from sae_lib.util.paths import COMMITTED, OUTPUT_VARIABLE, output_root

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # as a disk, a quota, or the files of a disk or shell are


def used_bytes(folder: Path) -> int:
    """Bytes of the files in a folder, and in the folders in it; 0 when it is not there."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def nearest_folder(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return folder if folder.is_dir() else nearest_folder(folder.parent)


def free_bytes(folder: Path) -> int:
    """Bytes free where a folder is, or would be made."""
    return shutil.disk_usage(nearest_folder(folder)).free


def require_room(folder: Path, needed: int, what: str, fix: str = "make room") -> None:
    """Raises ArtifactError when `what` ("the weights need") asks for more bytes than are free where `folder` is."""
    free = free_bytes(folder)
    if needed > free:
        raise ArtifactError(
            f"disk: {what} {readable_bytes(needed)}, {folder} has {readable_bytes(free)} free; {fix} or set "
            f"{OUTPUT_VARIABLE} to a folder on a larger disk"
        )


@contextmanager
def explain_writing(place: Path, *, refusals: bool = False, field: str = "") -> Iterator[None]:
    """Raises ArtifactError, which names the place and the fix, for a full disk or quota and a file that is too large;
    with `refusals`, also for whatever else the system says when it makes no folder or file. It begins with `field`."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL and not refusals:
            raise
        if error.errno == errno.EFBIG:
            fault = f"a file is too large for {place}; raise the limit of this shell (ulimit -f), or "
            after = " on another disk, then run again"
        elif error.errno in FULL:
            fault = f"disk full while writing into {place}: {free_bytes(place) / 2**20:.0f} MiB free; make room or "
            after = " on a larger disk, then run again"
        else:
            fault, after = f"cannot write into {place} ({error.strerror or error}); ", ""
            fault += "remove what has that name, or " if error.errno in (errno.EEXIST, errno.EISDIR) else ""
        ours = any(place.resolve().is_relative_to(known.resolve()) for known in (output_root(), *COMMITTED.values()))
        named = f"set {OUTPUT_VARIABLE} to" if ours else "name"
        raise ArtifactError(f"{f'{field}: ' if field else ''}{fault}{named} a folder of yours{after}") from error


def check_writable(folder: Path, field: str = "") -> None:
    """Before the work for it: raises ArtifactError, which begins with `field`, the option that named the folder, when
    neither it nor the nearest above it that is there takes a file."""
    with explain_writing(folder, refusals=True, field=field):
        there = next(place for place in (folder, *folder.parents) if place.exists())
        # Some file systems refuse only the attempt. The file is gone when it is closed.
        tempfile.TemporaryFile(dir=there).close()


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where they are missing. Raises ArtifactError where it cannot be made."""
    with explain_writing(folder, refusals=True):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def atomic_write(path: Path | str, mode: str = "w") -> Iterator[IO[Any]]:
    """A file beside `path`, open in mode "w" (UTF-8) or "wb", that takes its name only when the block ends well; its
    folder is made where it is missing.

    Raises ArtifactError: the disk is full, nothing can be written there, or `path` is a device or a pipe. It is then
    what it was before, and no part is left behind.
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"mode must be 'w' or 'wb', not {mode!r}")
    path = Path(path)
    encoding, newline = (None, None) if mode == "wb" else ("utf-8", "\n")
    with _replacing(path) as name:
        with explain_writing(path.parent, refusals=True):
            # Unlike mkstemp's, as readable as any other file of the user.
            handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(handle, mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Build a folder beside `path`; when the block ends well it replaces what was there. Raises as `atomic_write`."""
    path = Path(path)
    with _replacing(path) as building:
        with explain_writing(path.parent, refusals=True):
            building.mkdir()
        yield building
        for file in building.rglob("*"):
            if file.is_file():
                _sync(file)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """What is made under the name that this gives, beside `path`, becomes `path` when the block ends well."""
    building, aside = (path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp") for _ in range(2))
    make_folder(path.parent)
    if path.is_char_device() or path.is_block_device() or path.is_fifo() or path.is_socket():
        raise ArtifactError(f"cannot write {path}: it is a device or a pipe, which a file would replace; name a file")
    with explain_writing(path.parent):
        try:
            yield building
            if building.is_dir() and path.is_dir():  # two folders cannot be exchanged in one step
                os.replace(path, aside)
            with explain_writing(path, refusals=True):
                os.replace(building, path)
            _remove(aside)
        except BaseException:
            _remove(building)
            raise
        _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)  # it may have lain in a folder that is gone by now


def remove_unfinished(folder: Path | str, untouched_s: float = 0.0) -> None:
    """Remove what killed runs were writing into `folder` and the folders in it, but for what changed in the last
    `untouched_s` seconds; with 0 nobody may be writing there."""
    for left in [*Path(folder).rglob(".*.tmp")]:
        if not untouched_s or time.time() - left.stat().st_mtime >= untouched_s:
            _remove(left)


def write_json(path: Path | str, value: object) -> None:
    """Write `value` as indented JSON with sorted keys, atomically. NaN is refused (ValueError)."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as file:
        file.write(text + "\n")


def read_json(path: Path | str) -> Any:
    """The content of a JSON file. Raises FileNotFoundError, or ArtifactError when it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of too many digits; lists in lists
        raise ArtifactError(f"{path} is not valid JSON ({first_line(error)}); remove it and run again") from error


def write_parquet(path: Path | str, table: Any, **options: Any) -> None:
    """Write a table of pandas or of datasets, atomically; `options` are those of its `to_parquet`.

    Through memory: a stream that cannot take pyarrow's bytes, as on a full disk, makes it abort the process.
    """
    buffer = io.BytesIO()
    table.to_parquet(buffer, **options)
    # The view is released here: Python 3.12.1 crashes when its garbage collection does so.
    with atomic_write(path, "wb") as file, buffer.getbuffer() as view:
        file.write(view)


def file_sha256(path: Path | str) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_sha256(path: Path) -> str:
    """`file_sha256`, read once in a process while the file does not change."""
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, changed: int) -> str:
    return file_sha256(path)


def file_state(path: Path | str) -> dict[str, Any]:
    """What `is_unaltered` knows a file by: sha256, size, and the time of its last change in nanoseconds."""
    state = os.stat(path)
    return {"sha256": file_sha256(path), "size": state.st_size, "changed": state.st_mtime_ns}


def is_unaltered(path: Path | str, known: Mapping[str, Any]) -> bool:
    """Whether a file has the content it had; read only when its size is the same and its time is not, as in a copy.
    Raises FileNotFoundError."""
    state = os.stat(path)
    same_time = state.st_mtime_ns == known["changed"]
    return state.st_size == known["size"] and (same_time or file_sha256(path) == known["sha256"])


def json_key(value: object) -> str:
    """Hexadecimal sha256 of canonical JSON: sorted keys, no spaces. NaN is refused (ValueError)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


# Folders that this process holds, or one that it was started by: children inherit the variable.
HELD = "SAE_LIB_HELD"


def is_held(folder: Path | str) -> bool:
    """Whether this process, or one that it was started by, holds a `FolderLock` of the folder."""
    return str(Path(folder).resolve()) in _held()


def _held() -> list[str]:
    return [folder for folder in os.environ.get(HELD, "").split(os.pathsep) if folder]


@contextmanager
def FolderLock(folder: Path | str) -> Iterator[None]:
    """Holds a folder for one run; a second run is refused at once (ArtifactError) and told who holds it.

    The operating system drops the lock when its process ends, however it ends; the note beside it is for the message.
    """
    folder, note = Path(folder), Path(folder) / ".lock.json"
    lock = FileLock(folder / ".lock")
    with explain_writing(folder, refusals=True):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:  # an OSError too
            holder = "another run"
            with suppress(OSError, ArtifactError, KeyError, TypeError):
                known = read_json(note)
                holder = f"process {known['pid']} on {known['host']}"
            fix = "wait for that run to end, stop it, or set SAE_LIB_OUTPUT to another folder"
            raise ArtifactError(f"{folder} is in use by {holder}; {fix}") from None
    try:
        write_json(note, {"pid": os.getpid(), "host": socket.gethostname()})
        os.environ[HELD] = os.pathsep.join([*_held(), str(folder.resolve())])
        yield
    finally:
        os.environ[HELD] = os.pathsep.join(held for held in _held() if held != str(folder.resolve()))
        note.unlink(missing_ok=True)
        lock.release()
