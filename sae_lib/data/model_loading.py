"""From the model named in a profile to its weights, configuration and tokenizer, checked before they are read.

"pocket" is the packaged model, an existing folder is itself, a GGUF file (also one inside a pinned wheel) is converted
once, anything else is an id on the Hugging Face hub. torch is imported only where weights are read.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lib.data import gguf, hub
from sae_lib.util.errors import ArtifactError, first_line, told_as
from sae_lib.util.files import json_key, remembered_sha256
from sae_lib.util.memory import free_memory, readable_bytes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from sae_lib.data.config import ModelConfig

ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of a weight
POCKET_FOLDER = Path(__file__).resolve().parent / "pocket_lm"
DESCRIPTION_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
)  # fmt: skip
WEIGHT_FILES = ("model*.safetensors", "model.safetensors.index.json")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def model_folder(config: ModelConfig, *, weights: bool) -> Path:
    """The local folder of a model, with or without its `weights`; fetched and converted first, where it is not there.
    Without a revision the newest commit of the hub is read, and a warning names it.

    Raises ArtifactError: no such folder or hub id, no network, gated without a token, no such revision, a cache that
    cannot be written, no config.json, no safetensors; and as `gguf.converted_wheel`.
    """
    folder = _local_folder(config) or _hub_folder(config.name, config.revision, weights=weights)
    name = folder if (folder / "source.json").is_file() else config.name  # which a conversion writes
    if not (folder / "config.json").is_file():
        raise ArtifactError(f"model.name: {name} has no config.json, so it is not a transformers model")
    if weights and not list(folder.glob(WEIGHT_FILES[0])):
        fix = "convert it with save_pretrained, other formats are not loaded"
        raise ArtifactError(f"model.name: {name} has no safetensors weights (model*.safetensors); {fix}")
    return folder


def _local_folder(config: ModelConfig) -> Path | None:
    """Of a model that is not on the hub."""
    if config.wheel is not None:
        return gguf.converted_wheel(config.wheel)
    if config.name.lower().endswith(".gguf"):
        return gguf.converted_file(config.name)
    folder = POCKET_FOLDER if config.name == "pocket" else Path(config.name).expanduser()
    if config.name == "pocket" and not (folder / "config.json").is_file():
        raise ArtifactError("model.name: the packaged model 'pocket' is not there; make it with `make pocket-lm`")
    return folder.resolve() if folder.is_dir() else None


def _hub_folder(name: str, revision: str | None, *, weights: bool) -> Path:
    if not HUB_ID.fullmatch(name):
        fix = "give an existing folder, a hub id such as google/gemma-2-2b, or pocket"
        raise ArtifactError(f"model.name: there is no folder {name}; {fix}")
    from huggingface_hub import snapshot_download

    patterns = [*DESCRIPTION_FILES, *(WEIGHT_FILES if weights else ())]
    with hub.reading(name, revision, hub.MODEL):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))  # tries several times
    if revision is None:
        fix = f"set revision to {folder.name} to read the same one again"
        warnings.warn(f"model.revision: {name} is not pinned, its newest commit is read; {fix}", stacklevel=2)
    return folder


def load_model(config: ModelConfig, *, whole: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """The model that a profile names, whole or cut after `config.layer` (the base model, whose other weights are never
    read), its tokenizer and its identity. What the configuration alone can tell is refused before weights are fetched.
    Raises as `LanguageModel.load`."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    device, dtype = device_of(config), getattr(torch, config.dtype)
    if device != "cpu" and dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported():
        raise ArtifactError("model.dtype: bfloat16 is not available on this GPU; choose float32 or float16")
    auto, folder = AutoModelForCausalLM if whole else AutoModel, model_folder(config, weights=False)
    with told_as(f"model.name: transformers does not know the model in {config.name}"):
        kept = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if getattr(kept, "quantization_config", None):
        quantised = f"the weights of {config.name} are quantised, so {config.dtype} is not available"
        raise ArtifactError(f"model.dtype: {quantised}; name the original model")
    text = kept.get_text_config()
    config.check_layer(text.num_hidden_layers)
    if not whole:
        text.num_hidden_layers = config.layer + 1
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[: config.layer + 1]
    unfit = told_as(f"model.name: config.json of {config.name} makes no language model")
    with unfit, torch.device("meta"), quiet_transformers():  # which holds no parameters, and counts them
        parameters = sum(parameter.numel() for parameter in auto.from_config(kept).parameters())
    needed = parameters * ITEM[config.dtype]
    for place in dict.fromkeys(("cpu", device)):  # weights pass through CPU memory on their way to a GPU
        if needed > (free := free_memory(place)):
            what = f"{config.name} ({parameters / 1e6:.3g} M parameters read, {config.dtype})"
            has = f"{'CPU' if place == 'cpu' else 'GPU'} memory, {readable_bytes(free)} are free"
            fix = "choose a smaller model.dtype or model, or a machine with more memory"
            raise ArtifactError(f"model.name: {what} needs {readable_bytes(needed)} of {has}: {fix}")
    folder = model_folder(config, weights=True)
    with quiet_transformers():
        model = _load_weights(auto, folder, kept, dtype, config.name)
        tokenizer = load_tokenizer(folder, config.name)
    return model.to(torch.device(device)), tokenizer, model_identity(config, folder)


