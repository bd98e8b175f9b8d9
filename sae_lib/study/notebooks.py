"""Run one notebook with papermill, so that its executed copy is whole or absent and a failure is one line.

The copy grows as `<name>.running.ipynb`. It takes its final name when the last cell has ended, or is moved to
the folder of failed runs for the reader to open.
"""

import logging
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import explain_writing, make_folder
from sae_lib.util.paths import PROFILE_VARIABLE, ROOT, shown

TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def run_notebook(source: Path, folder: Path, failed: Path, log: Path, parameters: Mapping[str, Any]) -> None:
    """Run `source` with `parameters`; its executed copy goes to `folder`, or to `failed` when a cell fails, the kernel
    dies or the run is interrupted. What it prints goes to `log`, and to a terminal where somebody watches.

    Raises ArtifactError: the notebook stopped: in which cell, with what error, and the file to open.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    running, final, failed_copy = folder / f"{source.stem}.running.ipynb", folder / source.name, failed / source.name
    for needed in (folder, log.parent):
        make_folder(needed)
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what matters of its messages is told in one line
    with explain_writing(folder), open(log, "w", encoding="utf-8") as stream:
        printed = _Printed(stream)
        try:
            papermill.execute_notebook(
                source, running, parameters=dict(parameters), kernel_name="python3", cwd=ROOT, progress_bar=False,
                stdout_file=printed, stderr_file=printed, kernel_manager_class=_kernels(stream),
                coalesce_streams=True,  # many updates of one progress bar become its last state
            )  # fmt: skip
        except BaseException as error:
            with suppress(FileNotFoundError):
                make_folder(failed)
                os.replace(running, failed_copy)
            # The event loop that was broken off would tell of each task that it did not end.
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            if isinstance(error, papermill.PapermillExecutionError):
                told = (TERMINAL_CODES.sub("", error.evalue).strip().splitlines() or ["no message"])[0].rstrip(" .;")
                why = f"in cell [{error.exec_count}]: {error.ename}: {told}"
            elif isinstance(error, DeadKernelError):
                why = "because its kernel died (most often: out of memory, see `make plan`)"
            else:
                raise
            raise ArtifactError(f"{source.stem} stopped {why}; open {shown(failed_copy)}") from None
    os.replace(running, final)
    failed_copy.unlink(missing_ok=True)


class _Printed:
    def __init__(self, log: IO[str]) -> None:
        self._places = [log, *([sys.stderr] if sys.stderr.isatty() else [])]

    def write(self, text: str) -> None:
        for place in self._places:
            place.write(text)

    def flush(self) -> None:
        for place in self._places:
            place.flush()


def _kernels(log: IO[str]) -> Any:
    """A manager of kernels whose own complaints go to the log."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class Manager(AsyncKernelManager):
        # This interpreter, whatever kernel of the same name is installed for the user or named by JUPYTER_PATH.
        kernel_spec = KernelSpec(**get_kernel_dict())

        async def _async_start_kernel(self, **options: Any) -> None:
            environment = dict(options.pop("env", None) or os.environ)
            environment.pop(PROFILE_VARIABLE, None)  # the profile is the parameter
            await super()._async_start_kernel(stdout=log, stderr=log, env=environment, **options)

        start_kernel = _async_start_kernel

    return Manager
