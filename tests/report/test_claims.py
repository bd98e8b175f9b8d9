"""The ledger: the papers' arithmetic by hand, verdicts that follow the data, `verify` that notices a change."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from sae_lib.profiles.profile import Profile, load_profile
from sae_lib.report.claims import data_checks
from sae_lib.report.claims.data_checks import RECIPE, top_share
from sae_lib.report.claims.file import CLAIM_IDS, CLAIMS_FILE, load_claims
from sae_lib.report.claims.ledger import (
    claims_details,
    claims_summary,
    claims_table,
    evaluate_claims,
    findings,
    verify,
    write_claims,
    write_verdicts,
)
from sae_lib.report.claims.paper_checks import PAPER_CHECKS, overlap, quotient, rounding
from sae_lib.report.claims.verdicts import VERDICTS, Comparison, decide
from sae_lib.report.names import MECHANISMS
from sae_lib.report.results import Results, main_effect
from sae_lib.report.statistics import difference, p_value, seeds_of, t_interval
from sae_lib.report.tables import controls
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import read_json, write_json
from sae_lib.util.paths import OUTPUT_VARIABLE, Paths, verdicts_file
from tests.report import synthetic
from tests.report.synthetic import GEMMA, POCKET, save, shifted

CLAIMS = load_claims()
INCONSISTENT = {"T-02", "T-05", "T-06", "T-07", "T-12", "T-21"}
SETTINGS = {"T-20", "T-29"}
ON_GROUND_TRUTH = {"T-13", "T-14", "T-16", "T-17", "T-18", "T-19", "M-05", "M-06", "M-07", "M-08"}
METHOD_CLAIMS = {"T-17", "T-18", "T-19", "M-05", "M-07", "M-08"}


@pytest.fixture(autouse=True)
def _one_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made up is the same on every processor."""
    monkeypatch.setattr(controls, "ROUNDING", {})
    monkeypatch.setattr(data_checks, "ROUNDING", {})


@pytest.fixture(scope="module")
def results() -> Results:
    return synthetic.results()


def verdicts(results: Results, profile: Profile = POCKET) -> dict[str, dict[str, str]]:
    return evaluate_claims(profile, results, CLAIMS).set_index("id").to_dict("index")


def answer(results: Results, name: str, profile: Profile = POCKET) -> dict[str, str]:
    """The ledger's row for one claim."""
    return evaluate_claims(profile, results, [claim for claim in CLAIMS if claim.id == name]).to_dict("records")[0]


def test_every_claim_of_the_papers_is_there_once() -> None:
    ids = [entry["id"] for entry in yaml.safe_load(CLAIMS_FILE.read_text(encoding="utf8"))]
    assert ids == [f"T-{n:02d}" for n in range(1, 31)] + [f"M-{n:02d}" for n in range(1, 9)]
    assert [claim.id for claim in load_claims()] == ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: entries[:-1], "missing M-08"),
        (lambda entries: [*entries[:-1], entries[-1] | {"id": "M-09"}], "unknown M-09"),
        (lambda entries: [*entries, entries[0]], "there twice T-01"),
        (lambda entries: [entries[0] | {"colour": "red"}, *entries[1:]], "claims.T-01.colour: unknown key"),
        (lambda entries: [entries[0] | {"paper_check": "guess"}, *entries[1:]], "paper_check 'guess'"),
        (
            lambda entries: [entries[0] | {"published": [{"name": "a", "value": 0.5}]}, *entries[1:]],
            "in quotes",
        ),
        (lambda entries: [entries[27] | {"id": "T-01", "data_check": {}}, *entries[1:]], "nothing decides"),
        (lambda entries: [entries[0] | {"shown": ["table_guess"]}, *entries[1:]], "shown 'table_guess' is none of"),
        (lambda entries: [entries[0] | {"toy_check": {"kind": "guess"}}, *entries[1:]], "toy_check.kind 'guess'"),
        (lambda entries: [entries[0] | {"toy_check": {"kind": "level"}}, *entries[1:]], "evidence is missing"),
    ],
)
def test_a_wrong_claims_file_is_refused_by_name(tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(change(yaml.safe_load(CLAIMS_FILE.read_text(encoding="utf8")))), "utf8")
    with pytest.raises(ArtifactError, match=message):
        load_claims(path)


