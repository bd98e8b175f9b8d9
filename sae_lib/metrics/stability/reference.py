"""What stability needs from the language model, computed once and kept on disk: each word in several fresh prompts and
wherever it stands in held-out text; and the whole text in token order, for stability along tokens.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from sae_lib.data.language_model import LanguageModel
from sae_lib.data.words import LETTERS, Word, alphabetic_words, build_prompts, entry_text, prompt_pieces
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.reference import AbsorptionReference, residual_at_words
from sae_lib.metrics.stored_reference import kept_reference
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import json_key
from sae_lib.util.keys import Stage
from sae_lib.util.strict import Strict

STABILITY_REFERENCE = Stage("stability reference", 1)


class StabilityConfig(Strict):
    words_per_letter: int = Field(default=10, gt=0)
    """At most this many of a letter's evaluated words are read in fresh prompts."""
    contexts: int = Field(default=8, ge=2)
    """Prompts for each of these words, from one example, each time others, up to as many as absorption's have."""
    min_occurrences: int = Field(default=4, ge=2)
    """An evaluated word counts in running text when it stands there at least so often, as a whole word."""
    max_occurrences: int = Field(default=32, ge=2)
    """The first so many of them are used."""
    text_contexts: int = Field(default=128, gt=0)
    """At most this many held-out contexts are read."""
    seed: int = 45
    """Chooses the words and draws the examples of their prompts."""


def find_occurrences(
    words: Sequence[Word], standing: Int[Tensor, " row"], *, at_least: int, at_most: int
) -> tuple[list[Word], Int[Tensor, " occurrence"], Int[Tensor, " occurrence"]]:
    """Those of `words` that occur `at_least` so often, the rows they stand in (the first `at_most`), and which of these
    words each row holds. `standing`: the token id at each row, or -1 where there is no whole word.
    """
    found: list[Word] = []
    rows, which = [torch.empty(0, dtype=torch.long)], [torch.empty(0, dtype=torch.long)]
    for word in words:
        at = (standing == word.token).nonzero().flatten()
        if len(at) >= at_least:
            rows.append(at[:at_most])
            which.append(torch.full_like(rows[-1], len(found)))
            found.append(word)
    return found, torch.cat(rows), torch.cat(which)


def whole_words(
    tokenizer: Any, special_ids: frozenset[int], tokens: Int[Tensor, "context position"]
) -> Bool[Tensor, "context position"]:
    """At which positions a token begins a word and the next token does not go on with it.

    In "running", cut into "runn" and "ing", the token "ing" is no word, and its letter is not the word's. What stands
    before a context's first token and after its last is not known: a first token counts only if it brings a space with
    it, a last one never does. BOS is expected at the first position. `special_ids`: token ids that are not text.
    """
    ids, index = tokens.unique(return_inverse=True)
    entries = tokenizer.convert_ids_to_tokens(ids.tolist())
    texts = ["" if i in special_ids else entry_text(tokenizer, e) for i, e in zip(ids.tolist(), entries, strict=True)]
    begins_inside, ends_inside = (
        torch.tensor([end.isalnum() or end == "_" for end in ends])[index]
        for ends in ([text[:1] for text in texts], [text[-1:] for text in texts])
    )
    goes_on = torch.ones_like(tokens, dtype=torch.bool)
    goes_on[:, :-1] = begins_inside[:, 1:]
    joined = torch.zeros_like(goes_on)
    joined[:, 1:] = begins_inside[:, 1:] & ends_inside[:, :-1]
    joined[:, :2] |= begins_inside[:, :2]
    return ~joined & ~goes_on & ends_inside


@dataclass(frozen=True)
class StabilityReference:
    """Words in many contexts, and running text. Activations are float32 on the CPU, letters are 0 to 25."""

    prompt_words: list[str]
    text_words: list[str]
    prompt_letters: Int[Tensor, " word"]
    prompt_activations: Float[Tensor, "word context d_in"]
    """Residual streams at a word, in prompts that differ in their examples."""
    prompt_probe: Bool[Tensor, "word context"]
    """Whether the ground-truth probe finds the word's letter there: what an SAE could find at best."""

    text_letters: Int[Tensor, " text_word"]
    occurrence_rows: Int[Tensor, " occurrence"]
    """Rows of `text_activations` at which a word stands."""
    occurrence_words: Int[Tensor, " occurrence"]
    """Which of `text_words` that is."""
    text_probe: Bool[Tensor, " occurrence"]
    text_activations: Float[Tensor, "row d_in"]
    """Residual streams of held-out text at all positions but special ones, in token order."""
    has_predecessor: Bool[Tensor, " row"]
    """Whether the row before is the token before, in the same context."""


