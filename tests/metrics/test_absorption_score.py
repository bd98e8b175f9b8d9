"""The score of a word, worked out by hand; the score of an SAE, built by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.metrics.absorption import main_latents as latents
from sae_lib.metrics.absorption import score
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.main_latents import WordLatents, unit_latents
from sae_lib.metrics.absorption.probes import LinearProbes
from sae_lib.metrics.absorption.reference import AbsorptionReference
from sae_lib.metrics.absorption.score import (
    Letters,
    evaluate_absorption,
    evaluate_absorption_many,
    score_words_of_letters,
)
from sae_lib.util.errors import ArtifactError
from tests.metrics.tiny_saes import make_sae, sae_of
from tests.metrics.words_of_a_letter import score_words

CONFIG = AbsorptionConfig()

# Latent 0 is the letter's own. Latents 1 to 4 may absorb, 5 has a cosine for full absorption only, 6 for
# neither.
COSINES = [1.0, 0.5, 0.5, 0.5, 0.5, 0.05, 0.02]

# P, activations, (fraction, full, unthresholded)
CASES = {
    # M = 0, T = 2 * .5 = 1, T / P = .5. A = 1.
    "one latent absorbs all": (2.0, [0, 2, 0, 0, 0, 0, 0], (1, True, 1)),
    # M = 1, T = 2, T / P = .5, q = min(2, 3) = 2, 2 / (2 + 1). A = 3, (3 - 1) / 3.
    "the letter fires weakly": (4.0, [1, 4, 0, 0, 0, 0, 0], (2 / 3, False, 2 / 3)),
    # M = 1.5, T = 1, q = min(1, .5) = .5, .5 / 2. A = 2.5, 1 / 2.5.
    "no more than what is missing": (2.0, [1.5, 2, 0, 0, 0, 0, 0], (0.25, False, 0.4)),
    # T = 1.5, T / P = .375 < .4. A = 2.5, 1.5 / 2.5.
    "below the share": (4.0, [1, 3, 0, 0, 0, 0, 0], (0, False, 0.6)),
    # T = 1, T / P = .4, not below.
    "exactly the share": (2.5, [0, 2, 0, 0, 0, 0, 0], (1, True, 1)),
    # M = P.
    "the letter carries everything": (1.0, [1, 2, 0, 0, 0, 0, 0], (0, False, 0)),
    # Four absorbers of .5 each, the strongest three count: T = 1.5, T / P = .375. The largest alone is .125.
    "three absorbers at most": (4.0, [0, 1, 1, 1, 1, 0, 0], (0, False, 1)),
    # Three of .6: T / P = .45, and the letter is silent, but no latent alone has .4.
    "together, not alone": (4.0, [0, 1.2, 1.2, 1.2, 0, 0, 0], (1, False, 1)),
    # proj = 40 * .05 = 2, half of P: cosine .05 is enough for full (.025), not for the fraction (.1).
    "cosine between the two limits": (4.0, [0, 0, 0, 0, 0, 40, 0], (0, True, 1)),
    # proj = 100 * .02 = 2 at cosine .02: enough for neither.
    "cosine below both limits": (4.0, [0, 0, 0, 0, 0, 0, 100], (0, False, 1)),
    "almost silent is silent": (2.0, [1e-9, 2, 0, 0, 0, 0, 0], (1, True, 1)),
    "faint is not silent": (2.0, [1e-7, 2, 0, 0, 0, 0, 0], (1, False, 1)),
    # M = 0 >= P.
    "the probe is off": (-1.0, [0, 1, 0, 0, 0, 0, 0], (0, False, 0)),
    "nothing fires": (1.0, [0, 0, 0, 0, 0, 0, 0], (0, False, 0)),
    "nothing at all": (0.0, [0, 0, 0, 0, 0, 0, 0], (0, False, 0)),
}


@pytest.mark.parametrize("case", CASES)
def test_word_scores_by_hand(case):
    on_probe, activations, (fraction, full, unthresholded) = CASES[case]
    x, f = torch.tensor([[on_probe]]), torch.tensor([activations], dtype=torch.float32)
    scores = score_words(x, f, torch.ones(1), torch.tensor(COSINES), torch.tensor([0]), CONFIG)
    assert scores.fraction.item() == pytest.approx(fraction, abs=1e-6)
    assert scores.full.item() is full
    assert scores.unthresholded.item() == pytest.approx(unthresholded, abs=1e-6)


def test_a_negative_main_projection_is_no_projection():
    # The main latent points away from the probe: M = -1 <= 0, so what the absorber carries is all there is.
    # A = -1 + 2 = 1, (1 - -1) / 1 = 2, cut to 1.
    x, f, cosines = torch.tensor([[2.0]]), torch.tensor([[2.0, 4.0]]), torch.tensor([-0.5, 0.5])
    scores = score_words(x, f, torch.ones(1), cosines, torch.tensor([0]), CONFIG)
    assert (scores.fraction.item(), scores.full.item(), scores.unthresholded.item()) == (1, False, 1)


def one_word(x, latents, direction, cosines, main):
    """The formulae, one number at a time."""
    projections = [a * c for a, c in zip(latents, cosines, strict=True)]
    P = sum(a * b for a, b in zip(x, direction, strict=True))
    M = sum(projections[i] for i in main)
    others = [projections[i] for i in range(len(latents)) if i not in main and cosines[i] >= 0.1 and projections[i] > 0]
    T = sum(sorted(others, reverse=True)[:3])
    A = sum(projections)
    if M >= P or T / P < 0.4:
        fraction = 0.0
    elif M <= 0:
        fraction = 1.0
    else:
        q = min(T, P - M)
        fraction = q / (q + M)
    best = max(range(len(latents)), key=lambda i: projections[i])
    full = all(latents[i] < 1e-8 for i in main) and cosines[best] >= 0.025 and P >= 0 and projections[best] / P >= 0.4
    unthresholded = 0.0 if M >= P or A <= 0 else min(max((A - M) / A, 0.0), 1.0)
    return fraction, full, unthresholded


@pytest.mark.parametrize("main", [[3], [0, 7], [11, 2, 5, 9]])
def test_word_scores_agree_with_a_slow_loop(main):
    generator = torch.Generator().manual_seed(len(main))
    directions = F.normalize(torch.randn(24, 6, generator=generator), dim=1)
    direction = F.normalize(directions[main].sum(0) + 0.3 * torch.randn(6, generator=generator), dim=0)
    latents = (torch.randn(400, 24, generator=generator) - 0.8).relu()
    latents[::2, main] = 0
    residual = latents @ directions + 0.2 * torch.randn(400, 6, generator=generator)
    cosines = directions @ direction
    scores = score_words(residual, latents, direction, cosines, torch.tensor(main), CONFIG)
    expected = [
        one_word(x, a, direction.tolist(), cosines.tolist(), main)
        for x, a in zip(residual.tolist(), latents.tolist(), strict=True)
    ]
    fraction, full, unthresholded = zip(*expected, strict=True)
    assert scores.fraction.tolist() == pytest.approx(fraction, abs=1e-5)
    assert scores.full.tolist() == list(full)
    assert scores.unthresholded.tolist() == pytest.approx(unthresholded, abs=1e-5)
    # The comparison covers every branch.
    assert 0 < sum(full) < 400
    assert {0.0, 1.0} < set(fraction) and any(0 < value < 1 for value in fraction)


def test_words_of_all_letters_score_as_they_do_letter_by_letter():
    generator = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(4, 6, generator=generator), dim=1)
    decoder = F.normalize(torch.randn(24, 6, generator=generator), dim=1)
    is_main = torch.rand(4, 24, generator=generator) < 0.1
    words = (torch.randn(300, 24, generator=generator) - 0.8).relu()
    letter = torch.randint(0, 4, (300,), generator=generator)
    residual = words @ decoder
    cosines = directions @ decoder.T
    together = score_words_of_letters(residual, words, letter, Letters(directions, cosines, is_main), CONFIG)
    for i in range(4):
        own, main = letter == i, is_main[i].nonzero().flatten()
        alone = score_words(residual[own], words[own], directions[i], cosines[i], main, CONFIG)
        torch.testing.assert_close(together.fraction[own], alone.fraction, atol=1e-6, rtol=1e-5)
        assert torch.equal(together.full[own], alone.full)
        torch.testing.assert_close(together.unthresholded[own], alone.unthresholded, atol=1e-6, rtol=1e-5)
    assert together.full.any() and (together.fraction > 0).any()


CHILDREN = 5
A_WORDS = 100


def residuals(seed: int) -> tuple[list[str], torch.Tensor]:
    """100 words with a, two for each of five children; 60 with b. Axis 0 is a, 1 is b, 2 to 6 are the
    children."""
    words = ["a"] * A_WORDS + ["b"] * 60
    x = torch.zeros(len(words), 2 + CHILDREN)
    x[:A_WORDS, 0] = 1
    x[A_WORDS:, 1] = 1
    for child in range(CHILDREN):
        x[2 * child : 2 * child + 2, 2 + child] = 1
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(seed))
    return [words[i] for i in order.tolist()], x[order]


def hand_made_reference() -> AbsorptionReference:
    """Probes along the axes. Letter c passes nothing: its F1 is not above 0.6 but equal to it."""
    train_words, train = residuals(0)
    test_words, test = residuals(1)
    weight = torch.zeros(26, 2 + CHILDREN)
    weight[0, 0] = weight[1, 1] = 3.0
    return AbsorptionReference(
        train_words=train_words * 4,
        test_words=test_words,
        train_activations=train.repeat(4, 1),
        test_activations=test,
        probe=LinearProbes(weight, torch.full((26,), -1.0)),
        probe_f1=[1.0, 1.0, 0.6] + [0.0] * 23,
        scored=torch.arange(len(test_words)),
        scored_activations=test,
        left_out=0,
    )


def absorbing_sae(absorbs: bool) -> Autoencoder:
    """Latent 0 is a, latent 1 is b, the others are the children of a.

    Where it absorbs, latent 0 is silent on a child's word, and the child's latent writes the letter too,
    along (a + child) / sqrt(2). Where it does not, latent 0 fires on all a, and the children write themselves
    alone.
    """
    axes = torch.eye(2 + CHILDREN)
    children = axes[2:]
    if absorbs:
        encoder = [axes[0] - children.sum(0), axes[1], *(children * math.sqrt(2))]
        decoder = [axes[0], axes[1], *((children + axes[0]) / math.sqrt(2))]
    else:
        encoder, decoder = [*axes], [*axes]
    return sae_of(torch.stack(encoder, dim=1), torch.stack(decoder))


def test_an_sae_that_absorbs():
    result = evaluate_absorption(absorbing_sae(True), hand_made_reference(), CONFIG)
    # Ten of the hundred words with a are a child's. There M = 0, P = 1, and the child's latent has activation
    # sqrt(2) and cosine 1 / sqrt(2): T = 1. Latent 0 finds 90 of 100 words without a mistake: F1 = 180 / 190.
    # Adding a child finds 92: F1 = 184 / 192, .011 more, no split.
    a, b = result.tables["letters"].to_dict("records")
    assert a["letter"] == "a" and b["letter"] == "b"
    for name in ("absorption_fraction", "absorption_full", "absorption_unthresholded"):
        assert a[name] == pytest.approx(0.1)
        assert b[name] == 0
        assert result.summary[name] == pytest.approx(0.05)
    assert a["k1_f1"] == pytest.approx(180 / 190) and b["k1_f1"] == 1
    assert result.summary["main_latent_f1"] == result.summary["main_latents_f1"] == pytest.approx((180 / 190 + 1) / 2)
    assert a["num_split_features"] == b["num_split_features"] == 1
    assert (a["test_words"], a["true_positives"], b["true_positives"]) == (100, 100, 60)
    # Letter c is not above the gate. Both letters of the test words count for the probe's F1.
    assert result.summary["letters"] == 2
    assert result.summary["words"] == 160
    assert result.summary["probe_f1"] == 1
    assert "2 letters (F1 > 0.6)" in "; ".join(result.notes)


def test_absorption_is_measured_in_the_fresh_prompts_on_the_words_the_probe_finds():
    reference = hand_made_reference()
    labels, children = reference.test_labels, reference.test_activations[:, 2:].sum(dim=1) > 0
    # The probe misses 50 words with a that are no child's: 10 children of 50 words are left. In the fresh prompts
    # four of the ten read as plain words: 6 of 50 are absorbed.
    plain_a = ((labels == 0) & ~children).nonzero().flatten()
    missed = torch.isin(torch.arange(len(labels)), plain_a[:50])
    fresh = reference.test_activations.clone()
    fresh[children.nonzero().flatten()[:4], 2:] = 0
    scored = (~missed).nonzero().flatten()
    reference = replace(reference, scored=scored, scored_activations=fresh[scored])
    a = evaluate_absorption(absorbing_sae(True), reference, CONFIG).tables["letters"].iloc[0]
    assert (a["test_words"], a["true_positives"]) == (100, 50)
    assert a["absorption_fraction"] == a["absorption_full"] == pytest.approx(6 / 50)


def test_an_sae_that_does_not_absorb():
    summary = evaluate_absorption(absorbing_sae(False), hand_made_reference(), CONFIG).summary
    assert summary["absorption_fraction"] == summary["absorption_full"] == 0
    assert summary["absorption_unthresholded"] == 0
    assert summary["num_split_features"] == 1


def test_two_latents_that_share_a_letter_are_a_split_and_not_absorption():
    # One latent for the child words and one for the others, as before, but the children now are half of the
    # words.
    words = ["a"] * 40 + ["b"] * 40
    x = torch.zeros(80, 3)
    x[:40, 0] = 1
    x[:20, 2] = 1
    x[40:, 1] = 1
    weight = torch.zeros(26, 3)
    weight[0, 0] = weight[1, 1] = 1
    probe = LinearProbes(weight, torch.zeros(26))
    f1 = [1.0, 1.0] + [0.0] * 24
    reference = AbsorptionReference(words, words, x, x, probe, f1, torch.arange(80), x, left_out=0)
    root = math.sqrt(2)
    encoder = torch.tensor([[1, 0, -1], [0, 1, 0], [0, 0, root]]).T
    sae = sae_of(encoder, torch.tensor([[1, 0, 0], [0, 1, 0], [1 / root, 0, 1 / root]]))
    a = evaluate_absorption(sae, reference, CONFIG).tables["letters"].iloc[0]
    # F1 of one latent: 2 * 20 / (20 + 40) = 2/3; of both: 1. Both are main latents, M = P everywhere.
    assert a["k1_f1"] == pytest.approx(2 / 3) and a["main_f1"] == 1
    assert a["num_split_features"] == 2
    assert a["absorption_fraction"] == a["absorption_full"] == a["absorption_unthresholded"] == 0


def random_reference(seed: int) -> AbsorptionReference:
    """Twenty-six noisy letter directions in 16 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(26, 16, generator=generator), dim=1)
    labels = torch.randint(0, 26, (600,), generator=generator)
    x = 2 * directions[labels] + 0.2 * torch.randn(600, 16, generator=generator)
    words = [chr(97 + label) for label in labels.tolist()]
    return AbsorptionReference(
        train_words=words[:450],
        test_words=words[450:],
        train_activations=x[:450],
        test_activations=x[450:],
        probe=LinearProbes(directions, torch.zeros(26)),
        probe_f1=[1.0] * 26,
        scored=torch.arange(150),
        scored_activations=x[450:] + 0.05 * torch.randn(150, 16, generator=generator),
        left_out=0,
    )


