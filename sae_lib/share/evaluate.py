"""Evaluate any SAE on any causal language model: one from this package or of a library that
`share.load` knows.

    python -m sae_lib evaluate FOLDER --model pocket --layer 2 [--files text.jsonl] [--json out.json]

What depends on the language model alone (clean losses, words, probes) is computed once for a model, layer and text and
kept in a cache folder; every further SAE costs its own metrics only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.registry import Inputs, Measured, with_needs
from sae_lib.metrics.scores import SCORES
from sae_lib.profiles.profile import EvaluationConfig, load_profile
from sae_lib.share.inputs import cache_folder, documents, given, open_model, read
from sae_lib.share.load import load_with_origin
from sae_lib.share.origin import Origin
from sae_lib.util.errors import ArtifactError, ModelLacks
from sae_lib.util.paths import corpus_cache

SHORT = {"core": "reconstruction"}  # what a score is called here, where the registry has another name


@dataclass(frozen=True)
class SAEEvaluation:
    """The metrics of one SAE. What was not asked for or could not be measured is empty or None."""

    summary: dict[str, Any]
    """Model, layer and the SAE's sizes, then the metrics by name (`metrics.registry.COLUMNS`)."""
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
            probing), "stability" (along tokens and across contexts), or another that is registered.
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
    asked = [SHORT.get(metric, metric) for metric in metrics]
    unknown = [metric for metric in asked if metric not in SCORES]
    if unknown or not asked:
        known = ", ".join([*SHORT, *(name for name in SCORES if name not in SHORT.values())])
        raise ArtifactError(f"metrics: {', '.join(unknown) or 'none'} asked for; choose from {known}")
    folder = cache_folder(cache)
    sae, origin = (sae, Origin("the SAE")) if isinstance(sae, Autoencoder) else load_with_origin(sae)
    lm, notes = open_model(
        sae, origin, model, layer, revision=revision, device=device, dtype=dtype, any_origin=any_origin, centre=centre
    )

    def held_out() -> Int[Tensor, "context position"]:
        source = given(texts) if texts is not None else documents(files, text_field)
        tokens, found = read(lm, source, contexts, context_length)
        notes.extend(f"text: {note}" for note in found)
        return tokens

    packaged = load_profile("pocket").corpus
    inputs = Inputs(lambda: lm, held_out, settings or default_settings(), folder, packaged, corpus_cache())
    found = _measure(sae.to(lm.device).eval(), inputs, asked)
    summary = {
        "model": lm.name, "layer": lm.layer, "architecture": sae.cfg.architecture, "d_in": sae.d_in, "d_sae": sae.d_sae,
    }  # fmt: skip
    tables: dict[str, pd.DataFrame] = {}
    for metric, measured in zip(metrics, found, strict=True):
        summary |= measured.summary
        tables |= measured.tables
        notes += [f"{metric}: {note}" for note in measured.notes]
    if beyond := [name for name, value in summary.items() if isinstance(value, float) and math.isinf(value)]:
        raise ArtifactError(f"sae: {', '.join(beyond)} are beyond what float32 can hold: its weights are broken")
    density = next((measured.density for measured in found if measured.density is not None), None)
    nothing = pd.DataFrame()
    return SAEEvaluation(summary, tables.get("letters", nothing), tables.get("tasks", nothing), density, notes)


def _measure(sae: Autoencoder, inputs: Inputs, asked: Sequence[str]) -> list[Measured]:
    """Each score, or the reason why this model does not allow it; text that is of no use stops everything."""
    if set(asked) - {"absorption", "probing"}:
        _ = inputs.held_out
    found: dict[str, Measured] = {}
    failures: dict[str, ArtifactError] = {}
    for name in with_needs(asked):
        score = SCORES[name]
        try:
            for need in score.needs:
                if need in failures:
                    raise failures[need]
            if lacking := getattr(inputs.reference(name), "lacking", ""):
                raise ModelLacks(lacking)
            earlier = {need: found[need].kept for need in score.needs}
            (found[name],) = score.evaluate([sae], inputs, [earlier])
        except ArtifactError as error:
            failures[name] = error
            found[name] = Measured({}, notes=(f"not measured ({error})",))
    if set(asked) <= set(failures):
        raise failures[asked[0]]
    return [found[name] for name in asked]