def test_rounding_and_quotients() -> None:
    assert rounding(Decimal("0.30")) == (0.295, 0.305)
    low, high = quotient(Decimal("0.328"), Decimal("0.009"))
    assert (low, high) == pytest.approx((0.3275 / 0.0095, 0.3285 / 0.0085))
    assert overlap((0, 1), (1, 2)) and not overlap((0, 1), (1.01, 2))


def test_what_the_papers_numbers_say_of_each_other(results: Results) -> None:
    table = verdicts(Results())
    assert {name for name, row in table.items() if row["verdict"] == "inconsistent in the paper"} == INCONSISTENT
    assert table["T-20"]["verdict"] == "reproduced"
    for name, number in {
        "T-05": "36.4x", "T-06": "= 34.8", "T-10": "76.54 %", "T-20": "4882.8", "T-24": "8.6 to 9.3 %",
        "T-02": "at most 841", "M-03": "40.4 %", "T-08": "4.26", "T-01": "34.8x worse",
    }.items():  # fmt: skip
        assert number in table[name]["reason"], name
    # Independent of what was run, and of the model.
    for other in (verdicts(results), verdicts(results, GEMMA)):
        assert {name for name, row in other.items() if row["verdict"] == "inconsistent in the paper"} == INCONSISTENT


def test_paper_checks_follow_the_published_numbers() -> None:
    claims = {claim.id: claim for claim in load_claims()}

    def consistent(name: str, **changes: str) -> bool:
        published = {number.name: number.value for number in claims[name].published}
        assert set(changes) <= {key.replace(" ", "_") for key in published}
        published |= {
            key: Decimal(changes[key.replace(" ", "_")]) for key in published if key.replace(" ", "_") in changes
        }
        return PAPER_CHECKS[claims[name].paper_check](published)[0]

    assert consistent("T-05", headline="0.313")
    assert consistent("T-06", headline="0.313")
    assert consistent("T-07", ours="0.940")
    assert consistent("T-12", q_in_run_4="0.405")
    assert not consistent("T-20", steps="4883")
    assert consistent("T-21", TopK_in_section_2="0.938")
    assert consistent("T-02", cosine_of_ours="0.960")
    assert not consistent("T-23", factor="36.5")
    assert not consistent("T-24", increase_in_per_cent="12.0")
    assert not consistent("M-03", reduction_in_per_cent="60")


def test_gemma_claims_are_not_answered_by_another_model(results: Results) -> None:
    table = verdicts(results)
    decided = {name for name, row in table.items() if row["verdict"] != "not run at this profile"}
    assert decided == INCONSISTENT | METHOD_CLAIMS | SETTINGS
    assert "google/gemma-2-2b" in table["T-03"]["reason"] and "pocket" in table["T-03"]["reason"]
    assert "(n = 5)" in table["T-03"]["measured"]
    assert table["T-08"]["at_this_scale"] == "reproduced"
    assert table["T-28"]["at_this_scale"] == "reproduced"


def test_gemma_numbers_are_compared_within_tolerance(results: Results) -> None:
    rows = results.evaluation.copy()
    targets = {"paper_standard": 8311.29, "topk": 320.0, "jumprelu": 319.99, "temporal_sae": 1950.0}
    for method, l0 in targets.items():
        rows.loc[(rows["group"] == "as_written") & (rows["method"] == method), "l0"] = l0
    assert answer(replace(results, evaluation=rows), "T-03", GEMMA)["verdict"] == "reproduced"
    rows.loc[(rows["group"] == "as_written") & (rows["method"] == "temporal_sae"), "l0"] = 1500.0
    row = answer(replace(results, evaluation=rows), "T-03", GEMMA)
    assert row["verdict"] == "not reproduced" and "ours 1500 for 1950.00" in row["reason"]
    rows = rows[rows["method"] != "jumprelu"]
    assert answer(replace(results, evaluation=rows), "T-03", GEMMA)["verdict"] == "not run at this profile"


def test_a_gemma_number_that_is_missed_and_reversed_is_contradicted(results: Results) -> None:
    """M-01: ATM above both baselines at matched L0, and none of the published numbers met."""
    rows = results.evaluation.copy()
    rows.loc[(rows["group"] == "main") & (rows["method"] == "atm"), "absorption_fraction"] += 0.5
    assert answer(replace(results, evaluation=rows), "M-01", GEMMA)["verdict"] == "contradicted"


