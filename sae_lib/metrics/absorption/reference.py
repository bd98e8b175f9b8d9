"""What absorption needs from the language model: computed once for a model, layer and configuration, kept on disk.

Every SAE is scored on the same words, prompts, residual streams and ground-truth probe. Only the residual stream at the
word is kept, so the file holds a few thousand vectors and not a corpus.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from sae_lib.data import words as vocabulary
from sae_lib.data.language_model import LanguageModel
from sae_lib.data.words import LETTERS, PromptPieces, Prompts, Word, build_prompts, split_words
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.probes import LinearProbes, f1_score, initial_probes, train_probes
from sae_lib.metrics.stored_reference import kept_reference
from sae_lib.util.errors import ModelLacks
from sae_lib.util.keys import Stage

LEFT_OUT_EXAMPLES = 5
# What only the scoring of an SAE reads: changing it does not make a language model's reference stale.
SCORING_FIELDS = {
    "lm_batch", "min_probe_f1", "min_letters", "sparse_batch", "sparse_min_steps", "sparse_weight_decay", "sparse_l1",
    "latent_bytes", "k_max", "f1_jump", "logistic_max_iter", "fraction_min_cosine", "full_min_cosine",
    "min_projection_share", "max_absorbing_latents", "silent_below",
}  # fmt: skip

ABSORPTION_REFERENCE = Stage("absorption reference", 1)


@dataclass(frozen=True)
class AbsorptionReference:
    """Words, residual streams at the words (float32, on the CPU) and the ground-truth probe."""

    train_words: list[str]
    test_words: list[str]
    train_activations: Float[Tensor, "train d_in"]
    test_activations: Float[Tensor, "test d_in"]
    probe: LinearProbes
    probe_f1: list[float]
    """F1 on the test words, one value for each letter."""
    scored: Int[Tensor, " scored"]
    """Which test words the probe finds (true positives): the words that absorption is measured on."""
    scored_activations: Float[Tensor, "scored d_in"]
    """Residual streams at those words, in fresh prompts."""
    left_out: int
    """Alphabetic vocabulary entries that are not one token in the prompt's text, and so not used."""
    left_out_examples: Sequence[str] = ()
    lacking: str = ""
    """Why this model allows no words, where it has none."""

    @classmethod
    def without_words(cls, d_in: int, why: str) -> "AbsorptionReference":
        """Of a model that allows none: no letter counts, and what words have no part in is measured all the same."""
        none = torch.empty(0, d_in)
        probe = LinearProbes(torch.zeros(len(LETTERS), d_in), torch.zeros(len(LETTERS)))
        f1, scored = [0.0] * len(LETTERS), torch.empty(0, dtype=torch.long)
        return cls([], [], none, none, probe, f1, scored, none, left_out=0, lacking=why)

    def counted(self, least_f1: float) -> list[int]:
        """The letters that count: those that the probe finds, as indices into the alphabet."""
        return [letter for letter, f1 in enumerate(self.probe_f1) if f1 > least_f1]

    @staticmethod
    def class_of(word: str) -> int:
        """What the probe tells of a word: its letter, as an index into the alphabet."""
        return LETTERS.index(word.strip()[0].lower())

    @cached_property
    def train_labels(self) -> Int[Tensor, " train"]:
        """The letter of each training word, as an index into the alphabet."""
        return torch.tensor([self.class_of(word) for word in self.train_words], dtype=torch.long)

    @cached_property
    def test_labels(self) -> Int[Tensor, " test"]:
        return torch.tensor([self.class_of(word) for word in self.test_words], dtype=torch.long)

    @cached_property
    def scored_labels(self) -> Int[Tensor, " scored"]:
        return self.test_labels[self.scored]


def build_absorption_reference(lm: LanguageModel, config: AbsorptionConfig, folder: Path | str) -> AbsorptionReference:
    """Compute it, or read it from `folder` where it has been before. Raises ModelLacks: the tokenizer has too few
    alphabetic tokens, or does not keep the prompt's pieces apart, or the model has fewer positions than a prompt."""
    made_from = {"lm": lm.identity, "config": config.model_dump(exclude=SCORING_FIELDS)}
    return kept_reference(
        folder, ABSORPTION_REFERENCE, made_from, AbsorptionReference, lambda: _compute(lm, config),
        {"probe": LinearProbes},
    )  # fmt: skip