def random_sae() -> Autoencoder:
    return make_sae(architecture="topk", d_sae=64, k=6, d_in=16, seed=1)


def test_decoder_norms_are_folded_into_the_activations():
    reference = random_reference(0)
    sae = make_sae(architecture="standard", d_sae=64, d_in=16, seed=1)
    plain = evaluate_absorption(sae, reference, CONFIG)
    norms = torch.linspace(0.2, 5, 64)
    with torch.no_grad():
        sae.W_dec.mul_(norms[:, None])
        sae.W_enc.div_(norms)
        sae.b_enc.div_(norms)
    scaled = evaluate_absorption(sae, reference, CONFIG)
    assert scaled.summary == pytest.approx(plain.summary, abs=1e-4)
    assert 0 < plain.summary["absorption_unthresholded"] < 1


def test_the_same_again_and_without_keeping_latents_in_memory():
    reference = random_reference(0)
    first = evaluate_absorption(random_sae(), reference, CONFIG)
    again = evaluate_absorption(random_sae(), reference, CONFIG)
    streamed = evaluate_absorption(random_sae(), reference, AbsorptionConfig(latent_bytes=1))
    assert first.tables["letters"].equals(again.tables["letters"])
    assert streamed.summary == pytest.approx(first.summary, abs=1e-6)
    assert first.summary["letters"] == 26 and "; ".join(first.notes) == ""
    assert first.tables["letters"]["num_split_features"].max() > 1


