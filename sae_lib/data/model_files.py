"""From the model named in a profile to a local folder with its configuration, tokenizer and safetensors.

Three kinds of name, one kind of folder: "pocket" is the packaged model, an existing folder is itself,
anything else is an id on the Hugging Face hub, downloaded once into the hub's own cache.
"""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from pathlib import Path

from sae_lib.data import hub
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import file_sha256

POCKET_FOLDER = Path(__file__).resolve().parent / "pocket_lm"
DESCRIPTION_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
)  # fmt: skip
WEIGHT_FILES = ("model*.safetensors", "model.safetensors.index.json")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def model_folder(name: str, revision: str | None, *, weights: bool) -> Path:
    """The local folder of a model, downloaded first where `name` is a hub id.

    Args:
        name: "pocket", a folder, or a hub id such as "google/gemma-2-2b".
        revision: branch, tag or commit on the hub; a local folder has none. Without one the newest commit is read,
            and a warning names it.
        weights: also fetch the weights; without them a hub model costs a few kilobytes.

    Raises:
        ArtifactError: no such folder or hub id, no network, gated without a token, no such revision, a cache that
            cannot be written, no config.json, no safetensors.
    """
    folder = _local_folder(name) or _hub_folder(name, revision, weights=weights)
    if not (folder / "config.json").is_file():
        raise ArtifactError(f"model.name: {name} has no config.json, so it is not a transformers model")
    if weights and not list(folder.glob(WEIGHT_FILES[0])):
        raise ArtifactError(
            f"model.name: {name} has no safetensors weights (model*.safetensors); "
            "convert it with save_pretrained, other formats are not loaded"
        )
    return folder


def content(folder: Path, name: str) -> dict[str, str]:
    """What identifies a model: the commit of a hub snapshot, or the sha256 of each file of a local folder.

    The path of a local folder is no part of it, so a copy is the same model.
    """
    if _local_folder(name) is None:
        return {"hub": name, "commit": folder.name}
    files = {path for pattern in (*DESCRIPTION_FILES, *WEIGHT_FILES) for path in folder.glob(pattern)}
    return {path.name: _sha256(path, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(files)}


@lru_cache(maxsize=256)
def _sha256(path: Path, size: int, changed: int) -> str:
    """Remembered while the file does not change, so that loading a model twice hashes it once."""
    return file_sha256(path)


def _local_folder(name: str) -> Path | None:
    if name == "pocket":
        if not (POCKET_FOLDER / "config.json").is_file():
            raise ArtifactError("model.name: the packaged model 'pocket' is not there; make it with `make pocket-lm`")
        return POCKET_FOLDER
    folder = Path(name).expanduser()
    return folder.resolve() if folder.is_dir() else None


def _hub_folder(name: str, revision: str | None, *, weights: bool) -> Path:
    if not HUB_ID.fullmatch(name):
        raise ArtifactError(
            f"model.name: there is no folder {name}; "
            "give an existing folder, a hub id such as google/gemma-2-2b, or pocket"
        )
    from huggingface_hub import snapshot_download

    patterns = [*DESCRIPTION_FILES, *(WEIGHT_FILES if weights else ())]
    try:
        # Retries of its own: five for each listing, with waits that double, and five for each file, which goes on
        # where it stopped.
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:
        told = hub.explain(error, name, revision, hub.MODEL)
        if told is None:
            raise
        raise ArtifactError(told) from error
    if revision is None:
        warnings.warn(
            f"model.revision: {name} is not pinned, its newest commit is read; "
            f"set revision to {folder.name} to read the same one again",
            stacklevel=2,
        )
    return folder
