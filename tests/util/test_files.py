"""Files are whole or absent, whatever happens while they are written."""

import errno
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import (
    FolderLock,
    atomic_folder,
    atomic_write,
    check_writable,
    file_sha256,
    json_key,
    read_json,
    remove_unfinished,
    write_json,
)
from sae_lib.util.paths import COMMITTED, ROOT

FIGURES = COMMITTED["pocket"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_write_makes_the_file_and_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    with atomic_write(path) as file:
        file.write("lambda λ\n")
        assert not path.exists()
    assert path.read_bytes() == "lambda λ\n".encode()
    assert names(path.parent) == ["b.txt"]


def test_atomic_write_keeps_the_old_file_on_an_error(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path, "wb") as file:
        file.write(b"half of the new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["weights.bin"]


def test_permissions_are_the_users_and_the_process_umask_is_never_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread that makes a file meanwhile would make it with no mask at all."""
    before = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", lambda _: pytest.fail("the mask is changed"))
        with atomic_write(tmp_path / "a") as file:
            file.write("text")
        with atomic_folder(tmp_path / "b") as folder:
            (folder / "c").touch()
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o750


def test_atomic_write_refuses_other_modes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'a'"), atomic_write(tmp_path / "log", "a"):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, r"disk full while writing into .*: \d+ MiB free; .*set SAE_LIB_OUTPUT to .* larger disk"),
        (errno.EDQUOT, r"disk full while writing into .*: \d+ MiB free; .*set SAE_LIB_OUTPUT to .* larger disk"),
        (errno.EFBIG, "a file is too large for .*; raise .*ulimit -f.*OUTPUT to"),
    ],
)
def test_full_disk_is_one_line_and_leaves_nothing(output_folder: Path, number: int, says: str) -> None:
    with (
        pytest.raises(ArtifactError, match=f"^{says}") as caught,
        atomic_write(output_folder / "shard.npy", "wb") as file,
    ):
        file.write(b"x" * 1000)
        raise OSError(number, os.strerror(number))
    assert names(output_folder) == [] and str(output_folder) in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_full_disk_as_the_kernel_reports_it(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="disk full"), atomic_write(tmp_path / "shard.npy", "wb") as file:
        device = os.open("/dev/full", os.O_WRONLY)
        os.dup2(device, file.fileno())
        os.close(device)
        file.write(b"x")
    assert names(tmp_path) == []


def test_other_errors_of_the_system_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), atomic_write(tmp_path / "a"):
        raise PermissionError(errno.EACCES, "no")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_takes_no_file_is_named(
    tmp_path: Path, output_folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The advice is to change what named the folder: SAE_LIB_OUTPUT, or else an option."""
    output_folder.mkdir()

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "mkdir", refuse)
    places = {output_folder: "set SAE_LIB_OUTPUT to", tmp_path: "name", FIGURES: "set SAE_LIB_OUTPUT to"}
    for place, fix in places.items():
        says = rf"^cannot write into {place} \({os.strerror(number)}\); {fix} a folder of yours$"
        with pytest.raises(ArtifactError, match=says), atomic_write(place / "a"):
            pass
        with pytest.raises(ArtifactError, match=says):
            check_writable(place)
        with pytest.raises(ArtifactError, match=says), atomic_folder(place / "a"):
            pass
    assert names(output_folder) == []


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    (tmp_path / "keys.json").mkdir()
    says = r"cannot write into {} \({}\); remove what has that name, or name a folder of yours"
    with pytest.raises(ArtifactError, match=says.format(tmp_path / "logs", "File exists")):
        write_json(tmp_path / "logs" / "a.json", 1)
    with pytest.raises(ArtifactError, match=says.format(tmp_path / "keys.json", "Is a directory")):
        write_json(tmp_path / "keys.json", 1)
    with pytest.raises(ArtifactError, match=says.format(tmp_path / "logs", "File exists")):
        FolderLock(tmp_path / "logs").__enter__()
    assert names(tmp_path) == ["keys.json", "logs"]


def test_what_another_run_may_be_writing_is_left(tmp_path: Path) -> None:
    for name in (".new.tmp", ".old.tmp"):
        (tmp_path / name).touch()
    os.utime(tmp_path / ".old.tmp", (0, 0))
    remove_unfinished(tmp_path, untouched_s=3600)
    assert names(tmp_path) == [".new.tmp"]
    remove_unfinished(tmp_path)
    assert names(tmp_path) == []


FULL_DISK = """
    import errno, io, os, sys
    from pathlib import Path

    import datasets
    import pandas as pd

    from sae_lib.util import files

    class Full(io.FileIO):
        def write(self, data):
            if self.tell() + len(data) > 1000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    files.os.fdopen = lambda handle, mode, **_: Full(handle, "wb")
    values = {"text": [os.urandom(50).hex() for _ in range(2000)]}
    for table in (datasets.Dataset.from_dict(values), pd.DataFrame(values)):
        try:
            files.write_parquet(Path(sys.argv[1]) / "table.parquet", table)
        except files.ArtifactError as error:
            print(error)
"""


def test_a_table_that_fills_the_disk_does_not_end_the_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [
        f"disk full while writing into {tmp_path}"
    ] * 2
    assert names(tmp_path) == []


def test_atomic_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "reference"
    for content in ("first", "second"):
        with atomic_folder(path) as folder:
            (folder / f"{content}.txt").write_text(content)
    assert names(tmp_path) == ["reference"]
    assert names(path) == ["second.txt"]


def test_atomic_folder_keeps_the_old_one_on_an_error(tmp_path: Path) -> None:
    path = tmp_path / "reference"
    with atomic_folder(path) as folder:
        (folder / "kept.txt").write_text("kept")
    with pytest.raises(ArtifactError, match="disk full"), atomic_folder(path) as folder:
        (folder / "lost.txt").write_text("lost")
        raise OSError(errno.ENOSPC, "full")
    assert names(tmp_path) == ["reference"]
    assert names(path) == ["kept.txt"]


def test_json_round_trip_is_canonical(tmp_path: Path) -> None:
    value = {"z": [1, 2.5, None], "a": {"é": "–"}}
    write_json(tmp_path / "a.json", value)
    write_json(tmp_path / "b.json", dict(reversed(value.items())))
    assert read_json(tmp_path / "a.json") == value
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_json_refuses_what_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert names(tmp_path) == []
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(ArtifactError, match=r"half\.json is not valid JSON"):
        read_json(tmp_path / "half.json")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "absent.json")