def several_saes() -> list[Autoencoder]:
    """Of different width, density and family."""
    return [
        make_sae(architecture="topk", d_sae=64, k=2, d_in=16, seed=1),
        make_sae(architecture="standard", d_sae=48, d_in=16, seed=2),
        make_sae(architecture="topk", d_sae=96, k=9, d_in=16, seed=3),
    ]


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_several_saes_at_once_have_the_results_of_one_by_one(at_once, monkeypatch):
    reference = random_reference(0)
    trained = []
    original = score.main_latents_of_many

    def watched(saes, *arguments):
        trained.append(len(saes))
        return original(saes, *arguments)

    monkeypatch.setattr(score, "main_latents_of_many", watched)
    saes = several_saes()
    most = {1: 1, 2: (64 + 48) * 4 * 450, 3: 2**31}[at_once]
    settings = CONFIG.model_copy(update={"probe_epochs": 10})
    together = evaluate_absorption_many(saes, reference, settings.model_copy(update={"latent_bytes": most}))
    assert trained == {1: [1, 1, 1], 2: [2, 1], 3: [3]}[at_once]
    for sae, result in zip(saes, together, strict=True):
        alone = evaluate_absorption(sae, reference, settings)
        assert result.summary == pytest.approx(alone.summary, abs=1e-6)
        assert (result.tables["letters"]["num_split_features"] == alone.tables["letters"]["num_split_features"]).all()
    assert len({result.summary["absorption_unthresholded"] for result in together}) == 3
    assert evaluate_absorption_many([], reference, CONFIG) == []


