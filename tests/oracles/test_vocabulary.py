"""Words, prompts and residual streams of the first-letter task, against SAEBench's own."""

import pytest

pytest.importorskip("sae_bench", reason="the oracles' environment is not this one: make test-oracles")

import torch
from sae_bench.evals.absorption.probing import create_dataset_probe_training
from sae_bench.evals.absorption.prompting import create_icl_prompt, first_letter_formatter
from sae_bench.evals.absorption.vocab import get_alpha_tokens
from transformer_lens import HookedTransformer

from benchmarks.saebench import TEMPLATE, TOKEN_POSITION
from sae_lib.data.language_model import LanguageModel
from sae_lib.data.words import Word, alphabetic_words, build_prompts, prompt_pieces, single_token_words, split_words

HOOK = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def words(pocket: LanguageModel) -> list[Word]:
    return alphabetic_words(pocket.tokenizer, pocket.special_ids)


def test_the_words_are_those_of_saebench(pocket: LanguageModel, words: list[Word]) -> None:
    assert [word.text for word in words] == sorted(get_alpha_tokens(pocket.tokenizer))
    assert len(words) > 7000


def test_the_split_is_as_large_as_saebench_makes_it(words: list[Word]) -> None:
    some = words[:403]
    train, test = split_words(some, 0.8, seed=0)
    their_train, their_test = create_dataset_probe_training(
        [word.text for word in some], first_letter_formatter(), num_prompts_per_token=1, base_template=TEMPLATE
    )
    assert (len(train), len(test)) == (len(their_train), len(their_test))
    letters = {prompt.word: letter for prompt, letter in their_train + their_test}
    assert letters == {word.text: word.letter for word in some}


@pytest.mark.parametrize("examples", [0, 10])
def test_a_prompt_has_the_tokens_that_saebench_reads(
    pocket: LanguageModel, hooked: HookedTransformer, words: list[Word], examples: int
) -> None:
    """Our prompts are built from ids, SAEBench's from text; the word stands where SAEBench looks for it."""
    pieces = prompt_pieces(pocket.tokenizer)
    asked = single_token_words(pocket.tokenizer, words, pieces)[5::900]
    prompts = build_prompts(asked, words, pieces, pocket.bos_token_id, examples, seed=3)
    for word, row, position in zip(asked, prompts.tokens, prompts.position.tolist(), strict=True):
        shown = _examples(pocket, row.tolist(), words)
        theirs = create_icl_prompt(
            word.text,
            examples=shown,
            base_template=TEMPLATE,
            answer_formatter=first_letter_formatter(),
            max_icl_examples=examples,
            shuffle_examples=False,
            prepend_separator_to_first_example=True,
        )
        if examples:
            assert hooked.to_tokens(theirs.base)[0].tolist() == row.tolist()
            assert hooked.tokenizer.bos_token_id == row[0]
        # Without examples SAEBench's text opens with two newlines, ours with one.
        assert hooked.to_tokens(theirs.base)[0, TOKEN_POSITION] == word.token == row[position]
        assert position - len(row) == TOKEN_POSITION


def _examples(pocket: LanguageModel, row: list[int], words: list[Word]) -> list[str]:
    """The example words of one of our prompts."""
    texts = {word.token: word.text for word in words}
    question = prompt_pieces(pocket.tokenizer).question
    starts = [at for at in range(len(row)) if row[at : at + len(question)] == question]
    return [texts[row[at - 1]] for at in starts[:-1]]


def test_the_residual_stream_is_that_of_transformer_lens(
    pocket: LanguageModel, hooked: HookedTransformer, words: list[Word]
) -> None:
    prompts = build_prompts(
        words[::700], words, prompt_pieces(pocket.tokenizer), pocket.bos_token_id, examples=10, seed=3
    )
    at = torch.arange(len(prompts.tokens))
    ours = pocket.residual_stream(prompts.tokens)[at, prompts.position]
    _, cache = hooked.run_with_cache(prompts.tokens, names_filter=[HOOK])
    theirs = cache[HOOK][:, TOKEN_POSITION]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
