"""What a measure tells of controls, worked out on a few rows; absorption beside nothing and beside what was planted."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from sae_lib.report.figures.absorption import circuits_figure, planted_figure
from sae_lib.report.names import MAIN_METHODS, method_name
from sae_lib.report.results import Results
from sae_lib.report.tables.controls import (
    MARK,
    above,
    controls_table,
    no_better,
    null_table,
)
from sae_lib.report.tables.main import main_table
from sae_lib.util.errors import ArtifactError
from tests.report import synthetic

SEEDS = (42, 43, 44)


def results(**changes: dict[str, list[float]]) -> Results:
    """Every method has explained variance .9 and full absorption .1, the controls .5 and .3, with a little spread over
    seeds; `changes` are other values of single methods."""
    rows = []
    for place, method in enumerate((*MAIN_METHODS, "untrained", "permuted", "soft_frozen")):
        group = "main" if method in MAIN_METHODS else "untrained" if method == "untrained" else "control"
        variance, full = (0.9, 0.1) if group == "main" else (0.5, 0.3)
        for at, seed in enumerate(SEEDS):
            row = {"group": group, "method": method, "label": "", "seed": seed, "run": f"{method}-{seed}", "l0": 20.0}
            row |= {"explained_variance": variance + 0.01 * at, "absorption_full": full + 0.001 * at * place}
            row |= {"letters": 20, "words": 100}
            row |= {name: values[at] for name, values in changes.get(method, {}).items()}
            rows.append(row)
    return Results(evaluation=pd.DataFrame(rows))


def test_a_measure_tells_where_every_method_is_better():
    found = results()
    assert not no_better(found, "explained_variance") and not no_better(found, "absorption_full")
    gap = above(found, "explained_variance", "topk", "untrained")
    assert gap.mean == pytest.approx(0.4) and gap.n == 3
    # Lower is better: .3 - .1, and what is added to the control over seeds.
    assert above(found, "absorption_full", "standard", "untrained").mean == pytest.approx(0.2 + 0.001 * 10)


@pytest.mark.parametrize(
    "values",
    [
        [0.50, 0.51, 0.52],  # the same
        [0.30, 0.31, 0.32],  # worse, beyond doubt
        [0.52, 0.80, 0.51],  # better on average: differences .02, .29, -.01, whose interval is .1 +- .41
    ],
)
def test_one_method_that_is_no_better_is_enough(values):
    found = results(dropout={"explained_variance": values})
    assert no_better(found, "explained_variance") == ("dropout",)
    assert no_better(found, "explained_variance") and not no_better(found, "absorption_full")


def test_a_soft_frozen_decoder_is_held_against_the_same_recipe():
    found = results(dropout={"explained_variance": [0.5, 0.51, 0.52]})
    assert not no_better(found, "explained_variance", "soft_frozen")
    assert no_better(found, "explained_variance", "permuted")
    found = results(topk={"explained_variance": [0.5, 0.51, 0.52]})
    assert no_better(found, "explained_variance", "soft_frozen") == ("topk",)


def test_what_has_no_better_side_or_no_spread_is_not_judged():
    assert no_better(results(), "l0") == ()
    one = results()
    one.evaluation = one.evaluation[(one.evaluation["method"] != "untrained") | (one.evaluation["seed"] == 42)]
    assert not no_better(one, "explained_variance")


def test_headers_are_marked_where_a_measure_does_not_tell():
    clear = main_table(results().evaluation)
    marked = main_table(results(atm={"explained_variance": [0.5, 0.51, 0.52]}).evaluation)
    assert MARK not in "".join([*clear.shown.columns, clear.caption])
    assert [c for c in marked.shown if MARK in c] == [f"explained variance ↑ {MARK}"] and MARK in marked.caption
    rows = [*marked.shown["method"]]
    assert rows[-3:] == ["Untrained", "Permuted decoder", "Soft-frozen decoder"]


def test_the_table_of_controls_names_who_is_no_better():
    found = results(atm={"explained_variance": [0.5, 0.51, 0.52]})
    shown = controls_table(found.evaluation, found.seed_stability).shown.set_index("measure")
    assert shown.loc["explained variance ↑", "Untrained"] == method_name("atm")
    assert shown.loc["explained variance ↑", "Soft-frozen decoder"] == "none"
    assert shown.loc["absorption, full ↓", "Permuted decoder"] == "none"
    assert shown.loc["CE score ↑", "Untrained"] == "–"  # not measured
    worse = results(**{method: {"explained_variance": [0.5, 0.51, 0.52]} for method in MAIN_METHODS})
    shown = controls_table(worse.evaluation, worse.seed_stability).shown.set_index("measure")
    assert shown.loc["explained variance ↑", "Untrained"] == "every method"


def test_absorption_beside_nothing():
    values = {"absorption_fraction": 0.3, "absorption_fraction_random": 0.1, "absorption_fraction_null": 0.8}
    evaluation = results().evaluation.assign(**values)
    shown = null_table(evaluation).shown.set_index("method")
    assert shown.loc["TopK", "above random –"].startswith("0.200")
    assert shown.loc["TopK", "below shuffled –"].startswith("0.500")
    assert shown.loc["TopK", "full, above random –"] == "–"  # not measured


def planted() -> pd.DataFrame:
    rows = [
        {"group": "main", "method": "topk", "seed": seed, "planted": share, "absorption_fraction": 0.1 + 0.8 * share,
         "absorption_full": share / 2, "absorption_fraction_known": share, "absorption_full_known": share,
         "main_latent_f1": 1 - share / 2}
        for seed in (42, 43)
        for share in (0.0, 0.5, 1.0)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_circuits_in_a_figure() -> None:
    fig, data = circuits_figure(synthetic.circuits())
    of = data.set_index(["method", "n"])
    assert of.loc[("topk", 100), "faithful_mean"] == pytest.approx(0.9) and of.loc[("untrained", 1), "outside_std"] == 0
    curves = {line.get_label(): [*np.asarray(line.get_ydata())] for line in fig.axes[0].lines}
    assert curves["TopK"] == pytest.approx([0.018, 0.054, 0.18, 0.54, 1.8]), "in logits"
    assert of.loc[("topk", 100), "outside_logit_mean"] == pytest.approx(2 * (1 - 0.9))
    with pytest.raises(ArtifactError, match="circuits: no rows"):
        circuits_figure(synthetic.circuits().iloc[:0])


def test_planted_absorption_in_a_figure():
    fig, data = planted_figure(planted())
    (ax,) = fig.axes
    curves = [np.asarray(line.get_ydata()) for line in ax.lines if len(np.asarray(line.get_xdata())) == 3]
    assert [curve.tolist() for curve in curves] == [pytest.approx([0.1, 0.5, 0.9]), pytest.approx([0, 0.25, 0.5])]
    assert len(data) == 3
    plt.close(fig)
    with pytest.raises(ArtifactError, match="planted: no rows"):
        planted_figure(synthetic.results().planted)
