"""Does this Python have the packages that the lock file names?

Runs before anything is installed, so it uses the standard library alone:

    python -m sae_lib environment check    # exit code 0 when every pin is there, else 1 and what differs
    python -m sae_lib environment link     # makes `import sae_lib` work from any folder
"""

import importlib.metadata
import os
import re
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from sae_lib.util.paths import LOCK_FILE, ROOT

PIN = re.compile(r"([A-Za-z0-9._-]+)==([^\s#;]+)")


def canonical(name: str) -> str:
    """A distribution's name as package indexes compare it: `ast_serialize` and `ast-serialize` are one."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(lines: Iterable[str]) -> dict[str, str]:
    """Canonical name -> version for each `name==version` line; comments and list dashes are passed over."""
    found = (PIN.match(line.strip().removeprefix("- ")) for line in lines)
    return {canonical(match[1]): match[2] for match in found if match}


def locked_pins() -> dict[str, str]:
    """The pins of `requirements.lock`."""
    return read_pins(LOCK_FILE.read_text(encoding="utf-8").splitlines())


def differences() -> list[str]:
    """One line for each pinned package that is missing here or has another version; a build tag (+cpu) is none."""
    installed = {canonical(found.metadata["Name"]): found.version for found in importlib.metadata.distributions()}
    lines = []
    for name, version in locked_pins().items():
        here = installed.get(name)
        if here is None:
            lines.append(f"{name} {version} is missing")
        elif here.partition("+")[0] != version:
            lines.append(f"{name} is {here}, the lock says {version}")
    return lines


def link() -> Path:
    """Put the repository on this environment's import path, so that kernels in any folder find `sae_lib`, by a path
    file: no build tool, no network, and relative, so that an environment inside the repository moves with it."""
    site_packages = Path(sysconfig.get_path("purelib")).resolve()
    file = site_packages / "sae_lib_checkout.pth"
    text = os.path.relpath(ROOT, site_packages) + "\n"
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        file.write_text(text, encoding="utf-8")
    return file