def test_a_comparison_follows_the_data(results: Results) -> None:
    """M-05, ATM below uniform dropout, by hand: the t interval of five paired differences."""
    fair = results.evaluation[results.evaluation["group"] == "atm_fair"].sort_values("seed")
    atm, dropout = (fair.loc[fair["method"] == m, "absorption_fraction"].to_numpy() for m in ("atm", "dropout"))
    gap = atm - dropout
    test = stats.ttest_rel(atm, dropout).confidence_interval(0.95)
    row = answer(results, "M-05")
    assert test.high < 0 and row["verdict"] == "reproduced"
    assert f"{gap.mean():+.3g} [{test.low:+.3g}, {test.high:+.3g}] (n = 5)" in row["reason"]
    up = shifted(results, "atm_fair", "atm", "absorption_fraction", 0.1)
    assert answer(up, "M-05")["verdict"] == "contradicted"
    level = shifted(results, "atm_fair", "atm", "absorption_fraction", float(-gap.mean()))
    assert answer(level, "M-05")["verdict"] == "not reproduced"


def test_absorption_is_compared_only_at_matched_l0(results: Results) -> None:
    row = answer(shifted(results, "atm_fair", "atm", "l0", 30.0), "M-05")
    assert row["verdict"] == "not run at this profile" and "L0 is not matched" in row["reason"]


def test_mechanisms(results: Results) -> None:
    table = verdicts(results)
    assert (table["T-18"]["verdict"], table["T-19"]["ground_truth"]) == ("reproduced", "reproduced")
    # On the language model the share falls, by less than half of what counts.
    assert table["T-19"]["at_this_scale"] == table["T-19"]["verdict"] == "not reproduced"
    assert table["T-13"]["at_this_scale"] == "not reproduced"
    rows = results.evaluation.copy()
    rows.loc[(rows["group"] == "factorial") & rows["resampling"], "explained_variance"] -= 0.1
    assert answer(replace(results, evaluation=rows), "T-18")["verdict"] == "contradicted"
    rows = results.evaluation.copy()
    flip = rows["group"] == "factorial"
    rows.loc[flip, "gradient_scaling"] = ~rows.loc[flip, "gradient_scaling"].astype(bool)
    assert answer(replace(results, evaluation=rows), "T-19")["verdict"] == "contradicted"


def test_alpha_against_the_loss(results: Results) -> None:
    assert answer(results, "T-17")["at_this_scale"] == "contradicted"
    history = results.history.assign(alpha=lambda h: h["alpha"].where(h["alpha"].isna(), -h["reconstruction"]))
    assert answer(replace(results, history=history), "T-17")["verdict"] == "reproduced"
    constant = results.history.assign(alpha=1.0)
    assert answer(replace(results, history=constant), "T-17")["verdict"] == "not run at this profile"


def test_toy_and_importance(results: Results) -> None:
    table = verdicts(results)
    assert (table["M-07"]["verdict"], table["M-08"]["verdict"]) == ("reproduced", "reproduced")
    assert (table["M-07"]["ground_truth"], table["M-07"]["at_this_scale"]) == ("reproduced", "")
    toys = results.toy_summary.assign(parent_silent_rate=0.001 * results.toy_summary["seed"] / 46)
    assert answer(replace(results, toy_summary=toys), "M-07")["verdict"] == "contradicted"
    rows = results.evaluation.copy()
    rows.loc[rows["dropped"] == "contribution", "absorption_fraction"] = 0.0
    assert answer(replace(results, evaluation=rows), "M-08")["verdict"] == "contradicted"


def moved(results: Results, by: float, column: str, **where: object) -> Results:
    """`by` added to a column of the toy data's summary, in the rows with the given values."""
    rows = results.toy_summary.copy()
    chosen = pd.Series(True, index=rows.index)
    for name, value in where.items():
        chosen &= rows[name] == value
    assert chosen.any()
    rows.loc[chosen, column] += by
    return replace(results, toy_summary=rows)


def test_ground_truth_has_a_verdict_and_says_what_it_is(results: Results) -> None:
    table = evaluate_claims(POCKET, results).set_index("id")
    assert set(table.index[table["ground_truth"] != ""]) == ON_GROUND_TRUTH
    assert table.loc[sorted(ON_GROUND_TRUTH), "ground_truth"].to_dict() == {
        "M-05": "reproduced", "M-06": "reproduced", "M-07": "reproduced", "M-08": "reproduced",
        "T-13": "not reproduced", "T-14": "contradicted", "T-16": "reproduced",
        "T-17": "reproduced", "T-18": "reproduced", "T-19": "reproduced",
    }  # fmt: skip
    evidence = table.loc["M-05", "toy_evidence"]
    assert evidence.startswith("matched L0: how often") and "(n = 5)" in evidence and "tree: L0 ATM 1.1" in evidence


