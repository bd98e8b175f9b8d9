"""What an evaluation reads: the model of an SAE, checked against it, and the text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
from sae_lib.profiles.profile import explain, load_profile
from sae_lib.share.origin import Origin, origin_faults
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import check_writable
from sae_lib.util.paths import output_folder, output_root


def cache_folder(cache: Path | str | None) -> Path:
    """Where what depends on the model only is kept. Raises ArtifactError when nothing can be written there."""
    folder = output_root() / "evaluate" if cache is None else output_folder(cache, "cache")
    check_writable(folder, "" if cache is None else "cache")
    return folder


def open_model(
    sae: Autoencoder,
    origin: Origin,
    model: str | LanguageModel,
    layer: int | None,
    *,
    revision: str | None,
    device: str,
    dtype: str,
    any_origin: bool,
    centre: bool,
) -> tuple[LanguageModel, list[str]]:
    """The model that an SAE is to be evaluated on, and what to know about the two; arguments as of `evaluate_sae`.

    Raises:
        ArtifactError: in one line, for a model or layer that is not there, an SAE of another width or from another
            place.
    """
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
    return lm, notes


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
    return given(documents_of("held_out", load_documents(packaged, output_root() / "corpus"), packaged))


def given(texts: Iterable[str] | str) -> Texts:
    """Texts that somebody holds in their hands."""
    return Texts(({"text": text} for text in ([texts] if isinstance(texts, str) else texts)), "text", "texts")


def read(
    lm: LanguageModel, texts: Texts, contexts: int, length: int
) -> tuple[Int[Tensor, "context position"], list[str]]:
    """As many contexts as were asked for, or as the text fills, and what there is to say about them."""
    notes = []
    longest = lm.max_positions
    if longest is not None and length > longest:
        notes.append(f"contexts have {longest} tokens, the most that {lm.name} takes, not {length}")
        length = longest
    if length < 2 or contexts < 1:
        raise ArtifactError(
            f"contexts, context_length: {contexts} and {length}; take 1 or more contexts of 2 or more tokens"
        )
    tokens = pack((text for _, text in texts if text), lm.tokenizer, length, contexts)
    lm.check_tokens(tokens)
    if texts.note:
        notes.append(texts.note)
    if len(tokens) < contexts:
        notes.append(f"it fills {len(tokens)} contexts of {length} tokens, {contexts} were asked for")
    return torch.from_numpy(tokens).long(), notes
