"""How much of the disk a folder takes, and how much is free where it lies."""

import shutil
from pathlib import Path


def used_bytes(folder: Path, pattern: str = "*") -> int:
    """Bytes of the files in a folder, and in the folders in it, whose names match; 0 when it is not there."""
    return sum(file.stat().st_size for file in folder.rglob(pattern) if file.is_file())


def nearest_folder(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return folder if folder.is_dir() else nearest_folder(folder.parent)


def free_bytes(folder: Path) -> int:
    """Bytes free where a folder is, or would be made."""
    return shutil.disk_usage(nearest_folder(folder)).free
