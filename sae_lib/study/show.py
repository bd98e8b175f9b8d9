"""Small tables for the notebooks: the text, the language model, the batches and the recipes, as a reader sees them.

Nothing here is a result; results come from `metrics` and are shown by `report`.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray

from sae_lib.data.activations import ActivationStore, WindowStream
from sae_lib.data.corpus import Texts, load_documents, split_of
from sae_lib.data.language_model import LanguageModel
from sae_lib.data.words import LETTERS, alphabetic_words, build_prompts, choose_words, prompt_pieces, single_token_words
from sae_lib.mechanisms import MECHANISMS, METHODS
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.reference import AbsorptionReference
from sae_lib.metrics.core_reference import CoreReference
from sae_lib.profiles.profile import Profile
from sae_lib.profiles.runs import Calibration, RunSpec, sweep_runs
from sae_lib.report.names import method_name
from sae_lib.study.experiment import Experiment

STREAMED_DOCUMENTS = 5_000  # of a corpus that is not at hand, so many are counted


def corpus_overview(profile: Profile, cache: Path) -> pd.DataFrame:
    """Documents and characters of each package (or of the source) and the split that each document falls into.

    A streamed corpus is counted over its first 5,000 documents.
    """
    most = None if profile.corpus.source == "documentation" else STREAMED_DOCUMENTS
    rows = []
    for document, text in islice(Texts(load_documents(profile.corpus, cache), profile.corpus.text_field), most):
        if not text:
            continue
        origin = document.get("package", profile.corpus.name or profile.corpus.source)
        rows.append({"source": origin, "split": split_of(text, profile.corpus), "characters": len(text)})
    counted = pd.DataFrame(rows)
    table = pd.crosstab(counted["source"], counted["split"]).rename(columns={"held_out": "held out"})
    table.insert(0, "documents", table.sum(axis=1))
    table["characters"] = counted.groupby("source")["characters"].sum()
    table.loc["all"] = table.sum()
    return table.rename_axis(columns=None)


def context_text(tokenizer: Any, context: Int[np.ndarray, " position"], tokens: int = 60) -> str:
    """The first tokens of a context with a bar between them; line breaks are shown as ⏎."""
    pieces = [tokenizer.decode([int(token)]).replace("\n", "⏎") for token in context[:tokens]]
    return "|".join(pieces) + ("|…" if len(context) > tokens else "")


@torch.no_grad()
def latents_on(
    experiment: Experiment, sentence: str, specs: Mapping[str, RunSpec]
) -> tuple[list[str], dict[str, Float[np.ndarray, "token d_sae"]]]:
    """The tokens of a sentence as text, and what the SAE of each of `specs` makes of them."""
    lm = experiment.language_model(whole=False)
    ids = lm.tokenizer(sentence, add_special_tokens=False)["input_ids"]
    residual = lm.residual_stream(torch.tensor([[lm.bos_token_id, *ids]]))[0, 1:].float().cpu()
    latents = {name: experiment.autoencoder(spec).encode(residual).numpy() for name, spec in specs.items()}
    return [str(lm.tokenizer.decode([token])) for token in ids], latents


def model_facts(lm: LanguageModel, core: CoreReference) -> pd.DataFrame:
    """What the language model is, and its loss on the held-out text with and without the layer that is read."""
    config: Any = lm.model.config.get_text_config()
    facts = {
        "architecture": type(lm.model).__name__,
        "parameters": f"{sum(p.numel() for p in lm.model.parameters()):,}",
        "blocks": str(config.num_hidden_layers),
        "block that is read (counted from 0)": str(lm.layer),
        "width of the residual stream, d_in": str(lm.d_in),
        "vocabulary": f"{lm.vocab_size:,}",
        "held-out loss, nats per token ↓": f"{core.ce_clean:.3f}",
        "the same with that residual stream set to zero": f"{core.ce_zero:.3f}",
    }
    return pd.DataFrame(facts.items(), columns=["fact", "value"]).set_index("fact")


@torch.no_grad()
def ask_first_letters(lm: LanguageModel, config: AbsorptionConfig, n: int = 8) -> pd.DataFrame:
    """The model's own answer to `{word} has the first letter:` after answered examples, for a few words.

    `probability` is that of the right answer (higher is better).
    """
    pieces = prompt_pieces(lm.tokenizer)
    words = single_token_words(lm.tokenizer, alphabetic_words(lm.tokenizer, lm.special_ids), pieces)
    asked = choose_words(words, n, config.seed)
    prompts = build_prompts(asked, words, pieces, lm.bos_token_id, config.icl_examples, config.probe_prompt_seed)
    each, after = torch.arange(len(asked)), prompts.position + len(pieces.question)  # the question's last token
    chances = lm.logits(prompts.tokens)[each, after].float().softmax(dim=-1)
    right = torch.tensor([pieces.answers[word.letter][0] for word in asked])
    rows = {
        "word": [repr(word.text) for word in asked],
        "letter": [LETTERS[word.letter].upper() for word in asked],
        "answer": [repr(lm.tokenizer.decode([int(token)])) for token in chances.argmax(dim=1)],
        "probability": chances[each, right].tolist(),
    }
    return pd.DataFrame(rows).round(3)


def probe_letters(reference: AbsorptionReference) -> pd.DataFrame:
    """One row per letter: words in train and test, and the ground-truth probe's F1 on the test words."""
    train, test = (labels.bincount(minlength=26) for labels in (reference.train_labels, reference.test_labels))
    columns = {"letter": list(LETTERS), "train_words": train, "test_words": test, "probe_f1": reference.probe_f1}
    return pd.DataFrame(columns)


