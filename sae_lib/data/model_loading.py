"""Weights, configuration and tokenizer of a causal language model, checked before they are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from sae_lib.data import model_files
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import json_key
from sae_lib.util.memory import require_memory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from sae_lib.data.config import ModelConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LoadedModel(NamedTuple):
    """What `load_model` gives: on the asked device, in the asked dtype."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: str


def load_model(config: ModelConfig, *, whole: bool) -> LoadedModel:
    """Load the model that a profile names, whole or cut after `config.layer`.

    A cut model is the base model with blocks 0 .. layer: the weights of later blocks and of the head are
    never read. Everything that can be refused from the configuration alone is refused before the weights are
    fetched.

    Raises:
        ArtifactError: see `LanguageModel.load`.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    device, dtype = device_of(config), _dtype(config.dtype)
    if device != "cpu" and dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported():
        raise ArtifactError("model.dtype: bfloat16 is not available on this GPU; choose float32 or float16")
    auto = AutoModelForCausalLM if whole else AutoModel
    folder = model_files.model_folder(config.name, config.revision, weights=False)
    kept = _configuration(folder, config, whole=whole)
    _check_memory(auto, kept, config, device)
    folder = model_files.model_folder(config.name, config.revision, weights=True)
    with _quiet_transformers():
        model = _load_weights(auto, folder, kept, dtype, config.name)
        tokenizer = _load_tokenizer(folder, config.name)
    return LoadedModel(model.to(torch.device(device)), tokenizer, _identity(folder, config))


def model_identity(config: ModelConfig) -> str:
    """The `identity` that the model of a profile has when it is loaded, without loading it.

    Raises:
        ArtifactError: as `model_files.model_folder` does.
    """
    return _identity(model_files.model_folder(config.name, config.revision, weights=True), config)


def _identity(folder: Path, config: ModelConfig) -> str:
    source = model_files.content(folder, config.name)
    return json_key({"source": source, "layer": config.layer, "dtype": config.dtype})


def _configuration(folder: Path, config: ModelConfig, *, whole: bool) -> PreTrainedConfig:
    """The model's configuration, for the blocks that are kept."""
    from transformers import AutoConfig

    try:
        loaded = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise ArtifactError(
            f"model.name: transformers does not know the model in {config.name} ({_line(error)})"
        ) from error
    if getattr(loaded, "quantization_config", None):
        raise ArtifactError(
            f"model.dtype: the weights of {config.name} are quantised, so {config.dtype} is not available; "
            "name the original model"
        )
    text = loaded.get_text_config()
    depth = text.num_hidden_layers
    config.check_layer(depth)
    if not whole:
        text.num_hidden_layers = config.layer + 1
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[: config.layer + 1]
    return loaded


def _check_memory(auto: Any, kept: PreTrainedConfig, config: ModelConfig, device: str) -> None:
    """Count the parameters on the meta device, which holds none, and compare with what is free."""
    with torch.device("meta"), _quiet_transformers():
        parameters = sum(parameter.numel() for parameter in auto.from_config(kept).parameters())
    needed = parameters * DTYPES[config.dtype].itemsize
    what = f"model.name: {config.name} ({parameters / 1e6:.3g} M parameters read, {config.dtype})"
    for place in dict.fromkeys(("cpu", device)):  # weights pass through CPU memory on their way to a GPU
        require_memory(what, needed, place, "choose a smaller model.dtype or model, or a machine with more memory")


def _load_weights(auto: Any, folder: Path, kept: PreTrainedConfig, dtype: torch.dtype, name: str) -> Any:
    from safetensors import SafetensorError

    try:
        model, report = auto.from_pretrained(
            folder,
            config=kept,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise ArtifactError(
            f"model.name: the weights of {name} cannot be read ({_line(error)}); fetch them again"
        ) from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ArtifactError(f"model.name: the weights of {name} lack {len(missing)} tensors, the first is {missing[0]}")
    return model


def _load_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises what its parsers raise
        raise ArtifactError(f"model.name: the tokenizer of {name} cannot be read ({_line(error)})") from error


def device_of(config: ModelConfig) -> str:
    """The device that `model.device` stands for. Raises ArtifactError when this machine does not have it."""
    name = config.device
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not torch.cuda.is_available():
        raise ArtifactError(f"model.device: {name} is not available on this machine; choose auto or cpu")
    return name


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ArtifactError(f"model.dtype: {name} is not known; choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def _quiet_transformers() -> Iterator[None]:
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