@pytest.mark.parametrize("form", ["sparse", "dense", "encoded again"])
def test_latents_are_the_same_in_every_form(form, monkeypatch):
    monkeypatch.setattr(latents, "_SPARSE_BELOW", 1.0 if form == "sparse" else 0.0)
    sae, x = several_saes()[0], random_reference(0).train_activations
    with torch.no_grad():
        sae.b_enc[:5] = -100  # never on
    words, expected = WordLatents(sae, x, keep=form != "encoded again"), unit_latents(sae, x)
    assert words.live.tolist() == (expected != 0).any(dim=0).tolist()
    index = torch.tensor([7, 0, 449])
    rows = words.rows(index)
    assert isinstance(rows, torch.Tensor) == (form != "sparse")
    rows = rows if isinstance(rows, torch.Tensor) else torch.from_numpy(rows.toarray())
    torch.testing.assert_close(rows, expected[index][:, words.live])
    some = torch.tensor([3, 60, 2, 9])  # two of them never on
    torch.testing.assert_close(torch.from_numpy(words.columns(some)), expected[:, some])


def test_a_dead_sae_absorbs_nothing():
    sae = random_sae()
    with torch.no_grad():
        sae.W_enc.zero_()
    summary = evaluate_absorption(sae, random_reference(0), CONFIG).summary
    assert summary["absorption_fraction"] == summary["absorption_full"] == 0
    assert summary["num_split_features"] == 1


