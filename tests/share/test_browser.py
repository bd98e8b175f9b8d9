"""Looking inside an SAE: every number against direct computation, and against the metrics that give the scores."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csc_array
from torch.nn import functional

from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.absorption.example import explain_word
from sae_lib.metrics.absorption.reference import AbsorptionReference, build_absorption_reference
from sae_lib.metrics.absorption.score import evaluate_absorption
from sae_lib.metrics.stability.seeds import seed_stability
from sae_lib.share.browser import Examination, show_absorption, show_latent
from sae_lib.share.browser.directions import logit_effects, match_seeds, neighbours
from sae_lib.share.browser.examination import examine
from sae_lib.share.browser.firing import AFTER, BEFORE, Firing, read_firing
from sae_lib.share.browser.letters import Carrier, LetterReading, WordReading, read_letters, roles
from sae_lib.share.browser.pieces import Pieces, visible
from sae_lib.util.errors import ArtifactError
from tests.metrics import conftest as letters_model
from tests.metrics.tiny_saes import make_sae
from tests.tiny_examination import CONFIG, D_IN, D_SAE, tiny_examination, tiny_sae, tiny_text
from tests.tiny_models import save_tiny_model

tokenizer, lm = letters_model.tokenizer, letters_model.lm


@pytest.fixture(scope="module")
def reference(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> AbsorptionReference:
    folder: Path = tmp_path_factory.mktemp("reference")
    return build_absorption_reference(lm, CONFIG, folder)


@pytest.fixture(scope="module")
def examination(lm: LanguageModel, reference: AbsorptionReference) -> Examination:
    return tiny_examination(lm, reference, seeds={1: tiny_sae(1), 2: tiny_sae(2)})


@pytest.fixture(scope="module")
def direct(lm: LanguageModel) -> torch.Tensor:
    """Activations [context, position, latent] computed in one go; -1 at BOS and EOS."""
    sae, tokens = tiny_sae(), tiny_text(lm)
    with torch.no_grad():
        f = sae.encode(lm.residual_stream(tokens)) * sae.W_dec.norm(dim=1)
    return f.masked_fill((tokens < 3)[..., None], -1)


# Where latents fire.


def test_density_and_maximum_are_those_of_the_text_without_special_tokens(examination, direct):
    seen = direct[direct[..., 0] >= 0]
    assert examination.firing.kept == len(seen) == 24 * 38
    np.testing.assert_allclose(examination.firing.density, (seen > 0).double().mean(dim=0), rtol=1e-6)
    np.testing.assert_allclose(examination.firing.maximum, seen.amax(dim=0), rtol=1e-5)
    assert examination.firing.density[7] == 0 and examination.firing.examples(7) == []


def test_examples_hold_the_activations_of_their_contexts_and_begin_with_the_strongest(examination, direct):
    for latent in range(D_SAE):
        examples = examination.firing.examples(latent)
        of_context = direct[..., latent].amax(dim=1)
        assert len(examples) == min(12, int((of_context > 0).sum()))
        assert len({example.context for example in examples}) == len(examples)
        peaks = [example.activations[example.peak - example.start] for example in examples]
        assert peaks == pytest.approx([float(of_context[example.context]) for example in examples], rel=1e-5)
        assert peaks == sorted(peaks, reverse=True)
        assert [example.strongest for example in examples] == sorted((e.strongest for e in examples), reverse=True)
        for example in examples:
            stop = example.start + len(example.activations)
            assert (example.start, stop) == (max(0, example.peak - BEFORE), min(40, example.peak + AFTER + 1))
            window = direct[example.context, example.start : stop, latent].clamp(min=0)
            assert example.activations == pytest.approx(window.tolist(), rel=1e-5)


def hand_made(peaks: dict[int, float], tokens: torch.Tensor) -> Firing:
    """One latent that fires at the given places (context * length + position)."""
    activations = np.zeros((tokens.numel(), 1), dtype=np.float32)
    activations[list(peaks), 0] = list(peaks.values())
    return Firing(tokens, csc_array(activations), tokens.numel())


def test_repeated_text_stands_back_and_the_rest_is_spread_over_the_ranks():
    tokens = torch.arange(40).reshape(8, 5)
    tokens[1] = tokens[0]  # the same context twice
    peaks = {5 * context + 4: 8.0 - context for context in range(8)}
    firing = hand_made(peaks | {2: 0.5}, tokens)
    shown = firing.examples(0, strongest=2, spread=2)
    # Contexts 0 and 2 are the strongest with texts of their own; of 1, 3, 4, 5, 6, 7 the middle and the last are shown
    assert [(e.context, e.strongest) for e in shown] == [(0, True), (2, True), (4, False), (7, False)]
    assert shown[0].activations == [0, 0, 0.5, 0, 8.0] and shown[0].peak == 4
    repeated = hand_made({4: 3.0, 9: 2.0}, tokens[:2])
    assert [e.context for e in repeated.examples(0)] == [0, 1]  # nothing else is there


def test_the_same_firing_whatever_the_batch(lm):
    one, many = (read_firing(tiny_sae(), lm, tiny_text(lm), batch) for batch in (1, 24))
    np.testing.assert_allclose(one.activations.toarray(), many.activations.toarray(), rtol=1e-4, atol=1e-5)


# Directions.


def test_logit_effects_are_direction_times_unembedding_less_the_mean(lm):
    sae = tiny_sae()
    found = logit_effects(sae, lm, few=5)
    unembedding = lm.model.get_output_embeddings().weight.detach()[3 : len(lm.tokenizer)]  # without special tokens
    effect = functional.normalize(sae.W_dec, dim=1) @ unembedding.T
    effect = effect - effect.mean(dim=1, keepdim=True)
    order = effect.argsort(dim=1, descending=True)
    assert torch.equal(found.promoted.indices, order[:, :5] + 3)
    assert torch.equal(found.suppressed.indices, order.flip(1)[:, :5] + 3)
    torch.testing.assert_close(found.promoted.values, effect.gather(1, order[:, :5]), rtol=1e-4, atol=1e-5)


def test_the_effect_is_the_change_of_the_heads_logits(lm):
    """The head is linear but for its soft cap, so a small step along a direction changes logits by the effect."""
    sae = tiny_sae()
    found = logit_effects(sae, lm, few=3)
    step = 1e-2 * functional.normalize(sae.W_dec[:4], dim=1)
    logits = lm.head(torch.cat([step, torch.zeros(1, D_IN)]))[:, 3 : len(lm.tokenizer)]
    change = (logits[:4] - logits[4]) / 1e-2
    change = change - change.mean(dim=1, keepdim=True)
    torch.testing.assert_close(found.promoted.values[:4], change.topk(3, dim=1).values, rtol=2e-2, atol=1e-3)


def test_a_cut_model_has_no_logit_effects(lm, tokenizer):
    cut = LanguageModel(lm.model, tokenizer, name="cut", layer=1, whole=False, identity="cut")
    with pytest.raises(ArtifactError, match="cut is loaded without its unembedding; load it with whole=True"):
        logit_effects(tiny_sae(), cut)


def test_neighbours_are_the_largest_cosines_without_the_latent_itself():
    sae = tiny_sae()
    cosines = functional.normalize(sae.W_dec.detach(), dim=1) @ functional.normalize(sae.W_dec.detach(), dim=1).T
    cosines.fill_diagonal_(-1)
    found = neighbours(sae, few=4)
    assert torch.equal(found.indices, cosines.argsort(dim=1, descending=True)[:, :4])
    torch.testing.assert_close(found.values, cosines.topk(4, dim=1).values)


def test_seeds_agree_with_the_stability_metric_latent_by_latent():
    sae, others = tiny_sae(), {1: tiny_sae(1), 2: tiny_sae(2)}
    found = match_seeds(sae, others)
    table = seed_stability({0: sae, **others})
    expected = table.loc[table["seed_a"] == 0, "matched_cosine"].tolist()
    assert found.cosines.mean(dim=1).tolist() == pytest.approx(expected, rel=1e-5)
    assert found.seeds == (1, 2) and found.kind == "one-to-one"
    nearest = match_seeds(sae, others, exact_up_to=D_SAE - 1)
    assert nearest.kind == "nearest" and (nearest.cosines >= found.cosines - 1e-6).all()
    assert found.chance == pytest.approx(expected[0], abs=0.05)  # untrained SAEs are random directions too


def test_a_permuted_sae_is_found_again_exactly():
    sae, order = tiny_sae(), torch.randperm(D_SAE, generator=torch.Generator().manual_seed(0))
    permuted = tiny_sae()
    permuted.load_state_dict(sae.state_dict())
    with torch.no_grad():
        permuted.W_dec.copy_(3 * sae.W_dec[order])
    assert match_seeds(sae, {1: permuted}).cosines[0].tolist() == pytest.approx([1.0] * D_SAE, abs=1e-5)


def test_seeds_of_another_size():
    small = make_sae(d_in=D_IN, architecture="topk", k=4, d_sae=10)
    assert int(match_seeds(tiny_sae(), {5: small}).cosines.isnan().sum()) == D_SAE - 10
    assert math.isnan(match_seeds(tiny_sae(), {}).chance)
    with pytest.raises(ArtifactError, match="d_in of seed 5 is 8, not 32"):
        match_seeds(tiny_sae(), {5: make_sae(d_in=8, architecture="topk", k=4, d_sae=10)})


# Letters.


def test_letters_and_words_average_to_the_score(examination, reference):
    scored = evaluate_absorption(tiny_sae(), reference, CONFIG)
    found = {reading.letter: reading for reading in examination.letters}
    assert list(found) == scored.letters["letter"].tolist()
    assert {letter: reading.main for letter, reading in found.items()} == scored.main_latents
    for row in scored.letters.itertuples():
        reading = found[row.letter]
        assert len(reading.words) == row.true_positives
        assert reading.fraction == pytest.approx(row.absorption_fraction, abs=1e-6)
        assert reading.full == pytest.approx(row.absorption_full, abs=1e-6)
        assert sum(map(reading.count, ("fires", "shared", "absorbed", "missed"))) == len(reading.words)
    assert scored.letters["absorption_fraction"].max() > 0


def test_each_word_by_the_definition(examination, reference, lm):
    sae = tiny_sae()
    p = functional.normalize(reference.probe.weight, dim=1)
    cosines = p @ functional.normalize(sae.W_dec.detach(), dim=1).T
    streams = dict(zip(reference.scored.tolist(), reference.scored_activations, strict=True))
    absorbed = 0
    for reading in examination.letters:
        letter = "abcdefghijklmnopqrstuvwxyz".index(reading.letter)
        assert all(word.word.strip()[0].lower() == reading.letter for word in reading.words)
        for word in reading.words:
            x = streams[reference.test_words.index(word.word)]
            f = (sae.encode(x[None])[0] * sae.W_dec.norm(dim=1)).detach()
            projections = f * cosines[letter]
            assert word.on_probe == pytest.approx(float(x @ p[letter]), abs=1e-4)
            assert [carrier.latent for carrier in word.main] == reading.main
            assert [c.projection for c in word.main] == pytest.approx(projections[reading.main].tolist(), abs=1e-4)
            free = [
                i for i in range(D_SAE) if i not in reading.main and cosines[letter, i] >= 0.1 and projections[i] > 0
            ]
            strongest = sorted(free, key=lambda i: -float(projections[i]))[:3]
            assert [carrier.latent for carrier in word.others] == strongest
            assert word.largest.latent == int(projections.argmax())
            absorbed += bool(word.absorbers)
            assert bool(word.absorbers) == (word.fraction > 0 or word.full)
    assert absorbed > 0


def test_the_most_absorbed_word_is_the_one_that_explains_the_metric(examination, reference):
    example = explain_word(tiny_sae(), reference, CONFIG)
    words = {word.word: word for word in examination.letter(example.letter).words}
    found = words[example.word]
    assert found.fraction == pytest.approx(example.numbers["fraction"], abs=1e-6)
    assert found.on_probe == pytest.approx(example.numbers["P"], abs=1e-4)
    assert sum(carrier.projection for carrier in found.others) == pytest.approx(example.numbers["T"], abs=1e-4)


def word_of(main: float, other: float, *, fraction: float, full: bool = False, name: str = "w") -> WordReading:
    """A word with P = 2, one latent of the letter's own (4) and one other (9), with these projections."""
    own, theirs = Carrier(4, main / 0.5, 0.5), Carrier(9, other / 0.25, 0.25)
    return WordReading(
        name, 2.0, [own], [theirs] if other else [], max(own, theirs, key=lambda c: c.projection), fraction, full
    )


