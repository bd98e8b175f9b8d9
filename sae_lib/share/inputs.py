"""What an evaluation reads: an SAE and its model, checked against each other, the text, and what every SAE shares of
the two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Int
from pydantic import ValidationError
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.config import CorpusConfig, ModelConfig
from sae_lib.data.corpus import Texts, documents_of, load_documents
from sae_lib.data.language_model import LanguageModel
from sae_lib.data.tokens import pack
from sae_lib.metrics.absorption.reference import AbsorptionReference, build_absorption_reference
from sae_lib.metrics.probing.reference import ProbingReference, build_probing_reference
from sae_lib.metrics.reconstruction import CoreReference, build_core_reference
from sae_lib.metrics.stability.reference import StabilityReference, build_stability_reference
from sae_lib.profiles.profile import EvaluationConfig, explain, load_profile
from sae_lib.share.load import load_with_origin
from sae_lib.share.origin import Origin, origin_faults
from sae_lib.util.errors import ArtifactError
from sae_lib.util.paths import output_root


@dataclass(frozen=True)
class Pair:
    """An SAE and the whole language model that it reads, on one device, and what to know about the two."""

    sae: Autoencoder
    lm: LanguageModel
    notes: list[str]

    def inputs(
        self,
        settings: EvaluationConfig,
        texts: Iterable[str] | None,
        files: Sequence[Path | str],
        text_field: str,
        contexts: int,
        context_length: int,
        cache: Path | str | None,
    ) -> Inputs:
        """What metrics read; arguments as of `evaluate_sae`."""
        source = given(texts) if texts is not None else documents(files, text_field)
        folder = Path(cache) if cache is not None else output_root() / "evaluate"
        return Inputs(self.lm, settings, source, contexts, context_length, folder)


def open_pair(
    sae: Autoencoder | Path | str,
    model: str | LanguageModel,
    layer: int | None,
    *,
    revision: str | None,
    device: str,
    dtype: str,
    any_origin: bool,
    centre: bool,
) -> Pair:
    """Load an SAE and the model that it is to be evaluated on; arguments as of `evaluate_sae`.

    Raises:
        ArtifactError: in one line, for a folder that `load_sae` refuses, a model or layer that is not there, an SAE of
            another width or from another place.
    """
    sae, origin = (sae, Origin("the SAE")) if isinstance(sae, Autoencoder) else load_with_origin(sae)
    layer = origin.layer if layer is None else layer
    if layer is None:
        raise ArtifactError("layer: the SAE's files name no layer; say after which block (from 0) it was trained")
    faults = origin_faults(origin, model.name if isinstance(model, LanguageModel) else model, layer)
    if faults and not any_origin:
        raise ArtifactError(f"{'; '.join(faults[0])}, or set any_origin (--any-origin) to evaluate it all the same")
    lm = _open_model(model, layer, revision, device, dtype)
    _check_width(sae, lm)
    remarks = [*(f"sae: {remark}" for remark in origin.remarks), *(f"model: {remark}" for remark in lm.remarks)]
    notes = [*(fault for fault, _ in faults), *remarks]
    if centre:
        lm.centre()
    elif origin.centred != "no" and lm.can_be_centred:
        seen = "was" if origin.centred == "yes" else "may have been"
        notes.append(
            f"sae: it {seen} trained on a model whose weights TransformerLens centred (center_writing_weights); "
            "centre=True (--centre) gives it such a residual stream"
        )
    return Pair(sae.to(lm.device).eval(), lm, notes)


def _open_model(model: str | LanguageModel, layer: int, revision: str | None, device: str, dtype: str) -> LanguageModel:
    """The whole model, read after block `layer`; a loaded one is taken as it is."""
    if isinstance(model, LanguageModel):
        if model.layer != layer or not model.whole:
            raise ArtifactError(
                f"model: {model.name} was loaded {'whole' if model.whole else 'cut'} for layer {model.layer}; "
                f"load it with whole=True for layer {layer}"
            )
        return model
    values = {"name": model, "revision": revision, "layer": layer, "device": device, "dtype": dtype}
    try:
        config = ModelConfig.model_validate(values)
    except ValidationError as error:
        raise ArtifactError(explain(error, ModelConfig, "model")) from None
    return LanguageModel.load(config, whole=True)


def _check_width(sae: Autoencoder, lm: LanguageModel) -> None:
    """Raises ArtifactError, with the likely cause, when the SAE is not as wide as the residual stream."""
    if sae.d_in == lm.d_in:
        return
    if sae.d_in == getattr(lm.model.config.get_text_config(), "intermediate_size", None):
        cause = f"{sae.d_in} is the width of that model's MLP, so the SAE reads its neurons"
    else:
        cause = "it was trained on another model, or on another place than the residual stream"
    raise ArtifactError(f"sae: d_in is {sae.d_in}, the residual stream of {lm.name} is {lm.d_in} wide; {cause}")


def documents(files: Sequence[Path | str], text_field: str) -> Texts:
    """All texts of the user's files; without files, the held-out documents of the packaged corpus.

    Raises:
        ArtifactError: a file that is missing or of an unknown type; while iterating, as `Texts`.
    """
    if files:
        config = CorpusConfig(source="files", files=tuple(str(file) for file in files), text_field=text_field)
        return Texts(load_documents(config), text_field, "text_field")
    packaged = load_profile("pocket").corpus
    return given(documents_of("held_out", load_documents(packaged, _corpus_cache()), packaged))


def given(texts: Iterable[str] | str) -> Texts:
    """Texts that somebody holds in their hands."""
    return Texts(({"text": text} for text in ([texts] if isinstance(texts, str) else texts)), "text", "texts")


def _corpus_cache() -> Path:
    """Where the packaged corpus is kept for all uses."""
    return output_root() / "corpus"


@dataclass(frozen=True)
class Inputs:
    """A language model and text, and the metrics' references: each made when it is first asked for, and kept in
    `folder` under a name made of all that it depends on."""

    lm: LanguageModel
    settings: EvaluationConfig
    texts: Texts
    contexts: int
    context_length: int
    folder: Path

    def read_texts(self) -> None:
        """Read the texts. Raises ArtifactError when they fill no context."""
        _ = self._read

    @property
    def tokens(self) -> Int[Tensor, "context position"]:
        """As many contexts as were asked for, or as the text fills."""
        return self._read[0]

    @property
    def text_notes(self) -> list[str]:
        """What there is to say about the contexts."""
        return self._read[1]

    @cached_property
    def core(self) -> CoreReference:
        return build_core_reference(self.lm, self.tokens, self.settings.reconstruction.batch_contexts, self.folder)

    @cached_property
    def absorption(self) -> AbsorptionReference:
        return build_absorption_reference(self.lm, self.settings.absorption, self.folder)

    @cached_property
    def probing(self) -> ProbingReference:
        packaged = load_profile("pocket").corpus
        return build_probing_reference(self.lm, self.settings.probing, packaged, self.folder, _corpus_cache())

    @cached_property
    def stability(self) -> StabilityReference:
        settings = self.settings
        return build_stability_reference(
            self.lm, self.absorption, settings.absorption, settings.stability, self.tokens, self.folder
        )

    @cached_property
    def _read(self) -> tuple[Int[Tensor, "context position"], list[str]]:
        notes, length, lm = [], self.context_length, self.lm
        longest = getattr(lm.model.config.get_text_config(), "max_position_embeddings", length)
        if length > longest:
            notes.append(f"contexts have {longest} tokens, the most that {lm.name} takes, not {length}")
            length = longest
        if length < 2 or self.contexts < 1:
            raise ArtifactError(
                f"contexts, context_length: {self.contexts} and {length}; take 1 or more contexts of 2 or more tokens"
            )
        tokens = pack((text for _, text in self.texts if text), lm.tokenizer, length, self.contexts)
        lm.check_tokens(tokens)
        if self.texts.note:
            notes.append(f"text: {self.texts.note}")
        if len(tokens) < self.contexts:
            notes.append(f"the text fills {len(tokens)} contexts of {length} tokens, {self.contexts} were asked for")
        return torch.from_numpy(tokens).long(), notes