def test_the_best_on_toys_is_best_in_everything(results: Results) -> None:
    """T-14: below every baseline in absorption is not enough, explained variance has to be above them too."""
    assert answer(results, "T-14")["ground_truth"] == "contradicted"
    lower = moved(results, -0.95, "parent_silent_rate", experiment="matched", method="temporal_sae")
    assert answer(lower, "T-14")["ground_truth"] == "inconclusive"
    both = moved(lower, 0.015, "explained_variance", experiment="matched", method="temporal_sae")
    assert answer(both, "T-14")["ground_truth"] == "reproduced"


def test_toys_are_compared_only_at_matched_l0(results: Results) -> None:
    denser = moved(results, 1.0, "l0", experiment="matched", toy="tree", method="atm")
    row = answer(denser, "M-05")
    assert row["ground_truth"] == "not run at this profile" and "L0 is not matched" in row["toy_evidence"]
    assert row["at_this_scale"] == "reproduced"  # what the language model's SAEs say is not touched


def test_strong_probing_is_not_below_any_baseline(results: Results) -> None:
    """M-04: ATM is .03 above the baselines; a hundredth below the best is still as good, more is not."""
    assert answer(results, "M-04")["at_this_scale"] == "reproduced"
    assert answer(shifted(results, "main", "atm", "probing_k5", -0.06), "M-04")["at_this_scale"] == "contradicted"
    row = answer(shifted(results, "main", "atm", "l0", 30.0), "M-04")
    assert row["at_this_scale"] == "not run at this profile" and "L0 is not matched" in row["reason"]
    rows = results.evaluation.copy()
    written = (rows["group"] == "as_written") & (rows["method"] == "paper_atm")
    rows.loc[written, "probing_k1"] = 0.72
    assert answer(replace(results, evaluation=rows), "M-04", GEMMA)["verdict"] == "reproduced"
    rows.loc[written, "probing_k1"] = 0.60
    assert answer(replace(results, evaluation=rows), "M-04", GEMMA)["verdict"] == "not reproduced"


def test_stability_is_across_seeds_contexts_and_tokens(results: Results) -> None:
    assert answer(results, "M-06")["at_this_scale"] == "reproduced"
    pairs = results.seed_stability.copy()
    pairs.loc[pairs["method"] == "atm", "matched_cosine"] -= 0.4
    assert answer(replace(results, seed_stability=pairs), "M-06")["at_this_scale"] == "contradicted"
    level = shifted(results, "main", "atm", "context_firing", -0.16)
    assert answer(level, "M-06")["at_this_scale"] == "not reproduced"
    row = answer(replace(results, seed_stability=pairs.iloc[:0]), "M-06")
    assert row["at_this_scale"] == "not run at this profile" and "matched cosine" in row["reason"]


def test_firing_across_contexts_is_below_one_and_below_the_probe(results: Results) -> None:
    assert answer(results, "T-16")["at_this_scale"] == "reproduced"
    assert (
        answer(shifted(results, "main", "standard", "context_firing", 0.38), "T-16")["at_this_scale"] == "contradicted"
    )
    # Where the language model itself does not show the letter, nothing can be asked of a latent.
    assert (
        answer(shifted(results, "main", "standard", "context_probe", -0.8), "T-16")["at_this_scale"] == "contradicted"
    )
    poor = shifted(results, "main", "standard", "explained_variance", -0.5)
    assert answer(poor, "T-16")["at_this_scale"] == "contradicted"


def test_a_reversal_among_many_comparisons_survives_holm() -> None:
    """p of the reversed one is .03: a contradiction alone, not among three."""
    wanted = stats.t.isf(0.015, 2) / math.sqrt(3)  # mean over sd of three values with a two-sided p of .03
    down = t_interval([-wanted - 1, -wanted, -wanted + 1])
    up = t_interval([1.0, 1.1, 0.9])
    reversed_ = Comparison("x", down, "higher")
    assert p_value(reversed_.side) == pytest.approx(0.03)
    assert decide([reversed_]).verdict == "contradicted"
    others = [Comparison("y", t_interval([-9.0, 0.0, 10.0]), "higher"), Comparison("z", up, "higher", allowed=-1.0)]
    assert decide([reversed_, *others]).verdict == "not reproduced"