def test_keys_depend_on_content_alone(tmp_path: Path) -> None:
    assert json_key({"k": 16, "seed": 42}) == json_key({"seed": 42, "k": 16})
    assert json_key({"k": 16}) != json_key({"k": 17})
    assert json_key([1, 2]) != json_key([2, 1])
    assert json_key("é") == hashlib.sha256('"é"'.encode()).hexdigest()
    (tmp_path / "a").write_bytes(b"abc")
    # The test vector of FIPS 180-2.
    assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_second_run_on_a_folder_is_refused_with_the_first_ones_name(tmp_path: Path) -> None:
    code = """
        import sys
        from sae_lib.util.files import FolderLock
        with FolderLock(sys.argv[1]):
            print("held", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with (
            pytest.raises(ArtifactError, match=rf"in use by process {first.pid} on ") as refused,
            FolderLock(tmp_path),
        ):
            pass
        assert "\n" not in str(refused.value)
    finally:
        first.kill()
        first.communicate()
    # A killed run left its note behind, but not its lock.
    assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == first.pid
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".lock.json").exists()


def test_lock_outlives_the_folders_removal(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "output"):
        shutil.rmtree(tmp_path / "output")
    assert names(tmp_path) == []


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    """A pipe here; /dev/null is another such thing, and root may replace it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link"):
        with pytest.raises(ArtifactError, match=f"^cannot write {path}: it is a device or a pipe, .*; name a file$"):
            write_json(path, {})
    assert pipe.is_fifo() and names(tmp_path) == ["link", "pipe"]