def window_table(
    store: ActivationStore, stream: WindowStream, tokens: NDArray[np.int32], tokenizer: Any, batch: int, window: int
) -> pd.DataFrame:
    """One window of a batch: each row's context, position and token, and whether its predecessor is in the window."""
    first = int(stream.windows(batch)[window]) * stream.window
    rows = np.arange(first, first + stream.window)
    contexts, positions = store.contexts[rows], store.positions[rows]
    columns = {
        "context": contexts,
        "position": positions,
        "token": [repr(tokenizer.decode([int(token)])) for token in tokens[contexts, positions]],
        "has_predecessor": stream.batch(batch).has_predecessor[window].cpu().numpy(),
    }
    return pd.DataFrame(columns, index=pd.Index(rows, name="row"))


def recipe_table(profile: Profile, methods: Sequence[str]) -> pd.DataFrame:
    """What sets the methods' configurations apart, before calibration."""
    rows = {}
    for method in methods:
        config = profile.sae_config(method)
        parts = dict.fromkeys((*METHODS[method].recipe, *MECHANISMS))
        optimizer, symbol = config.optimizer, {"k": "k", "target_l0": "target L0"}.get(config.knob)
        rows[method_name(method)] = {
            "activation": {"standard": "ReLU"}.get(config.architecture, method_name(config.architecture)),
            "sparsity from": f"{symbol} = {config.get(config.knob):g}" if symbol else "λ₁, calibrated",
            "mechanisms": ", ".join(p.replace("_", " ") for p in parts if p in MECHANISMS and config.get(p)) or "–",
            "inputs": "E‖x‖² = 1" if config.normalize_inputs else "raw",
            "optimiser": f"{optimizer.name}, {optimizer.learning_rate:.1g}, clip {optimizer.clip_norm or '–'}",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def calibration_table(experiment: Experiment, calibration: Calibration) -> pd.DataFrame:
    """L0 on the calibration documents at each coefficient, mean over seeds, and the coefficient that was chosen."""
    rows = {}
    for method in experiment.profile.sweep.coefficients:
        means = experiment.l0_by_coefficient(sweep_runs(experiment.profile, method, calibration.dropout_probability))
        rows[method_name(method)] = {
            "tried: λ₁ → L0": "   ".join(f"{value:g} → {l0:.1f}" for value, l0 in means.items()),
            "chosen λ₁": f"{calibration.coefficients[method]:.4g}",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")