def test_rare_letters_and_seeds(results: Results) -> None:
    """T-15: rare letters at zero while the others are not; rare ones as absorbed as the others; hardly any absorbed."""
    letters = results.letters.assign(absorption_full=0.1 + 0.001 * results.letters["seed"])
    rare = letters["letter"].isin(list("qrstuvw"))
    for of_rare, of_others, verdict in (
        (0.0, 1.0, "reproduced"), (1.0, 1.0, "contradicted"), (0.0, 0.0, "untestable here")
    ):  # fmt: skip
        scores = letters["absorption_full"] * np.where(rare, of_rare, of_others)
        row = answer(replace(results, letters=letters.assign(absorption_full=scores)), "T-15")
        assert row["at_this_scale"] == verdict
    rows = results.evaluation
    fewer = rows[~((rows["group"] == "main") & (rows["method"] == "atm") & (rows["seed"] == 46))]
    row = answer(replace(results, evaluation=fewer), "T-29")
    assert row["at_this_scale"] == row["verdict"] == "not reproduced" and "ATM" in row["reason"]


def test_sensitivity(results: Results) -> None:
    """T-27: the coefficient changes absorption by .03 and the threshold explained variance by .05; then one;
    then none."""
    assert answer(results, "T-27")["at_this_scale"] == "reproduced"
    rows = results.evaluation.copy()
    varied = rows["group"] == "sensitivity"
    rows.loc[varied, "explained_variance"] = 0.84
    assert answer(replace(results, evaluation=rows), "T-27")["at_this_scale"] == "inconclusive"
    rows.loc[varied, "absorption_fraction"] = 0.10
    assert answer(replace(results, evaluation=rows), "T-27")["at_this_scale"] == "contradicted"
    usual = rows[~varied | (rows["temporal_coefficient"] == 1e-4)]
    assert answer(replace(results, evaluation=usual), "T-27")["at_this_scale"] == "not run at this profile"


def test_warm_up(results: Results) -> None:
    """T-28: explained variance is .14 lower without it; then nearly the same, no collapse; then it was not run."""
    rows = results.evaluation.copy()
    without = (rows["group"] == "sensitivity") & (rows["varied"] == "warm_up")
    assert answer(results, "T-28")["at_this_scale"] == "reproduced"
    rows.loc[without, "explained_variance"] = 0.83
    assert answer(replace(results, evaluation=rows), "T-28")["at_this_scale"] == "contradicted"
    gone = answer(replace(results, evaluation=rows[~without]), "T-28")
    assert gone["at_this_scale"] == "not run at this profile" and "without the warm-up" in gone["reason"]


def test_poor_results_give_reasons_and_no_verdicts(results: Results) -> None:
    """One seed, NaN everywhere, or nothing at all: nothing is claimed and nothing fails."""
    broken = results.evaluation.copy()
    numbers = broken.select_dtypes("float").columns
    broken[numbers] = math.nan
    for poor in (synthetic.results(seeds=(42,)), Results(), replace(results, evaluation=broken)):
        table = evaluate_claims(POCKET, poor).set_index("id")
        assert set(table["verdict"]) <= set(VERDICTS)
        for name in ("M-05", "M-08", "T-18"):
            assert table.loc[name, "verdict"] == "not run at this profile"
            assert table.loc[name, "reason"] not in ("", "the claim is about")
        for name in ("M-04", "M-06", "T-16"):
            assert table.loc[name, "at_this_scale"] == "not run at this profile"
    nothing = evaluate_claims(POCKET, Results()).set_index("id")
    assert set(nothing.loc[sorted(ON_GROUND_TRUTH), "ground_truth"]) == {"not run at this profile"}
    assert "one seed" in answer(synthetic.results(seeds=(42,)), "M-05")["reason"]


def test_verify_notices_a_changed_result(results: Results, tmp_path: Path, capsys) -> None:
    expected = tmp_path / "figures" / "verdicts.json"
    write_verdicts(evaluate_claims(POCKET, results), POCKET, expected)
    folder = save(results, tmp_path / "results")
    assert verify(POCKET, folder, expected) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in CLAIM_IDS) and "all verdicts as committed" in printed

    shifted(results, "atm_fair", "atm", "absorption_fraction", 0.3).evaluation.to_parquet(folder / "evaluation.parquet")
    assert verify(POCKET, folder, expected) == 1
    assert "DIFFERS M-05 verdict: 'contradicted', committed 'reproduced'" in capsys.readouterr().out

    folder = save(moved(results, 0.5, "parent_silent_rate", experiment="matched", method="atm"), tmp_path / "toys")
    assert verify(POCKET, folder, expected) == 1
    assert "DIFFERS M-05 ground_truth: 'contradicted', committed 'reproduced'" in capsys.readouterr().out