def model_identity(config: ModelConfig, folder: Path | None = None) -> str:
    """The `identity` of a profile's model, whose folder may be known: of the commit of a hub snapshot, or the sha256 of
    each file of a local folder; and the layer and the type."""
    folder = folder or model_folder(config, weights=True)
    if _local_folder(config) is None:
        source = {"hub": config.name, "commit": folder.name}
    else:
        files = {path for pattern in (*DESCRIPTION_FILES, *WEIGHT_FILES) for path in folder.glob(pattern)}
        source = {path.name: remembered_sha256(path) for path in sorted(files)}
    return json_key({"source": source, "layer": config.layer, "dtype": config.dtype})


def _load_weights(auto: Any, folder: Path, kept: PreTrainedConfig, dtype: torch.dtype, name: str) -> Any:
    for file in folder.glob(WEIGHT_FILES[0]):
        file.open("rb").close()  # safetensors says of a file that may not be read that it is not there
    with told_as(f"model.name: the weights of {name} cannot be read", "; fetch them again"):
        model, report = auto.from_pretrained(
            folder, config=kept, dtype=dtype, ignore_mismatched_sizes=True, use_safetensors=True,
            trust_remote_code=False, output_loading_info=True,
        )  # fmt: skip
    if report["mismatched_keys"]:
        tensor, *shapes = min(report["mismatched_keys"])
        stored, asked = map(list, shapes)
        shape = f"{tensor} of {name} has shape {stored} where config.json asks for {asked}"
        raise ArtifactError(f"model.name: {shape}; take the configuration that belongs to the weights")
    if missing := report["missing_keys"]:
        lack = f"lack {len(missing)} tensors, the first is {min(missing)}"
        raise ArtifactError(f"model.name: the weights of {name} {lack}")
    return model


def load_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of the model in a folder. Raises ArtifactError when it cannot be read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises what its parsers raise
        fault = f"cannot be read ({first_line(error)})"
        if (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
            fault = (
                "is a SentencePiece file alone (tokenizer.model), which cannot be read here; run "
                "`pip install sentencepiece protobuf`, or put its tokenizer.json beside it"
            )
        raise ArtifactError(f"model.name: the tokenizer of {name} {fault}") from error


def device_of(config: ModelConfig) -> str:
    """The device that `model.device` stands for. Raises ArtifactError when this machine does not have it."""
    import torch

    name = config.device
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not torch.cuda.is_available():
        raise ArtifactError(f"model.device: {name} is not available on this machine; choose auto or cpu")
    return name


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """A cut model leaves weights unread on purpose: keep transformers from printing tables about it."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