def build_stability_reference(
    lm: LanguageModel,
    absorption: AbsorptionReference,
    prompts: AbsorptionConfig,
    config: StabilityConfig,
    tokens: Int[Tensor, "context position"],
    folder: Path | str,
) -> StabilityReference:
    """Compute the reference of a language model, or read it from `folder` where it has been computed before.

    `absorption`: the words and the ground-truth probe; `prompts`: how many examples a prompt has, and how many prompts
    a forward pass; `tokens`: held-out contexts with BOS in front, on the CPU.

    Raises ArtifactError: prompts without examples, which would all be the same.
    """
    if prompts.icl_examples == 0:
        raise ArtifactError(
            "evaluation.absorption.icl_examples: 0 makes every context of a word the same; "
            "stability across contexts needs 1 or more"
        )
    tokens = tokens[: config.text_contexts].cpu().long()
    made_from = {
        "lm": lm.identity,
        "absorption": json_key(
            [absorption.train_words, absorption.test_words, absorption.scored.tolist(),
             absorption.probe.weight.tolist(), absorption.probe.bias.tolist()]
        ),
        "icl_examples": prompts.icl_examples,
        "config": config.model_dump(mode="json"),
        "tokens": json_key(tokens.tolist()),
    }  # fmt: skip
    compute = partial(_compute, lm, absorption, prompts, config, tokens)
    return kept_reference(folder, STABILITY_REFERENCE, made_from, StabilityReference, compute)


@torch.no_grad()
def _compute(
    lm: LanguageModel,
    absorption: AbsorptionReference,
    prompts: AbsorptionConfig,
    config: StabilityConfig,
    tokens: Tensor,
) -> StabilityReference:
    vocabulary = {word.text: word for word in alphabetic_words(lm.tokenizer, lm.special_ids)}
    pool = [vocabulary[text] for text in (*absorption.train_words, *absorption.test_words)]
    evaluated = [vocabulary[absorption.test_words[index]] for index in absorption.scored.tolist()]
    generator, chosen = random.Random(config.seed), []
    for letter in range(len(LETTERS)):
        of_letter = [word for word in evaluated if word.letter == letter]
        chosen += generator.sample(of_letter, min(config.words_per_letter, len(of_letter)))
    # The residual stream at each word, in prompts with one example up to as many as absorption's have.
    in_prompts = torch.empty(0, config.contexts, lm.d_in)
    if chosen:
        pieces, read = prompt_pieces(lm.tokenizer), []
        for context in range(config.contexts):
            examples = 1 + context * (prompts.icl_examples - 1) // (config.contexts - 1)
            asked = build_prompts(chosen, pool, pieces, lm.bos_token_id, examples, config.seed + context)
            read.append(residual_at_words(lm, asked, prompts.lm_batch, f"words in context {context + 1}"))
        in_prompts = torch.stack(read, dim=1)

    kept = lm.not_special(tokens)
    has_predecessor = kept.clone()
    has_predecessor[:, 0] = False
    has_predecessor[:, 1:] &= kept[:, :-1]
    in_text = torch.cat(
        [
            lm.finite_stream(part)[mask.to(lm.device)].float().cpu()
            for part, mask in zip(tokens.split(prompts.lm_batch), kept.split(prompts.lm_batch), strict=True)
        ]
    )
    standing = torch.where(whole_words(lm.tokenizer, lm.special_ids, tokens), tokens, -1)[kept]
    in_text_words, rows, words = find_occurrences(
        evaluated, standing, at_least=config.min_occurrences, at_most=config.max_occurrences
    )

    def finds(activations: Float[Tensor, "row d_in"], letter: Int[Tensor, " row"]) -> Bool[Tensor, " row"]:
        return (absorption.probe.logits(activations) > 0)[torch.arange(len(letter)), letter]

    letters, text_letters = (
        torch.tensor([word.letter for word in some], dtype=torch.long) for some in (chosen, in_text_words)
    )
    probe = finds(in_prompts.flatten(0, 1), letters.repeat_interleave(config.contexts))
    return StabilityReference(
        prompt_words=[word.text for word in chosen],
        prompt_letters=letters,
        prompt_activations=in_prompts,
        prompt_probe=probe.view(len(chosen), config.contexts),
        text_words=[word.text for word in in_text_words],
        text_letters=text_letters,
        occurrence_rows=rows,
        occurrence_words=words,
        text_probe=finds(in_text[rows], text_letters[words]),
        text_activations=in_text,
        has_predecessor=has_predecessor[kept],
    )