def test_verify_prints_a_line_for_each_claim_that_fits_a_terminal(results: Results) -> None:
    evaluated = evaluate_claims(POCKET, results)
    head, *lines = claims_summary(evaluated).splitlines()
    assert [line.split()[0] for line in lines] == list(CLAIM_IDS) and all(len(line) <= 100 for line in (head, *lines))
    (m05,) = [line for line in lines if line.startswith("M-05")]
    assert m05.split()[1:4] == ["reproduced"] * 3
    number = m05.split("reproduced")[-1].removesuffix(" …").strip()
    assert "(n = 5)" in number and number in evaluated.set_index("id").loc["M-05", "reason"]
    (t12,) = [line for line in lines if line.startswith("T-12")]
    assert "inconsistent" in t12 and "q is 0.405" in t12
    assert len(claims_details(evaluated, ".").splitlines()) > 3 * len(lines)


def test_verify_on_a_clean_clone_reads_the_committed_results(
    results: Results, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OUTPUT_VARIABLE, str(tmp_path))
    paths = Paths("pocket")
    expected = tmp_path / "figures" / "verdicts.json"
    write_verdicts(evaluate_claims(POCKET, results), POCKET, expected)
    with pytest.raises(ArtifactError, match="no folder"):
        verify(POCKET, paths.known_results, expected)
    committed = save(results, paths.figures / "results")
    assert verify(POCKET, paths.known_results, expected) == 0
    assert str(committed) in capsys.readouterr().out


def test_expected_verdicts_are_checked(results: Results, tmp_path: Path) -> None:
    folder, path = save(Results(), tmp_path / "results"), tmp_path / "verdicts.json"
    accept = "`python -m sae_lib accept --profile pocket` makes it"
    with pytest.raises(ArtifactError, match=f"there is no .* {accept}$"):
        verify(POCKET, folder, path)
    write_verdicts(evaluate_claims(POCKET, Results()), POCKET, path)
    good = read_json(path)
    for broken, message in (
        (good | {"profile": "other"}, f"not of profile pocket; .* {accept}$"),
        (good | {"verdicts": {k: v for k, v in good["verdicts"].items() if k != "T-07"}}, "missing T-07"),
        (good | {"verdicts": good["verdicts"] | {"T-31": good["verdicts"]["T-01"]}}, "unknown T-31"),
    ):
        write_json(path, broken)
        with pytest.raises(ArtifactError, match=message):
            verify(POCKET, folder, path)
    write_json(path, good | {"verdicts": good["verdicts"] | {"T-01": {"verdict": "fine"}}})
    assert verify(POCKET, folder, path) == 1