def test_verdicts_shares_and_the_letter_that_shows_absorption_best():
    fires, shared = word_of(1.8, 0.1, fraction=0, name="a"), word_of(1, 1, fraction=0.5, name="b")
    absorbed, missed = word_of(0, 2, fraction=1, full=True, name="c"), word_of(0, 0, fraction=0, name="d")
    assert [w.verdict for w in (fires, shared, absorbed, missed)] == ["fires", "shared", "absorbed", "missed"]
    assert fires.absorbers == [] and [c.latent for c in shared.absorbers] == [9]
    assert (shared.own_share, shared.absorbed_share, fires.absorbed_share) == (0.5, 0.5, 0)
    assert shared._replace(on_probe=-1.0).own_share == 0
    full = absorbed._replace(fraction=0.0, others=[])  # below the cosine of the fraction, above that of the full score
    assert full.absorbers == [full.largest] and full.verdict == "absorbed"
    reading = LetterReading("x", [4], 1.0, [absorbed, shared, fires, missed])
    assert (reading.fraction, reading.full, reading.contrast, reading.seen) == (0.375, 0.25, [fires], 1)
    assert LetterReading("x", [4], 1.0, [absorbed, shared]).seen == 0


def test_roles_name_what_a_latent_is_most():
    x = LetterReading("x", [4, 5], 1.0, [word_of(0, 2, fraction=1, name="xa")])
    y = LetterReading("y", [9], 1.0, [])
    z = LetterReading("z", [5], 1.0, [word_of(0, 2, fraction=1, name=name) for name in ("za", "zb")])
    found = roles([x, y, z])
    assert found[4] == [("main", "x", [])]
    assert found[5] == [("main", "z", []), ("split", "x", [])]
    assert found[9] == [("main", "y", []), ("absorber", "z", ["za", "zb"]), ("absorber", "x", ["xa"])]


