"""Tables: numbers as computed by hand, arrows in every header, files that repeat byte by byte."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sae_lib.profiles.profile import load_profile
from sae_lib.report.claims.file import load_claims
from sae_lib.report.names import MAIN_METHODS, METHODS
from sae_lib.report.results import Results
from sae_lib.report.tables import ablations as ablation_tables
from sae_lib.report.tables import main as tables
from sae_lib.report.tables.rows import Table
from sae_lib.report.tables.sweep import sweep_table
from sae_lib.report.tables.write import TABLES, make_tables, to_markdown, write_table
from sae_lib.util.errors import ArtifactError
from tests.report import synthetic


def sensitivity(evaluation: pd.DataFrame) -> Table:
    return ablation_tables.sensitivity_table(evaluation, Results().history)


ABSORPTION_BUILDERS = [
    tables.main_table,
    tables.as_written_table,
    ablation_tables.factorial_table,
    ablation_tables.sequence_table,
    sensitivity,
    ablation_tables.atm_table,
]
BUILDERS = [*ABSORPTION_BUILDERS, tables.quality_table, tables.probing_table]


@pytest.fixture(scope="module")
def evaluation() -> pd.DataFrame:
    return synthetic.evaluation()


def test_main_table_rows_columns_and_a_mean_by_hand(evaluation: pd.DataFrame) -> None:
    shown = tables.main_table(evaluation).shown
    assert list(shown["method"]) == [*(METHODS[method] for method in MAIN_METHODS), "Untrained"]
    assert list(shown.columns) == [
        "method", "seeds", "L0 –", "explained variance ↑", "cosine ↑", "CE score ↑", "absorption, fraction ↓",
        "absorption, full ↓", "letters –", "words –", "probing, k = 1 ↑", "contexts, firing ↑",
    ]  # fmt: skip
    atm = evaluation[(evaluation["group"] == "main") & (evaluation["method"] == "atm")]["absorption_fraction"]
    cell = shown.set_index("method").loc["ATM", "absorption, fraction ↓"]
    assert cell == f"{np.mean(atm):.3f} ± {np.std(atm, ddof=1):.3f}"
    assert shown.set_index("method").loc["Untrained", "seeds"] == "1"
    assert "±" not in shown.set_index("method").loc["Untrained", "L0 –"]


@pytest.mark.parametrize("build", ABSORPTION_BUILDERS)
def test_absorption_never_stands_alone(evaluation: pd.DataFrame, build) -> None:
    table = build(evaluation)
    beside = {"L0 –", "explained variance ↑", "CE score ↑", "letters –", "words –"}
    assert beside | {"absorption, fraction ↓"} <= set(table.shown.columns)
    assert table.shown.loc[0, ["letters –", "words –"]].tolist() == ["23", "700"]
    assert table.shown.shape[1] <= 12
    assert ("not to be ranked" in table.caption) and ("†" in table.caption or "L0 differs" in table.caption)
    assert "lower is better" in table.caption
    assert len(table.data) and not table.shown.isna().any().any()


def test_factorial_table_holds_cells_and_main_effects(evaluation: pd.DataFrame) -> None:
    table = ablation_tables.factorial_table(evaluation)
    assert len(table.shown) == 8 + 3
    rows = evaluation[evaluation["group"] == "factorial"]
    per_seed = rows.groupby(["seed", "resampling"])["l0"].mean().unstack()
    effect = (per_seed[True] - per_seed[False]).mean()
    found = table.data.set_index(["row", "metric"]).loc[("effect of resampling", "l0")]
    assert found["mean"] == pytest.approx(effect) and found["low"] < effect < found["high"]
    shown = table.shown.set_index("mechanisms").loc["effect of resampling", "L0 –"]
    assert re.fullmatch(r"\+8\.\d \[\+\d\.\d, \+\d\.\d\]|\+7\.\d \[\+\d\.\d, \+\d\.\d\]", shown)


def test_the_collapse_stands_below_what_was_published(evaluation: pd.DataFrame) -> None:
    table = ablation_tables.collapse_table(evaluation)
    shown = table.shown.set_index("SAE")
    assert [*shown.index] == [
        "published: baseline", "published: TemporalSAE", "baseline, as written", "TemporalSAE, as written",
        *synthetic.COLLAPSED,
    ]  # fmt: skip
    assert shown.loc["published: TemporalSAE"].tolist() == ["–", "1950.0", "–", "0.568", "0.313", "–", "–"]
    assert shown["seeds"].tolist()[2:] == ["5", "5", "3", "3", "3"]
    assert "Seeds: 42, 43, 44, 45, 46 in rows with 5; 42, 43, 44 in rows with 3." in table.caption
    assert "0 in rows" not in table.caption


def test_what_the_collapse_calls_published_is_what_the_claims_file_has() -> None:
    methods = {"published: baseline": "paper_standard", "published: TemporalSAE": "temporal_sae"}
    numbers = [number for claim in load_claims() for number in claim.published if not number.letter]
    printed = {(n.group, n.method, n.metric): float(n.value) for n in numbers}
    for name, values in ablation_tables.PUBLISHED.items():
        assert values == {metric: printed["as_written", methods[name], metric] for metric in values}


def test_sequence_table_is_in_the_papers_order(evaluation: pd.DataFrame) -> None:
    rows = ablation_tables.sequence_table(evaluation.iloc[::-1]).shown["run"]
    assert [name[:5] for name in rows] == ["Run 1", "Run 2", "Run 3", "Run 4"]


def test_sensitivity_table_is_in_order(evaluation: pd.DataFrame) -> None:
    assert list(sensitivity(evaluation.iloc[::-1]).shown["changed"]) == [
        "temporal coefficient 0.0001 (published)", "temporal coefficient 0.01", "temporal coefficient 1",
        "resampling threshold 1e-05", "no warm-up",
    ]  # fmt: skip


def test_rows_without_resampling_are_marked(evaluation: pd.DataFrame) -> None:
    rows = evaluation[evaluation["group"] == "sensitivity"]
    idle = rows["label"] == "resampling threshold 1e-05"
    steps = pd.DataFrame({"run": rows["run"], "resampled": np.where(idle, 0.0, 2.0)})
    history = pd.concat([steps, steps.assign(resampled=0.0)])
    table = ablation_tables.sensitivity_table(evaluation, history)
    assert [name for name in table.shown["changed"] if "‡" in name] == ["resampling threshold 1e-05 ‡"]
    assert "‡ no latent was resampled." in table.caption
    for unknown in (history.iloc[:0], history.drop(columns="resampled"), history.assign(resampled=np.nan)):
        table = ablation_tables.sensitivity_table(evaluation, unknown)
        assert not table.shown["changed"].str.contains("‡").any() and "‡" not in table.caption


def test_captions_name_the_seeds_of_their_rows(evaluation: pd.DataFrame) -> None:
    assert ablation_tables.sequence_table(evaluation).caption.endswith(" Seeds 42, 43, 44.")
    atm = ablation_tables.atm_table(evaluation).caption
    assert atm.endswith(" Seeds: 42, 43, 44 in rows with 3; 42 in rows with 1.")
    main = evaluation[evaluation["group"] == "main"]
    assert tables.difference_table(main).caption.endswith(" Seeds 42, 43, 44, 45, 46.")
    pairs = synthetic.seed_stability()
    assert tables.stability_table(main, pairs).caption.endswith(" Seeds 42, 43, 44, 45, 46.")
    assert "seeds" not in tables.profile_note(load_profile("pocket"))


def test_atm_table_has_drops_effects_and_grid(evaluation: pd.DataFrame) -> None:
    names = list(ablation_tables.atm_table(evaluation).shown["ATM"])
    assert names[:4] == ["all parts", "without magnitude", "without frequency", "without contribution"]
    assert "c = -0.5, r = 0.5" in names and len(names) == 4 + 16 + 3
    assert names[-1] == "without contribution − all parts"


def test_a_row_at_another_l0_is_marked(evaluation: pd.DataFrame) -> None:
    """Untrained at L0 500 against 16; a method 1.2 times off is not marked, 1.3 times off is."""
    for factor, mark in ((1.2, False), (1.3, True)):
        rows = evaluation.copy()
        rows.loc[(rows["group"] == "main") & (rows["method"] == "atm"), "l0"] = 16.1 * factor
        l0 = tables.main_table(rows).shown.set_index("method")["L0 –"]
        assert l0["ATM"].endswith("†") == mark
        assert l0["Untrained"].endswith("†") and not l0["Standard"].endswith("†")
    factorial = ablation_tables.factorial_table(evaluation).shown.set_index("mechanisms")["L0 –"]
    assert factorial["resampling"].endswith("†") and not factorial["temporal penalty"].endswith("†")
    assert "†" not in factorial["effect of resampling"]


def test_differences_from_standard_with_holm(evaluation: pd.DataFrame) -> None:
    table = tables.difference_table(evaluation)
    assert list(table.shown["method"]) == [METHODS[method] for method in MAIN_METHODS[1:]]
    main = evaluation[evaluation["group"] == "main"].sort_values("seed")
    by = {m: main.loc[main["method"] == m, "absorption_fraction"].to_numpy() for m in MAIN_METHODS}
    p = {METHODS[m]: stats.ttest_rel(by[m], by["standard"]).pvalue for m in MAIN_METHODS[1:]}
    data = table.data[table.data["metric"] == "absorption_fraction"].set_index("row")
    assert data["p"].to_dict() == pytest.approx(p)
    smallest = min(p, key=lambda name: p[name])
    assert data.loc[smallest, "p_holm"] == pytest.approx(9 * p[smallest])
    starred = table.shown.set_index("method")["absorption, fraction ↓"].str.endswith("*")
    assert starred.to_dict() == (data["p_holm"] < 0.05).to_dict()
    assert not table.shown["L0 –"].str.contains("*", regex=False).any()


def test_stability_table_has_pairs_with_their_interval(evaluation: pd.DataFrame) -> None:
    pairs = synthetic.seed_stability()
    shown = tables.stability_table(evaluation, pairs).shown.set_index("method")
    assert shown.shape[1] <= 12
    atm = pairs.loc[pairs["method"] == "atm", "matched_cosine"].mean()
    assert shown.loc["ATM", "seeds, matched cosine ↑"].startswith(f"{atm:.3f} [")
    assert shown.loc["Untrained", "seeds, matched cosine ↑"] == "–"
    assert tables.stability_table(evaluation, pairs.iloc[:0]).shown["method"].iloc[0] == "Standard"


def test_sweep_table_ranks_only_within_one_l0(evaluation: pd.DataFrame) -> None:
    table = sweep_table(evaluation, (16, 40, 1000))
    assert list(table.shown["L0"].unique()) == ["16", "40", "1000"]
    assert (table.shown[table.shown["L0"] == "1000"].iloc[:, 2:] == "–").all().all()
    assert {"explained variance ↑", "CE score ↑"} <= set(table.shown.columns) and "23 letters" in table.caption
    again = sweep_table(evaluation.sample(frac=1, random_state=0), (16, 40, 1000))
    pd.testing.assert_frame_equal(table.data, again.data)
    with pytest.raises(ArtifactError, match="no rows of group main or sweep"):
        sweep_table(evaluation.iloc[:0], (16,))


def test_poor_results(evaluation: pd.DataFrame) -> None:
    with pytest.raises(ArtifactError, match="no rows of group main"):
        tables.main_table(evaluation.iloc[:0])
    one = synthetic.evaluation(seeds=(42,))
    for build in BUILDERS:
        shown = build(one).shown
        assert "±" not in to_markdown(shown) and "nan" not in to_markdown(shown)
    gaps = evaluation.assign(kl_score=None).drop(columns="ce_score")
    shown = tables.quality_table(gaps).shown
    assert set(shown["KL score ↑"]) == {"–"} == set(shown["CE score ↑"])


@pytest.mark.parametrize("build", BUILDERS)
def test_files_repeat_and_hold_the_numbers(evaluation: pd.DataFrame, build, tmp_path: Path) -> None:
    table = build(evaluation)
    note = tables.profile_note(load_profile("pocket"))
    first = [path.read_bytes() for path in write_table(table, "t", tmp_path / "a", note)]
    again = build(evaluation.sample(frac=1, random_state=0))
    assert first == [path.read_bytes() for path in write_table(again, "t", tmp_path / "b", note)]
    data = pd.read_csv(tmp_path / "a" / "t.csv")
    np.testing.assert_allclose(data["mean"], table.data["mean"], rtol=1e-5)
    markdown = first[1].decode()
    assert markdown.count("\n|") == len(table.shown) + 1 and "Profile pocket" in markdown
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["t.csv", "t.md"]


def test_every_table_is_made_that_has_rows() -> None:
    results, profile = synthetic.results(), load_profile("pocket")
    made = make_tables(results, profile)
    assert set(made) == set(TABLES) and all(len(table.shown) for table in made.values())
    assert made["table_main"].shown.equals(tables.main_table(results.evaluation).shown)
    results.evaluation = results.evaluation[~results.evaluation["group"].isin(["collapse", "sequence"])]
    assert set(TABLES) - set(make_tables(results, profile)) == {"table_collapse", "table_sequence"}
    with pytest.raises(ArtifactError, match="no rows"):
        Results().into(TABLES["table_atm"], profile)


def test_ground_truth_stands_beside_what_was_published() -> None:
    results, profile = synthetic.results(), load_profile("pocket")
    table = make_tables(results, profile, ["table_ground_truth"])["table_ground_truth"]
    shown = table.shown.set_index(["method", "data"])
    assert len(shown) == 4 + 5 and shown.loc[("TopK", "synthetic"), "F1 ↑"] == "0.644 ± 0.002"
    published = shown.loc[("JumpReLU", "SynthSAEBench-16k, published")]
    assert [published[name] for name in ("F1 ↑", "MCC ↑", "explained variance ↑")] == ["0.732", "0.753", "0.795"]
    assert published["excess absorption ↓"] == "–"
    assert set(table.data["metric"]) >= {"f1", "mcc", "explained_variance", "l0", "excess_absorption"}
    ideas = make_tables(results, profile, ["table_ideas"])["table_ideas"].shown.set_index(["data", "change"])
    assert len(ideas) == 4 and ideas.loc[("chain, rho = 0.9", "1"), "excess absorption ↓"] == "0.500 ± 0.002"
    results.toy_summary = results.toy_summary[~results.toy_summary["experiment"].isin(["field", "ideas"])]
    assert not make_tables(results, profile, ["table_ground_truth", "table_ideas"]), "only where a profile asks for it"


@pytest.mark.parametrize(
    ("table", "index", "row", "column", "value"),
    [
        ("carriers", ["method", "latents"], ("TopK", "absorbed"), "logit lost: these latents –", "0.300 ± 0.016"),
        ("carriers", ["method", "latents"], ("TopK", "found"), "carried –", "0.95 ± 0.00"),
        ("perturbation", "method", "TopK", "TPP, N = 500 ↑", "0.300 ± 0.002"),
        ("perturbation", "method", "Untrained", "SCR, N = 2 ↑", "0.100 ± 0.000"),
        ("layer_groups", "layer", "1", "group", "0-1"),
        ("layer_groups", "layer", "1", "the group's: explained variance ↑", "0.850 ± 0.002"),
        ("layer_groups", "layer", "0", "difference", "-0.050 [-0.050, -0.050]"),
        ("layer_groups", "layer", "2", "difference", "–"),
        ("endings", "method", "TopK", "endings, full ↓", "0.200 ± 0.016"),
        ("endings", "method", "TopK", "shuffled endings –", "0.500 ± 0.000"),
        ("interpretation", "method", "TopK", "surprisal, AUC ↑", "0.700 ± 0.016"),
        ("interpretation", "method", "Untrained", "surprisal, AUC ↑", "0.600 ± 0.016"),
    ],
)
def test_what_a_study_asks_beside_the_scores(table: str, index: Any, row: Any, column: str, value: str) -> None:
    shown = synthetic.results().into(TABLES[f"table_{table}"], load_profile("pocket")).shown
    assert shown.set_index(index).loc[row, column] == value


@pytest.mark.parametrize("table", ["carriers", "perturbation", "layer_groups", "endings", "interpretation", "masked"])
def test_what_a_study_did_not_ask_has_no_table(table: str) -> None:
    with pytest.raises(ArtifactError, match=f"{table}: no rows"):
        Results().into(TABLES[f"table_{table}"], load_profile("pocket"))


def test_endings_stand_beside_first_letters() -> None:
    results = synthetic.results()
    table = results.into(TABLES["table_endings"], load_profile("pocket"))
    topk = results.evaluation.query("group == 'main' and method == 'topk'")["absorption_full"]
    shown = table.shown.set_index("method").loc["TopK", "first letters, full ↓"]
    assert shown == f"{topk.mean():.3f} ± {topk.std():.3f}" and "-ing (40), -ed (40)" in table.caption


def test_hidden_tokens_stand_by_their_share() -> None:
    table = synthetic.results().into(TABLES["table_masked"], load_profile("pocket"))
    assert list(table.shown["share hidden"]) == ["0", "0.1"] and "Matryoshka (4 levels)" in table.caption
    full = table.data[table.data["metric"] == "absorption_full"].set_index("row")["mean"]
    assert full["0.1"] == pytest.approx(full["0"] - 0.01)


def test_labels_are_for_reading_alone(evaluation: pd.DataFrame) -> None:
    """What a row is stands in columns: with other labels, and other names of the runs, every table is the same."""
    renamed = evaluation.assign(label=evaluation["label"].where(evaluation["group"] == "sensitivity", "x"))
    for build in (ablation_tables.sequence_table, ablation_tables.atm_table):
        pd.testing.assert_frame_equal(build(renamed).shown, build(evaluation).shown)
    other = evaluation.assign(label="s" + evaluation["label"])
    shown = sensitivity(other).shown["changed"]
    assert list(shown) == [f"s{name}" for name in sensitivity(evaluation).shown["changed"]]


def test_markup_is_escaped(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a_b": ["50 % | x", "λ1 ± ↓"]})
    assert to_markdown(frame).splitlines()[2] == "| 50 % \\| x |"
    table = Table(frame, pd.DataFrame({"row": ["a, b"], "mean": [1 / 3]}), "caption")
    paths = write_table(table, "x", tmp_path)
    assert list(csv.reader(io.StringIO(paths[0].read_text()))) == [["row", "mean"], ["a, b", "0.333333"]]
