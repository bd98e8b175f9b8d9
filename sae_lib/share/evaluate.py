"""Evaluate any SAE that `share.load` reads on any causal language model.

    python -m sae_lib evaluate FOLDER --model pocket --layer 2 [--files text.jsonl] [--json out.json]

What depends on model, layer and text alone (clean losses, words, probes) is computed once and kept in a cache folder.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.config import ModelConfig
from sae_lib.data.corpus import Texts, documents_of, file_rows, load_documents, text_files
from sae_lib.data.language_model import LanguageModel
from sae_lib.data.tokens import pack
from sae_lib.metrics.registry import Inputs, Measured, with_needs
from sae_lib.metrics.scores import SCORES
from sae_lib.profiles.profile import EvaluationConfig, load_profile, validated
from sae_lib.share.load import load_with_origin
from sae_lib.share.origin import Origin, origin_faults
from sae_lib.util.errors import ArtifactError, ModelLacks
from sae_lib.util.files import check_writable
from sae_lib.util.paths import corpus_cache, output_folder, output_root

SHORT = {"core": "reconstruction"}  # what a score is called here, where the registry has another name


@dataclass(frozen=True)
class SAEEvaluation:
    """The metrics of one SAE. What was not asked for or could not be measured is empty or None.

    `summary`: model, layer and the SAE's sizes, then the metrics by name (`metrics.registry.COLUMNS`); `letters`:
    absorption of each letter that counts; `tasks`: accuracy on each probing task; `density`: share of tokens on which
    each latent fires; `notes`: what to know before the numbers are believed.
    """

    summary: dict[str, Any]
    letters: pd.DataFrame
    tasks: pd.DataFrame
    density: Float[Tensor, " d_sae"] | None
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        """Summary, letters, tasks and notes; what is not there is null."""
        letters, tasks = (
            [_plain(row) for row in rows.to_dict(orient="records")] for rows in (self.letters, self.tasks)
        )
        return {"summary": _plain(self.summary), "letters": letters, "tasks": tasks, "notes": self.notes}

    def as_text(self) -> str:
        """Names and values of the summary in two columns, notes below them."""
        width, lines = max(map(len, self.summary)), []
        for name, value in _plain(self.summary).items():
            digits = ".4f" if isinstance(value, float) and value != int(value) else ""
            lines.append(f"{name:<{width}}  {'not defined' if value is None else format(value, digits)}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    """JSON has no NaN: a value that is not there is null."""
    return {str(key): None if isinstance(value, float) and value != value else value for key, value in row.items()}


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
        layer: the block, counted from 0; None takes the one that the SAE's own files name.
        texts: held-out texts; without `texts` and `files`, the packaged corpus's.
        files: local .jsonl, .parquet or .txt files of such texts, in the column `text_field`.
        revision: branch, tag or commit of a hub model.
        metrics: any of "core" (reconstruction, sparsity, behaviour), "absorption" (first letters), "probing",
            "stability" (along tokens and across contexts), "interpretation", or another that is registered.
        settings: of the metrics; `default_settings()` where it is None.
        contexts: how many contexts of `context_length` tokens are read, at most.
        cache: folder for what depends on the model only; `build/evaluate` by default.
        device, dtype: of the language model. The SAE is float32, on the same device.
        any_origin: evaluate even where the SAE's own files name another model, layer or place; notes say which.
        centre: give the SAE the residual stream less its mean over d_in (`LanguageModel.centre`).

    A metric that this model does not allow (a tokenizer without words, say) is left out, and a note gives the reason.

    Raises ArtifactError: a folder that `load_sae` refuses, a model or layer that is not there, an SAE of another width
    or from another place, text that fills no context, an unknown metric, or when no metric could be measured.
    """
    asked = [SHORT.get(metric, metric) for metric in metrics]
    unknown = [metric for metric in asked if metric not in SCORES]
    if unknown or not asked:
        known = ", ".join([*SHORT, *(name for name in SCORES if name not in SHORT.values())])
        raise ArtifactError(f"metrics: {', '.join(unknown) or 'none'} asked for; choose from {known}")
    folder = output_root() / "evaluate" if cache is None else output_folder(cache, "cache")
    check_writable(folder, "" if cache is None else "cache")
    sae, origin = (sae, Origin("the SAE")) if isinstance(sae, Autoencoder) else load_with_origin(sae)
    layer = origin.layer if layer is None else layer
    if layer is None:
        raise ArtifactError("layer: the SAE's files name no layer; say after which block (from 0) it was trained")
    faults = origin_faults(origin, model.name if isinstance(model, LanguageModel) else model, layer)
    if faults and not any_origin:
        raise ArtifactError(f"{'; '.join(faults[0])}, or set any_origin (--any-origin) to evaluate it all the same")
    lm = _open_model(model, layer, revision, device, dtype)
    if sae.d_in != lm.d_in:
        cause = "it was trained on another model, or on another place than the residual stream"
        if sae.d_in == getattr(lm.model.config.get_text_config(), "intermediate_size", None):
            cause = f"{sae.d_in} is the width of that model's MLP, so the SAE reads its neurons"
        raise ArtifactError(f"sae: d_in is {sae.d_in}, the residual stream of {lm.name} is {lm.d_in} wide; {cause}")
    notes = [fault for fault, _ in faults]
    notes += [*(f"sae: {remark}" for remark in origin.remarks), *(f"model: {remark}" for remark in lm.remarks)]
    if centre:
        lm.centre()
    elif origin.centred != "no" and lm.can_be_centred:
        seen = f"it {'was' if origin.centred == 'yes' else 'may have been'} trained on a model whose weights"
        fix = "centre=True (--centre) gives it such a residual stream"
        notes.append(f"sae: {seen} TransformerLens centred (center_writing_weights); {fix}")
    inputs = Inputs(
        lambda: lm, lambda: _read(lm, chosen_texts(texts, files, text_field), contexts, context_length, notes),
        settings or default_settings(), folder, load_profile("pocket").corpus, corpus_cache(),
    )  # fmt: skip
    found = _measure(sae.to(lm.device).eval(), inputs, asked)
    summary = {"model": lm.name, "layer": lm.layer, "architecture": sae.cfg.architecture}
    summary |= {"d_in": sae.d_in, "d_sae": sae.d_sae}
    tables = {"letters": pd.DataFrame(), "tasks": pd.DataFrame()}
    for metric, measured in zip(metrics, found, strict=True):
        summary |= measured.summary
        tables |= measured.tables
        notes += [f"{metric}: {note}" for note in measured.notes]
    if beyond := [name for name, value in summary.items() if isinstance(value, float) and math.isinf(value)]:
        raise ArtifactError(f"sae: {', '.join(beyond)} are beyond what float32 can hold: its weights are broken")
    density = next((measured.density for measured in found if measured.density is not None), None)
    return SAEEvaluation(summary, tables["letters"], tables["tasks"], density, notes)