def test_no_letter_gives_a_note_and_no_number():
    reference = random_reference(0)
    result = evaluate_absorption(random_sae(), reference, AbsorptionConfig(min_probe_f1=1.0))
    assert len(result.tables["letters"]) == 0 and list(result.tables["letters"])[:2] == ["letter", "probe_f1"]
    assert math.isnan(result.summary["absorption_fraction"])
    assert result.summary["letters"] == result.summary["words"] == 0
    assert "0 letters" in "; ".join(result.notes)


def test_the_note_names_the_missing_letters_and_why():
    reference = hand_made_reference()
    result = evaluate_absorption(absorbing_sae(True), reference, CONFIG)
    (note,) = result.notes
    assert "; ".join(result.notes) == note
    assert "2 letters (F1 > 0.6); SAEBench gives no result below 20" in note
    assert "missing: c (F1 0.60), d (F1" in note
    assert " a (" not in note and " b (" not in note
    low = replace(reference, probe_f1=[1.0, 0.55] + [0.0] * 24)
    assert "missing: b (F1 0.55), c (F1 0.00)" in evaluate_absorption(absorbing_sae(True), low, CONFIG).notes[0]
    enough = evaluate_absorption(absorbing_sae(True), reference, AbsorptionConfig(min_letters=2))
    assert "; ".join(enough.notes) == "" and enough.notes == ()


def test_words_that_are_not_one_token_are_counted_and_shown():
    reference = replace(random_reference(0), left_out=12, left_out_examples=(" zoo", "Xy"))
    (note,) = evaluate_absorption(random_sae(), reference, CONFIG).notes
    assert note.startswith("left out: 12 words") and "' zoo', 'Xy'" in note


def test_an_sae_of_another_model_or_with_nan_is_refused():
    wrong = make_sae(architecture="standard", d_sae=8, d_in=4)
    with pytest.raises(ArtifactError, match="d_in is 4, the reference's residual stream has 16"):
        evaluate_absorption(wrong, random_reference(0), CONFIG)
    with pytest.raises(ArtifactError, match="sae 2: d_in is 4"):
        evaluate_absorption_many([random_sae(), wrong], random_reference(0), CONFIG)
    sae = make_sae(architecture="standard", d_sae=8, d_in=16)
    with torch.no_grad():
        sae.W_enc[0, 0] = math.nan
    with pytest.raises(ArtifactError, match="NaN"):
        evaluate_absorption(sae, random_reference(0), CONFIG)