def words_of_model(
    tokenizer: Any, special_ids: frozenset[int], positions: int | None, name: str, config: AbsorptionConfig
) -> tuple[list[Word], list[Word], PromptPieces]:
    """The words that are one token in a prompt, the other alphabetic entries, and what stands between the words.

    `positions`: how many a model with learned positions has. Raises ModelLacks: as `build_absorption_reference`.
    """
    pieces = vocabulary.prompt_pieces(tokenizer)
    alphabetic = vocabulary.alphabetic_words(tokenizer, special_ids)
    usable = vocabulary.single_token_words(tokenizer, alphabetic, pieces)
    needed = config.icl_examples + 1
    there = min(map(len, split_words(usable, config.train_fraction, config.seed)))
    if there < needed:
        raise ModelLacks(
            f"{name} has too few alphabetic tokens for first-letter absorption: {config.icl_examples} examples need "
            f"{needed} of them in each split, and there are {there}"
        )
    length = build_prompts(usable[:1], usable, pieces, 0, config.icl_examples, config.seed).tokens.shape[1]
    if positions is not None and length > positions:
        raise ModelLacks(
            f"{name} has {positions} positions, and first-letter absorption reads {length} tokens; "
            "evaluation.absorption.icl_examples shortens them"
        )
    return usable, sorted(set(alphabetic) - set(usable)), pieces


def _drawn(
    lm: LanguageModel, config: AbsorptionConfig
) -> tuple[list[Word], list[Word], list[Word], list[Word], PromptPieces]:
    """The words that are used, those for training and those for testing; what is left out, what stands between."""
    usable, left_out, pieces = words_of_model(lm.tokenizer, lm.special_ids, lm.max_positions, lm.name, config)
    words = vocabulary.choose_words(usable, config.max_words, config.seed)
    return words, *split_words(words, config.train_fraction, config.seed), left_out, pieces


def prompts_of_scored(
    lm: LanguageModel, reference: AbsorptionReference, config: AbsorptionConfig
) -> tuple[Prompts, PromptPieces]:
    """The prompts in which the scored words were read, and what stands between their words."""
    words, _, test, _, pieces = _drawn(lm, config)
    scored, seed = [test[index] for index in reference.scored.tolist()], config.absorption_prompt_seed
    return build_prompts(scored, words, pieces, lm.bos_token_id, config.icl_examples, seed), pieces


@torch.no_grad()
def _compute(lm: LanguageModel, config: AbsorptionConfig) -> AbsorptionReference:
    words, train, test, left_out, pieces = _drawn(lm, config)

    def read(asked: list[Word], pool: list[Word], seed: int, what: str) -> Float[Tensor, "word d_in"]:
        prompts = build_prompts(asked, pool, pieces, lm.bos_token_id, config.icl_examples, seed)
        return residual_at_words(lm, prompts, config.lm_batch, what)

    train_activations = read(train, train, config.probe_prompt_seed, "words for the probe")
    test_activations = read(test, test, config.probe_prompt_seed + 1, "words for its test")
    train_labels, test_labels = (torch.tensor([word.letter for word in some]) for some in (train, test))
    probe = ground_truth_probe(train_activations, train_labels, config, lm.device)
    found = probe.logits(test_activations) > 0
    scored = found[torch.arange(len(test)), test_labels].nonzero().flatten()
    scored_words = [test[index] for index in scored.tolist()]
    return AbsorptionReference(
        train_words=[word.text for word in train],
        test_words=[word.text for word in test],
        train_activations=train_activations,
        test_activations=test_activations,
        probe=probe,
        probe_f1=[f1_score(found[:, letter], test_labels == letter) for letter in range(len(LETTERS))],
        scored=scored,
        scored_activations=read(scored_words, words, config.absorption_prompt_seed, "words for absorption"),
        left_out=len(left_out),
        left_out_examples=[word.text for word in left_out[:LEFT_OUT_EXAMPLES]],
    )


def ground_truth_probe(
    rows: Float[Tensor, "word d_in"], labels: Int[Tensor, " word"], config: AbsorptionConfig, device: torch.device
) -> LinearProbes:
    """The probe of these words' classes, of which there are at most as many as letters; trained on `device`."""
    rows = rows.to(device)
    initial = LinearProbes(*(each.to(device) for each in initial_probes(rows.shape[1], len(LETTERS), config.seed)))
    (trained,) = train_probes(
        [lambda index: rows[index]], labels.to(device), [initial], epochs=config.probe_epochs, batch=config.probe_batch,
        learning_rate=config.probe_learning_rate, final_learning_rate=config.probe_final_learning_rate,
        weight_decay=config.probe_weight_decay, seed=config.seed,
    )  # fmt: skip
    return LinearProbes(*(each.cpu() for each in trained))


def residual_at_words(lm: LanguageModel, prompts: Prompts, batch: int, what: str) -> Float[Tensor, "word d_in"]:
    """Residual streams at each prompt's word, float32, on the CPU."""
    read = [torch.empty(0, lm.d_in)]
    with tqdm(desc=what, total=len(prompts.tokens), unit="word", mininterval=5) as bar:
        for start in range(0, len(prompts.tokens), batch):
            tokens, position = (part[start : start + batch] for part in prompts)
            residual = lm.finite_stream(tokens.to(lm.device))
            at = torch.arange(len(tokens), device=residual.device)
            read.append(residual[at, position.to(residual.device)].float().cpu())
            bar.update(len(tokens))
    return torch.cat(read)