def _measure(sae: Autoencoder, inputs: Inputs, asked: Sequence[str]) -> list[Measured]:
    """Each score, or the reason why this model does not allow it; text that is of no use stops everything."""
    if set(asked) - {"absorption", "probing"}:
        _ = inputs.held_out
    found: dict[str, Measured] = {}
    failures: dict[str, ArtifactError] = {}
    for name in with_needs(asked):
        score = SCORES[name]
        try:
            if failed := [failures[need] for need in score.needs if need in failures]:
                raise failed[0]
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


def _open_model(model: str | LanguageModel, layer: int, revision: str | None, device: str, dtype: str) -> LanguageModel:
    """The whole model, read after block `layer`; a loaded one is taken as it is."""
    if isinstance(model, LanguageModel):
        if model.layer != layer or not model.whole:
            loaded = f"{model.name} was loaded {'whole' if model.whole else 'cut'} for layer {model.layer}"
            raise ArtifactError(f"model: {loaded}; load it with whole=True for layer {layer}")
        return model
    values = {"name": model, "revision": revision, "layer": layer, "device": device, "dtype": dtype}
    return LanguageModel.load(validated(ModelConfig, values, "model"), whole=True)


def chosen_texts(texts: Iterable[str] | None, files: Sequence[Path | str], text_field: str) -> Texts:
    """The texts that are given, or those of the user's files, or the held-out documents of the packaged corpus."""
    if texts is None and files:
        rows = chain.from_iterable(map(file_rows, text_files(files)))
        return Texts(rows, text_field, "text_field")
    if texts is None:
        packaged = load_profile("pocket").corpus
        texts = documents_of("held_out", load_documents(packaged, corpus_cache()), packaged)
    return Texts(({"text": text} for text in ([texts] if isinstance(texts, str) else texts)), "text", "texts")


def _read(
    lm: LanguageModel, texts: Texts, contexts: int, length: int, notes: list[str]
) -> Int[Tensor, "context position"]:
    """As many contexts as were asked for, or as the text fills; what there is to say about them goes into `notes`."""
    if (longest := lm.max_positions) is not None and length > longest:
        notes.append(f"text: contexts have {longest} tokens, the most that {lm.name} takes, not {length}")
        length = longest
    if length < 2 or contexts < 1:
        fix = "take 1 or more contexts of 2 or more tokens"
        raise ArtifactError(f"contexts, context_length: {contexts} and {length}; {fix}")
    tokens = pack((text for _, text in texts if text), lm.tokenizer, length, contexts)
    lm.check_tokens(tokens)
    if texts.note:
        notes.append(f"text: {texts.note}")
    if len(tokens) < contexts:
        notes.append(f"text: it fills {len(tokens)} contexts of {length} tokens, {contexts} were asked for")
    return torch.from_numpy(tokens).long()
