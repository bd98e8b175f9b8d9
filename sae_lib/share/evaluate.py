"""Evaluate any SAE on any causal language model: one from this package or of a library that
`share.load` knows.

    python -m sae_lib evaluate FOLDER --model pocket --layer 2 [--files text.jsonl] [--json out.json]

What depends on the language model alone (clean losses, words, probes) is computed once for a model, layer and text and
kept in a cache folder; every further SAE costs its own metrics only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.absorption.score import evaluate_absorption
from sae_lib.metrics.probing.score import evaluate_probing
from sae_lib.metrics.reconstruction import evaluate_reconstruction
from sae_lib.metrics.stability.contexts import context_stability
from sae_lib.metrics.stability.tokens import token_stability
from sae_lib.profiles.profile import EvaluationConfig, load_profile
from sae_lib.share.inputs import Inputs, open_pair
from sae_lib.util.errors import ArtifactError


@dataclass(frozen=True)
class SAEEvaluation:
    """The metrics of one SAE. What was not asked for or could not be measured is empty or None."""

    summary: dict[str, Any]
    """Model, layer and the SAE's sizes, then the metrics by name; `MEASURES` says where each is defined."""
    letters: pd.DataFrame
    """Absorption of each letter that counts."""
    tasks: pd.DataFrame
    """Accuracy on each probing task."""
    density: Float[Tensor, " d_sae"] | None
    """Share of tokens on which each latent fires."""
    notes: list[str]
    """What to know before the numbers are believed."""

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
    centre: bool = False,
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
        any_origin: evaluate even where the SAE's own files name another model, layer or place; notes say which.
        centre: give the SAE the residual stream less its mean over d_in, as a model has it whose writing weights
            TransformerLens centred; only for models whose norms do not see that mean (LayerNorm).

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
    pair = open_pair(
        sae, model, layer, revision=revision, device=device, dtype=dtype, any_origin=any_origin, centre=centre
    )
    inputs = pair.inputs(settings or default_settings(), texts, files, text_field, contexts, context_length, cache)
    found = _measure(pair.sae, inputs, metrics)
    summary = {
        "model": pair.lm.name, "layer": pair.lm.layer, "architecture": pair.sae.cfg.architecture,
        "d_in": pair.sae.d_in, "d_sae": pair.sae.d_sae,
    }  # fmt: skip
    notes = list(pair.notes)
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


# --- the metrics, each from an SAE and the same inputs


@dataclass(frozen=True)
class Measured:
    """One metric: its numbers by name, a table behind them, and what to know before they are believed."""

    summary: dict[str, Any]
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    density: Float[Tensor, " d_sae"] | None = None
    notes: list[str] = field(default_factory=list)


def core(sae: Autoencoder, inputs: Inputs) -> Measured:
    """`metrics.reconstruction.evaluate_reconstruction`, and the density of each latent.

    A reconstruction worse than a constant is a mistake in the set-up far more often than a bad SAE: a note says so.
    """
    notes = list(inputs.text_notes)
    summary, density = evaluate_reconstruction(
        sae, inputs.lm, inputs.core, inputs.settings.reconstruction.batch_contexts
    )
    if summary["explained_variance"] < 0:
        notes.append(
            f"explained variance {summary['explained_variance']:.2f}, worse than predicting the mean; check that "
            "model, layer and normalisation are those that the SAE was trained with"
        )
    return Measured(summary, density=density, notes=notes)


def absorption(sae: Autoencoder, inputs: Inputs) -> Measured:
    """`metrics.absorption.score.evaluate_absorption`; the table has one row for each letter that counts."""
    result = evaluate_absorption(sae, inputs.absorption, inputs.settings.absorption)
    return Measured(result.summary, result.letters, notes=list(result.notes))


def probing(sae: Autoencoder, inputs: Inputs) -> Measured:
    """`metrics.probing.score.evaluate_probing`; the table has one row for each task."""
    result = evaluate_probing(sae, inputs.probing, inputs.settings.probing)
    return Measured(result.summary, result.tasks)


def stability(sae: Autoencoder, inputs: Inputs) -> Measured:
    """`metrics.stability`: along the tokens of the held-out text, and across the contexts of absorption's words."""
    of_letter = evaluate_absorption(sae, inputs.absorption, inputs.settings.absorption).main_latents
    words = inputs.stability
    along = token_stability(sae, words.text_activations.to(sae.device), words.has_predecessor.to(sae.device))
    return Measured(along | context_stability(sae, words, of_letter))


MEASURES: dict[str, Callable[[Autoencoder, Inputs], Measured]] = {
    "core": core,
    "absorption": absorption,
    "probing": probing,
    "stability": stability,
}