def test_results_are_read_as_they_are(tmp_path: Path, results: Results) -> None:
    folder = save(results, tmp_path / "results")
    pd.testing.assert_frame_equal(Results.load(folder).letters, results.letters)
    (folder / "toy.parquet").unlink()
    assert Results.load(folder).toy.empty
    results.letters.drop(columns="letter").to_parquet(folder / "letters.parquet")
    with pytest.raises(ArtifactError, match="no column letter"):
        Results.load(folder)
    (folder / "letters.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ArtifactError, match="no readable parquet"):
        Results.load(folder)


def test_the_ledger_is_a_line_for_each_claim_and_its_details_are_elsewhere(results: Results, tmp_path: Path) -> None:
    evaluated = evaluate_claims(POCKET, results)
    table = claims_table(evaluated, POCKET)
    assert list(table.shown.columns)[:4] == ["id", "claim", "published", "measured here (pocket)"]
    assert "Gemma-2-2b" in table.caption and table.shown.map(len).to_numpy().max() <= 110
    assert list(table.shown["id"].str[1:5]) == [name for name in CLAIM_IDS if name not in SETTINGS] + sorted(SETTINGS)
    (m05,) = table.shown.loc[table.shown["id"].str.contains("M-05"), "measured here (pocket)"]
    assert m05.startswith("-0.0") and "[" in m05
    write_claims(evaluated, POCKET, tmp_path)
    details = (tmp_path / "claims_details.md").read_text("utf8")
    assert [line[3:] for line in details.splitlines() if line.startswith("## ")] == list(CLAIM_IDS)
    assert "(claims_details.md#m-05)" in (tmp_path / "claims.md").read_text("utf8")
    assert "- *Why it follows*: Uniform dropout that takes away as much activation" in details and "↓" in details


def test_the_real_models_verdicts_stand_in_every_other_ledger(results: Results, tmp_path: Path) -> None:
    committed = read_json(verdicts_file("smollm2"))["verdicts"]
    evaluated = evaluate_claims(POCKET, results)
    assert dict(zip(evaluated["id"], evaluated["on_real"], strict=True)) == {
        name: verdicts["at_this_scale"] for name, verdicts in committed.items()
    }
    assert "real model" in claims_table(evaluated, POCKET).shown
    assert "; at smollm2 **" in claims_details(evaluated, tmp_path)
    own = evaluate_claims(load_profile("smollm2"), results)
    assert (own["on_real"] == "").all() and "real model" not in claims_table(own, load_profile("smollm2")).shown


def test_details_link_to_the_figure_and_the_table_that_are_there(results: Results, tmp_path: Path) -> None:
    evaluated = evaluate_claims(POCKET, results)

    def seen() -> str:
        sections = claims_details(evaluated, tmp_path).split("\n## ")[1:]
        return {section[:4]: section.rsplit("- *See*: ", 1)[-1] for section in sections}["M-05"]

    assert "table_atm_fair (not made yet), toy_matched (not made yet)" in seen()
    for name in ("toy_matched.png", "table_atm_fair.md"):
        (tmp_path / name).touch()
    assert "[table_atm_fair](table_atm_fair.md), [toy_matched](toy_matched.png)" in seen()


def test_facts_are_counted_once_and_settings_not_at_all(results: Results) -> None:
    counted = findings(evaluate_claims(POCKET, results))
    assert set(CLAIM_IDS) - set(counted["id"]) == SETTINGS | {"T-05"}


def test_what_is_disputed_has_an_argument_and_sizes_have_a_reason(results: Results) -> None:
    argued = {claim.id for claim in CLAIMS if claim.argument}
    assert argued >= {
        "M-01", "M-02", "M-03", "M-04", "M-05", "M-06", "T-02", "T-05", "T-06", "T-10", "T-13", "T-15", "T-16", "T-17",
        "T-18", "T-24", "T-25",
    }  # fmt: skip
    assert {claim.id for claim in CLAIMS if claim.paraphrase} == {"M-05", "M-06", "M-08"}
    assert "(our paraphrase)" in answer(results, "M-05")["where"]
    assert "Sizes: the published reduction" in answer(results, "M-03")["argument"]


def test_one_comparator_set_for_each_paper(results: Results) -> None:
    """Where no number names another; an L1 penalty is our question, and does not decide ATM's claims."""
    for name in ("T-01", "T-14"):
        reason = answer(results, name)["reason"] + answer(results, name)["toy_evidence"]
        assert all(f"TemporalSAE − {other}" in reason for other in (RECIPE, "TopK", "JumpReLU"))
    row = answer(shifted(results, "main", "standard", "absorption_fraction", -0.11), "M-01")
    assert row["at_this_scale"] == "reproduced" and "our question, against Standard: contradicted" in row["reason"]


def test_the_words_between_yes_and_no() -> None:
    """By hand: two values 0 and 0.2 have the interval 0.1 ± 1.27; a mean of 0.001 ± 0.003 excludes 0.05."""
    wide, close = t_interval([0.0, 0.2]), t_interval([0.0, 0.001, 0.002, 0.001])
    small = t_interval([-0.01, -0.011, -0.009])  # the sign of the paper, less than half of its size
    open_ = decide([Comparison("x", wide, "higher", margin=0.05)])
    assert open_.verdict == "inconclusive" and open_.number.startswith("+0.1 [-1.17, +1.37]")
    # The half width of n values with this spread is t(.975, n - 1) 0.1414 / sqrt(n): below 0.1 from eleven on.
    halves = {n: stats.t.ppf(0.975, n - 1) * wide.sd / math.sqrt(n) for n in (10, 11)}
    assert halves[11] < 0.1 < halves[10] and "about 11 seeds would settle it" in open_.number
    equal = Comparison("x", close, "lower", margin=0.05)
    assert decide([equal]).verdict == decide([equal._replace(interval=small)]).verdict == "not reproduced"
    assert decide([equal._replace(margin=0.0)]).verdict == "inconclusive"
    up = Comparison("x", t_interval([1.0, 1.1, 0.9]), "higher")
    aside = up._replace(want="lower", untestable="a floor")
    assert decide([up]).verdict == "reproduced"
    assert decide([up, aside]).verdict == decide([aside]).verdict == "untestable here"
    assert decide([up, aside, Comparison("y", wide, "higher")]).verdict == "inconclusive"
    # Another processor's rounding widens the interval.
    assert decide([up._replace(rounding=1.0)]).verdict == "inconclusive"


def test_a_measure_at_its_floor_decides_nothing(results: Results) -> None:
    """T-10: dead latents are rare with and without resampling. T-24: full absorption of a few words."""
    assert answer(results, "T-10")["at_this_scale"] == "reproduced"
    rows = results.evaluation.copy()
    rows.loc[rows["group"] == "factorial", "dead_fraction"] = 0.001
    row = answer(replace(results, evaluation=rows), "T-10")
    assert row["at_this_scale"] == "untestable here" and "a floor" in row["number"]
    rows.loc[rows["group"] == "sequence", "absorption_full"] = 0.002
    assert answer(replace(results, evaluation=rows), "T-24")["at_this_scale"] == "untestable here"


def test_a_measure_that_does_not_tell_trained_from_untrained_decides_nothing(results: Results) -> None:
    """Two seeds of untrained SAEs that probe as well as trained ones; then worse; then no better than by chance."""
    rows = results.evaluation
    atm = rows[(rows["group"] == "main") & (rows["method"] == "atm")]
    for probing, verdict in ((0.8, "untestable here"), (0.5, "reproduced")):
        control = atm.assign(group="untrained", method="untrained", probing_k1=probing, probing_k5=probing)
        state = replace(results, evaluation=pd.concat([rows, control], ignore_index=True))
        assert answer(state, "M-04")["at_this_scale"] == verdict
    assert not controls.no_better(state, "probing_k1") and not controls.no_better(state, "l0")
    alike = controls.no_better(state, "absorption_fraction")  # the control is ATM itself in all else
    assert "atm" in alike and "topk" in alike and "matryoshka_4" not in alike


def test_intervals_match_scipy_and_a_hand_made_factorial() -> None:
    values = [1.0, 2.0, 4.0, np.nan]
    interval = t_interval(values)
    expected = stats.ttest_1samp([1.0, 2.0, 4.0], 0).confidence_interval(0.95)
    assert interval.n == 3
    assert [interval.low, interval.high] == pytest.approx([expected.low, expected.high])
    assert math.isnan(t_interval([5.0]).low) and t_interval([]).n == 0
    first, second = pd.Series({1: 1.0, 2: 2.0, 3: 9.0}), pd.Series({1: 0.0, 2: 0.0, 4: 7.0})
    assert difference(first, second).n == 2 and difference(first, second).mean == 1.5

    rows = [
        {"seed": s, **dict(zip(MECHANISMS, on, strict=True)), "y": 2 * on[0] - 3 * on[1] + 0.5 * on[0] * on[1] + s}
        for s, on in itertools.product((1, 2), itertools.product((False, True), repeat=3))
    ]
    effects = [main_effect(pd.DataFrame(rows), "y", name) for name in MECHANISMS]
    assert [effect.mean for effect in effects] == pytest.approx([2.25, -2.75, 0.0])
    assert main_effect(pd.DataFrame(rows[:-1]), "y", "temporal").n == 1  # seed 2 lacks a cell
    assert seeds_of(pd.DataFrame(rows), "y")[2] - seeds_of(pd.DataFrame(rows), "y")[1] == pytest.approx(1.0)


def test_one_reversed_comparison_contradicts() -> None:
    up, down = t_interval([1.0, 1.1, 0.9]), t_interval([-1.0, -1.1, -0.9])
    assert decide([Comparison("x", up, "higher")]).verdict == "reproduced"
    assert decide([Comparison("x", up, "higher"), Comparison("y", down, "higher")]).verdict == "contradicted"
    assert decide([Comparison("y", down, "higher", allowed=2.0)]).verdict == "reproduced"
    assert decide([]).verdict == "not run at this profile"


def test_top_share_by_hand() -> None:
    """Ten latents: one at rate 10^-0.5, nine at 10^-1.5, bins one wide."""
    bins = pd.DataFrame({"log10_rate_left": [-2.0, -1.0, -np.inf], "count": [9, 1, 0]})
    assert top_share(bins, 0.1) == pytest.approx(10**-0.5 / (10**-0.5 + 9 * 10**-1.5))
    assert top_share(bins, 1.0) == pytest.approx(1.0)
    assert math.isnan(top_share(pd.DataFrame({"log10_rate_left": [-np.inf], "count": [10]}), 0.1))
