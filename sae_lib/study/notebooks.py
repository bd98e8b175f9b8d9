"""Run one notebook with papermill, so that its executed copy is whole or absent and a failure is one line.

The copy grows as `<name>.running.ipynb`. It takes its final name when the last cell has ended, or is moved to
the folder of failed runs for the reader to open.
"""

import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from sae_lib.report.figures.live import HEADLESS_VARIABLE
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import explain_full_disk, make_folder
from sae_lib.util.paths import PROFILE_VARIABLE, ROOT, shown

KERNEL = "python3"
HEADLESS_UPDATE_S = 60.0
TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class NotebookError(ArtifactError):
    """A notebook stopped: one line with the notebook, the cell, the error and the file to open."""


def run_notebook(
    source: Path, folder: Path, failed: Path, log: Path, parameters: Mapping[str, Any], label: str = ""
) -> Path:
    """Run `source` and keep its executed copy.

    Args:
        source: the notebook, left as it is.
        folder: where the finished copy goes, under the same name.
        failed: where the copy goes when a cell fails, the kernel dies or the run is interrupted.
        log: file that receives what the notebook prints, progress bars in their last state.
        parameters: values for the cell tagged `parameters`; each must be defined there.
        label: begins each progress line.

    Returns:
        The finished copy.

    Raises:
        ArtifactError: a parameter that the notebook does not have.
        NotebookError: the notebook stopped.
        KeyboardInterrupt: passed on, after the copy was moved to `failed`.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    check_parameters(source, parameters)
    running, final = folder / f"{source.stem}.running.ipynb", folder / source.name
    for needed in (folder, log.parent):
        make_folder(needed)
    failed_copy = failed / source.name

    def stopped(cell: str, error: str) -> NotebookError:
        _move(running, failed_copy)
        return NotebookError(f"{source.stem} stopped in cell {cell}: {error}; open {shown(failed_copy)}")

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what matters of its messages is told in one line
    with explain_full_disk(folder), open(log, "w", encoding="utf-8") as stream:
        output = NotebookOutput(stream, label)
        try:
            papermill.execute_notebook(
                source,
                running,
                parameters=dict(parameters),
                kernel_name=KERNEL,
                cwd=ROOT,
                progress_bar=False,
                stdout_file=output,
                stderr_file=output,
                # Many updates of one progress bar become its last state.
                coalesce_streams=True,
                kernel_manager_class=_kernels(stream),
            )
        except papermill.PapermillExecutionError as error:
            cell = f"[{error.exec_count}] ({_failing_line(error)[:60]})"
            raise stopped(cell, f"{error.ename}: {_first_line(error.evalue)}") from None
        except DeadKernelError:
            raise stopped(
                _last_started(running), "the kernel died (most often: out of memory, see `make plan`)"
            ) from None
        except BaseException:
            _move(running, failed_copy)
            # The event loop that was broken off would tell of each task that it did not end.
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            raise
        finally:
            output.close()
    os.replace(running, final)
    failed_copy.unlink(missing_ok=True)
    return final


def check_parameters(source: Path, parameters: Mapping[str, Any]) -> None:
    """Refuse parameters that the notebook's cell tagged `parameters` does not define.

    Raises:
        ArtifactError: names the unknown parameter and those there are.
    """
    import papermill

    known = papermill.inspect_notebook(source)
    for name in parameters:
        if name not in known:
            there = ", ".join(known) or "none (no cell is tagged 'parameters')"
            raise ArtifactError(f"{shown(source)} has no parameter '{name}'; it has: {there}")


class NotebookOutput:
    """What a running notebook prints: all lines to a log, the latest one to the terminal.

    A progress bar rewrites its line several times a second. The log gets the state that it ends with; the terminal
    shows the latest text in place, or a line a minute when nobody is watching.
    """

    def __init__(self, log: IO[str], label: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._label = label
        self._clock = clock
        self._started = clock()
        self._line = ""
        self._shown = self._started
        self._live = sys.stderr.isatty()

    def write(self, text: str) -> int:
        """Take the next piece of output, which may end anywhere in a line."""
        for piece in re.split(r"([\r\n])", TERMINAL_CODES.sub("", text)):
            if piece == "\n":
                self._record(self._line)
                self._line = ""
            elif piece == "\r":
                self._line = ""
            elif piece:
                self._line += piece
                self._show()
        return len(text)

    def flush(self) -> None:
        self._log.flush()

    def close(self) -> None:
        """Write what is left and clear the live line."""
        self._record(self._line)
        self.flush()
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _record(self, line: str) -> None:
        if line.strip():
            self._log.write(line.rstrip() + "\n")

    def _show(self) -> None:
        line, now = self._line.strip(), self._clock()
        if not line:
            return
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{f'{self._label} {line}'[:width]}", end="", file=sys.stderr, flush=True)
        elif now - self._shown >= HEADLESS_UPDATE_S:
            print(f"{self._label} {duration(now - self._started)} so far: {line}", flush=True)
            self._shown = now


def duration(seconds: float) -> str:
    """Seconds as people read them.

    >>> duration(4), duration(95), duration(7500)
    ('4 s', '1 min 35 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _kernels(log: IO[str]) -> Any:
    """A manager of kernels whose own complaints go to the log, and which know that nobody looks on."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class Manager(AsyncKernelManager):
        # This interpreter, whatever kernel of the same name is installed for the user or named by JUPYTER_PATH.
        kernel_spec = KernelSpec(**get_kernel_dict())

        async def _async_start_kernel(self, **options: Any) -> None:
            environment = {**(options.pop("env", None) or os.environ), HEADLESS_VARIABLE: "1"}
            environment.pop(PROFILE_VARIABLE, None)  # the profile is the parameter
            await super()._async_start_kernel(stdout=log, stderr=log, env=environment, **options)

        start_kernel = _async_start_kernel

    return Manager


def _last_started(executed: Path) -> str:
    """The execution number of the last cell that started, for errors that do not say where they happened."""
    import nbformat

    try:
        cells = nbformat.read(executed, as_version=4).cells
    except (OSError, ValueError):
        return "[?]"
    number = 0
    for cell in cells:
        if cell.cell_type == "code" and cell.metadata.get("papermill", {}).get("start_time"):
            number += 1
    return f"[{number}]"


def _failing_line(error: Any) -> str:
    """The line of a cell that its traceback points at; the cell's first where it points at none, as for bad syntax."""
    told = TERMINAL_CODES.sub("", "\n".join(error.traceback))
    pointed = re.search(r"^Cell In\[.*?^-+> \d+ (.*?)$", told, flags=re.MULTILINE | re.DOTALL)
    return _first_line(pointed[1] if pointed else error.source)


def _first_line(text: str) -> str:
    lines = TERMINAL_CODES.sub("", text).strip().splitlines()
    return lines[0].rstrip(" .;") if lines else "no message"


def _move(source: Path, target: Path) -> None:
    with suppress(FileNotFoundError):
        make_folder(target.parent)
        os.replace(source, target)
