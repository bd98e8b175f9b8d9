"""How large a language model is and what it allows to measure, said before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sae_lib.report.names import NOT_MEASURABLE
from sae_lib.util.errors import ArtifactError, ModelLacks, first_line
from sae_lib.util.files import read_json, write_json
from sae_lib.util.paths import Paths

if TYPE_CHECKING:
    from sae_lib.data.config import ModelConfig
    from sae_lib.metrics.registry import Inputs
    from sae_lib.profiles.profile import Profile
    from sae_lib.study.experiment import Experiment

FILE = "measures.json"  # among the results: what notebook 01 found


class ModelSize(NamedTuple):
    """Of a language model, by its configuration; `positions` where they are learned."""

    d_in: int
    layers: int
    vocab: int
    weights: int
    blocks: int
    """Weights of all blocks together."""
    positions: int | None = None


def model_size(model: ModelConfig) -> ModelSize:
    """The size of a profile's model, without its weights; only the configuration of an unknown hub model is fetched.

    Raises ArtifactError: there is no such model, or transformers has no causal language model of that kind.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from sae_lib.data import hub
    from sae_lib.data.language_model import blocks_path, learned_positions
    from sae_lib.data.model_loading import model_folder

    try:
        if pin := hub.MODELS.get(model.name):
            config = AutoConfig.for_model(**pin.config)
        else:
            config = AutoConfig.from_pretrained(model_folder(model, weights=False))
        with torch.device("meta"):
            whole = AutoModelForCausalLM.from_config(config)
        blocks, text = whole.base_model.get_submodule(blocks_path(whole.base_model) or ""), config.get_text_config()
        weights, of_blocks = (sum(p.numel() for p in module.parameters()) for module in (whole, blocks))
        sizes = text.hidden_size, text.num_hidden_layers, text.vocab_size, weights, of_blocks
        return ModelSize(*sizes, learned_positions(whole))
    except Exception as error:  # transformers raises what the code of a model raises
        told = f"config.json of {model.name} is not understood ({first_line(error)})"
        raise ArtifactError(f"model.name: {told}") from None


def measures(inputs: Inputs) -> dict[str, str]:
    """Each kind of measure, and what the model allows of it. What it does not allow is missing from tables and figures,
    which say so; all else is measured."""
    from sae_lib.metrics.absorption.score import lacking

    reference, config = inputs.reference("absorption"), inputs.settings("absorption")
    counted = len(reference.counted(config.min_probe_f1))
    letters = f"{counted} letters found by the probe, {len(reference.scored)} words of {len(reference.test_words)}"
    few = f"; SAEBench gives no result below {config.min_letters}" if counted < config.min_letters else ""
    why = lacking(inputs)
    of_letters = f"{NOT_MEASURABLE}: {why}" if why else f"{letters}{few}"
    found = {"absorption": of_letters, "stability across contexts": of_letters}
    return {"reconstruction, sparse probing": "measured", **found, "stability across seeds, along tokens": "measured"}


def foreseen(profile: Profile, paths: Paths) -> dict[str, str]:
    """`measures` as notebook 01 found them; before it ran, what tokenizer and configuration tell of them."""
    file = paths.results / FILE
    known = read_json(file) if file.is_file() else {}
    if known.get("model") == profile.model.model_dump(mode="json"):
        return dict(known["measures"])

    from sae_lib.data import hub
    from sae_lib.data.model_loading import load_tokenizer, model_folder
    from sae_lib.data.tokens import special_ids
    from sae_lib.metrics.absorption.reference import words_of_model

    name, later = profile.model.name, "how many letters the probe finds, notebook 01 says before anything is trained"
    if name in hub.MODELS:  # a plan fetches nothing
        return {"absorption": later}
    folder = model_folder(profile.model, weights=False)
    tokenizer, positions = load_tokenizer(folder, name), model_size(profile.model).positions
    try:
        words = words_of_model(tokenizer, special_ids(tokenizer), positions, name, profile.evaluation.absorption)[0]
    except ModelLacks as lacking:
        return {"absorption": f"{NOT_MEASURABLE}: {lacking}"}
    return {"absorption": f"{len(words)} words in the vocabulary; {later}"}


def keep(experiment: Experiment, found: Mapping[str, str]) -> Path:
    """Write what was found for `foreseen`; returns the file."""
    file = experiment.paths.results / FILE
    with experiment.writing():
        write_json(file, {"model": experiment.profile.model.model_dump(mode="json"), "measures": dict(found)})
    return file
