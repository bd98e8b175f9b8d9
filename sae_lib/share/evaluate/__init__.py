"""Evaluate any SAE on any causal language model: one from this package, from SAELens or from dictionary_learning.

    python -m sae_lib evaluate FOLDER --model pocket --layer 2 [--files text.jsonl] [--json out.json]

What depends on the language model alone (clean losses, words, probes) is computed once for a model, layer and text and
kept in a cache folder; every further SAE costs its own metrics only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.language_model import LanguageModel
from sae_lib.profiles.profile import EvaluationConfig, load_profile
from sae_lib.share.evaluate.inputs import Inputs, check_width, documents, open_model
from sae_lib.share.evaluate.measures import MEASURES, Measured
from sae_lib.share.load import Origin, load_with_origin
from sae_lib.share.origin import check_origin
from sae_lib.util.errors import ArtifactError
from sae_lib.util.paths import output_root

__all__ = ["SAEEvaluation", "default_settings", "evaluate_sae"]


@dataclass(frozen=True)
class SAEEvaluation:
    """The metrics of one SAE.

    `summary`: model, layer and the SAE's sizes, then the metrics by name; `evaluate.measures` says where each is
    defined. `letters`: absorption of each letter that counts. `tasks`: accuracy on each probing task. `density`: share
    of tokens on which each latent fires. `notes`: what to know before the numbers are believed. What was not asked for
    or could not be measured is empty or None.
    """

    summary: dict[str, Any]
    letters: pd.DataFrame
    tasks: pd.DataFrame
    density: Float[Tensor, " d_sae"] | None
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        """Summary, letters, tasks and notes; what is not there is null."""
        return {
            "summary": _plain(self.summary),
            "letters": [_plain(row) for row in self.letters.to_dict(orient="records")],
            "tasks": [_plain(row) for row in self.tasks.to_dict(orient="records")],
            "notes": self.notes,
        }

    def as_text(self) -> str:
        """Names and values of the summary in two columns, notes below them."""
        width = max(map(len, self.summary))
        rows = [f"{name:<{width}}  {_shown(value)}" for name, value in _plain(self.summary).items()]
        return "\n".join([*rows, *(f"note: {note}" for note in self.notes)])


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    """JSON has no NaN: a value that is not there is null."""
    return {str(key): None if isinstance(value, float) and value != value else value for key, value in row.items()}


def _shown(value: Any) -> str:
    if value is None:
        return "not defined"
    return f"{value:.4f}" if isinstance(value, float) and value != int(value) else f"{value}"


def default_settings() -> EvaluationConfig:
    """Every metric's own defaults (SAEBench's), and for probing the tasks on the packaged corpus, without download."""
    return EvaluationConfig(probing=load_profile("pocket").evaluation.probing)


def evaluate_sae(
    sae: Autoencoder | Path | str,
    model: str | LanguageModel,
    layer: int | None = None,
    *,
    texts: Iterable[str] | None = None,
    files: Sequence[Path | str] = (),
    text_field: str = "text",
    revision: str | None = None,
    metrics: Sequence[str] = ("core", "absorption"),
    settings: EvaluationConfig | None = None,
    contexts: int = 64,
    context_length: int = 128,
    cache: Path | str | None = None,
    device: str = "auto",
    dtype: str = "float32",
    any_origin: bool = False,
) -> SAEEvaluation:
    """Evaluate an SAE on the residual stream after block `layer` of a language model.

    >>> evaluate_sae("my_sae", "EleutherAI/pythia-70m", 3).summary["explained_variance"]        # doctest: +SKIP
    0.81

    Args:
        sae: an SAE, or a folder that `share.load.load_sae` reads.
        model: "pocket", a local folder or a hub id; or a model that is already loaded, whole, for `layer`.
        layer: index of the block, counted from 0; None takes the layer that the SAE's own files name.
        texts: held-out texts that "core" and "stability" are measured on. Without `texts` and `files`: the packaged
            corpus's held-out documents.
        files: local .jsonl, .parquet or .txt files of such texts, in the column `text_field`.
        revision: branch, tag or commit of a hub model.
        metrics: any of "core" (reconstruction, sparsity, behaviour), "absorption" (first letters), "probing" (sparse
            probing), "stability" (along tokens and across contexts).
        settings: of the metrics; `default_settings()` where it is None.
        contexts: how many contexts of `context_length` tokens are read, at most.
        cache: folder for what depends on the model only; `build/evaluate` by default.
        device, dtype: of the language model. The SAE is float32, on the same device.
        any_origin: evaluate even where the SAE's own files name another model, layer or place.

    Returns:
        The evaluation. A metric that this model does not allow (a tokenizer without words, say) is left out, and a
        note gives the reason; the others are measured all the same.

    Raises:
        ArtifactError: in one line, for a folder that `load_sae` refuses, a model or layer that is not there, an SAE of
            another width or from another place, text that fills no context, an unknown metric, or when no metric at
            all could be measured.
    """
    unknown = [metric for metric in metrics if metric not in MEASURES]
    if unknown or not metrics:
        raise ArtifactError(f"metrics: {', '.join(unknown) or 'none'} asked for; choose from {', '.join(MEASURES)}")
    sae, origin = (sae, Origin("the SAE")) if isinstance(sae, Autoencoder) else load_with_origin(sae)
    layer = origin.layer if layer is None else layer
    if layer is None:
        raise ArtifactError("layer: the SAE's files name no layer; say after which block (from 0) it was trained")
    if not any_origin:
        check_origin(origin, model.name if isinstance(model, LanguageModel) else model, layer)
    lm = open_model(model, layer, revision, device, dtype)
    check_width(sae, lm)
    folder = Path(cache) if cache is not None else output_root() / "evaluate"
    source = texts if texts is not None else documents(files, text_field)
    inputs = Inputs(lm, settings or default_settings(), source, contexts, context_length, folder)
    found = _measure(sae.to(lm.device).eval(), inputs, metrics)
    summary: dict[str, Any] = {"model": lm.name, "layer": layer, "architecture": sae.cfg.architecture}
    summary |= {"d_in": sae.d_in, "d_sae": sae.d_sae}
    notes = [f"sae: {remark}" for remark in origin.remarks]
    if lm.tokenizer.bos_token_id is None:
        notes.append(f"model: the tokenizer of {lm.name} has no BOS, its EOS opens every context")
    for metric, measured in found.items():
        summary |= measured.summary
        notes += [f"{metric}: {note}" for note in measured.notes]
    nothing = Measured({})
    return SAEEvaluation(
        summary,
        letters=found.get("absorption", nothing).table,
        tasks=found.get("probing", nothing).table,
        density=found.get("core", nothing).density,
        notes=notes,
    )


def _measure(sae: Autoencoder, inputs: Inputs, metrics: Sequence[str]) -> dict[str, Measured]:
    """Each metric, or the reason why this model does not allow it; text that is of no use stops everything."""
    if {"core", "stability"} & set(metrics):
        inputs.read_texts()
    found, failures = {}, []
    for metric in metrics:
        try:
            found[metric] = MEASURES[metric](sae, inputs)
        except ArtifactError as error:
            failures.append(error)
            found[metric] = Measured({}, notes=[f"not measured ({error})"])
    if len(failures) == len(metrics):
        raise failures[0]
    return found