# All of it together.


def test_letters_can_be_asked_for_and_left_out(examination, lm):
    assert examination.letter("B") is examination.letter("b")
    best = examination.letter()
    assert best.seen == max(reading.seen for reading in examination.letters)
    with pytest.raises(ArtifactError, match="letter: 'ä' does not count here; choose one of abc"):
        examination.letter("ä")
    without = tiny_examination(lm, None)
    assert without.roles == {} and without.nearest_letter(0) is None
    with pytest.raises(ArtifactError, match="letters: none counts here"):
        show_absorption(without)


def test_the_nearest_letter_has_the_largest_cosine_of_those_that_count(examination, reference):
    _, cosines = read_letters(tiny_sae(), reference, CONFIG)
    counted = [reading.letter for reading in examination.letters]
    values = {letter: float(cosines["abcdefghijklmnopqrstuvwxyz".index(letter), 3]) for letter in counted}
    letter = max(values, key=lambda name: values[name])
    assert examination.nearest_letter(3) == (letter, pytest.approx(values[letter]))


def test_what_does_not_fit_is_refused(lm, reference, tmp_path):
    sae = make_sae(d_in=8, architecture="topk", k=2, d_sae=16)
    with pytest.raises(ArtifactError, match="d_in is 8, the residual stream of tiny is 32"):
        examine(sae, lm, tiny_text(lm))
    other = LanguageModel.load(save_tiny_model(tmp_path / "model"), whole=True)
    with pytest.raises(ArtifactError, match="d_in is 16, the reference's residual stream has 32"):
        sae = make_sae(d_in=16, architecture="topk", k=2, d_sae=16)
        examine(sae, other, torch.randint(4, 40, (2, 8)), reference, CONFIG)
    with pytest.raises(ArtifactError, match="latent: 64 is not one of 0 to 63"):
        show_latent(tiny_examination(lm, None), 64)


def test_facts_say_what_was_looked_at(examination):
    assert examination.facts["latents"].startswith("64, of which")
    assert "24 contexts, 912 tokens" in examination.facts["text"]
    assert float(examination.facts["active per token (L0)"]) == pytest.approx(4, abs=0.1)


# Tokens.


def test_no_character_of_a_token_is_invisible():
    assert visible("a b") == "a b"
    assert visible("\n\t\x00\x7f\u200b\u202e\u2028\ud800") == "⏎␉␀⟨007F⟩⟨200B⟩⟨202E⟩⟨2028⟩⟨D800⟩"
    assert visible("é漢🙂") == "é漢🙂"


def test_pieces_of_a_byte_level_tokenizer(tokenizer):
    pieces = Pieces(tokenizer)
    ids = tokenizer("ba\n €", add_special_tokens=False)["input_ids"]
    assert "".join(pieces[token] for token in ids) == "ba⏎ ⟨E2⟩⟨82⟩⟨AC⟩"
    assert pieces[0] == "<bos>"
