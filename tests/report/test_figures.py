"""Figures: what is drawn is what is in the CSV, files repeat byte by byte, poor results do not break them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import rc_context
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb

from sae_lib.profiles.profile import load_profile
from sae_lib.report.figures.absorption import absorption_picture, letters_figure
from sae_lib.report.figures.explaining import mechanism_figure
from sae_lib.report.figures.style import look, save_figure, set_style
from sae_lib.report.figures.sweep import pareto_figure
from sae_lib.report.figures.training import (
    ablation_effects,
    collapse_figure,
    key_metrics,
    training_curves,
)
from sae_lib.report.figures.write import FIGURES, write_figure
from sae_lib.report.names import MAIN_METHODS, METHODS
from sae_lib.report.results import Results
from sae_lib.util.errors import ArtifactError
from tests.report import synthetic

DRAWN = (
    "training_curves", "collapse", "tokens", "key_metrics", "ablation_effects", "absorption_by_letter", "pareto",
    "leaderboard", "stability", "absorption_picture",
)  # fmt: skip


@pytest.fixture(scope="module")
def results() -> Results:
    return synthetic.results()


def test_the_collapse_adds_up_restarts_and_follows_the_paper_s_two_saes(results: Results) -> None:
    history = results.history.assign(resampled=3.0)
    _, data = collapse_figure(history, results.trajectory)
    assert {*data["quantity"]} == {"l0", "unexplained", "restarted", "absorption_full"}
    assert {*data["method"]} == {"paper_standard", "temporal_sae"} and {*data["seed"]} == {42}
    restarts = data[(data["quantity"] == "restarted") & (data["method"] == "temporal_sae")]
    assert restarts["value"].tolist() == [3.0 * (n + 1) for n in range(len(restarts))]
    with pytest.raises(ArtifactError, match="trajectory"):
        collapse_figure(history, Results().trajectory)


@pytest.mark.parametrize("name", DRAWN)
def test_files_repeat_say_what_is_better_and_hold_what_is_drawn(name: str, results: Results, tmp_path: Path) -> None:
    written = []
    for folder in ("a", "b"):
        fig, data = results.into(FIGURES[name], load_profile("pocket"))
        written.append([path.read_bytes() for path in save_figure(fig, name, data, tmp_path / folder)])
    assert written[0] == written[1]
    assert b"CreationDate" not in written[0][0] and written[0][1].startswith(b"\x89PNG")
    read = pd.read_csv(tmp_path / "a" / f"{name}.csv")
    assert list(read.columns) == list(data.columns)
    numbers = data.select_dtypes("number").columns
    np.testing.assert_allclose(read[numbers].to_numpy(float), data[numbers].to_numpy(float), rtol=1e-5)
    texts = [label for ax in fig.axes for label in (ax.get_xlabel(), ax.get_ylabel(), ax.get_title())]
    assert name == "absorption_picture" or any("better" in text or "steadier" in text for text in texts)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        f"{name}.csv", f"{name}.pdf", f"{name}.png",
    ]  # fmt: skip


def test_curves_are_means_and_bands_over_seeds(results: Results) -> None:
    fig, data = training_curves(results.history)
    rows = results.history.query("group == 'main' and method == 'atm' and step == 100")
    line = data.query("quantity == 'unexplained' and method == 'atm' and step == 100").iloc[0]
    unexplained = 1 - rows["explained_variance"]
    assert (line["mean"], line["min"], line["max"], line["count"]) == (
        pytest.approx(unexplained.mean()), unexplained.min(), unexplained.max(), 5,
    )  # fmt: skip
    drawn = {text.get_text() for text in fig.legends[0].get_texts()}
    assert drawn == {METHODS[method] for method in MAIN_METHODS}
    assert set(data["method"]) == set(MAIN_METHODS)  # the as-written runs are not among them


def test_methods_differ_without_colour() -> None:
    main = [look(method) for method in MAIN_METHODS]
    assert len({each.color for each in main}) == len({each.marker for each in main}) == len(main)
    assert len({each.line for each in main}) == len(main)


def test_methods_differ_in_colour_for_the_colour_blind() -> None:
    """Distance in CIELAB as seen with deuteranopia and protanopia (Machado et al. 2009, severity 1)."""
    seen = {
        "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    }
    rgb = np.array([to_rgb(look(method).color) for method in MAIN_METHODS])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz_of = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])
    for kind, matrix in seen.items():
        xyz = np.clip(linear @ np.array(matrix).T, 0, 1) @ xyz_of.T / np.array([0.9505, 1.0, 1.0888])
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
        distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 999 * np.eye(len(lab))
        assert distance.min() > 12, kind


def test_key_metrics_draws_each_seed(results: Results) -> None:
    fig, data = key_metrics(results.evaluation)
    dots = [drawn for drawn in fig.axes[0].collections if isinstance(drawn, PathCollection)]
    assert [len(np.asarray(each.get_offsets())) for each in dots] == [5] * 10
    row = data.query("method == 'topk' and metric == 'absorption_fraction'").iloc[0]
    assert row["low"] < row["mean"] < row["high"] and row["n"] == 5


def test_pareto_joins_levels_and_marks_the_papers_own(results: Results) -> None:
    fig, data = pareto_figure(results.evaluation)
    assert [ax.get_title("left")[:3] for ax in fig.axes] == ["(a)", "(b)", "(c)", "(d)"]
    assert fig.axes[0].get_xscale() == "log"
    levels = data.query("metric == 'absorption_fraction' and method == 'atm'")
    assert sorted(levels["level"]) == ["k=12", "k=160", "k=30", "k=64", "k=8", "main"]
    lines = [
        line for line in fig.axes[0].lines if line.get_marker() == "None" and len(np.atleast_1d(line.get_xdata())) == 6
    ]
    assert len(lines) == len(MAIN_METHODS)
    main = levels[levels["level"] == "main"].iloc[0]
    own = results.evaluation.query("group == 'main' and method == 'atm'")["absorption_fraction"]
    assert main["mean"] == pytest.approx(own.mean()) and main["n"] == 5
    written = data.query("metric == 'absorption_fraction' and level == 'as written'")
    assert set(written["method"]) == {"paper_standard", "topk", "jumprelu", "temporal_sae", "paper_atm"}
    assert {text.get_text() for text in fig.legends[0].get_texts()} >= {METHODS[method] for method in MAIN_METHODS}


def test_collapsed_saes_do_not_stretch_the_axis(results: Results) -> None:
    rows = results.evaluation.copy()
    collapsed = (rows["group"] == "as_written") & (rows["method"] == "temporal_sae")
    rows.loc[collapsed, "explained_variance"] = -40.0
    fig, data = pareto_figure(rows)
    assert fig.axes[1].get_ylim()[0] > 0.5
    assert "↓ -40.00" in [text.get_text() for text in fig.axes[1].texts]
    assert data["mean"].min() == -40.0


def test_rare_letters_are_shown_with_their_words(results: Results) -> None:
    probe = pd.DataFrame({"letter": ["x", "z"], "test_words": [8, 4], "probe_f1": [0.4, 0.5]})
    fig, data = letters_figure(results.letters, probe)
    counts = dict(
        zip(
            [label.get_text() for label in fig.axes[1].get_xticklabels()],
            [text.get_text() for text in fig.axes[0].texts],
            strict=True,
        )
    )
    assert (counts["j"], counts["q"], counts["x"], counts["z"]) == ("37", "23", "8", "4") and len(counts) == 25
    assert "x" not in set(data["letter"])


def test_picture_keeps_the_order_of_rows_and_latents(results: Results) -> None:
    with pytest.raises(ArtifactError, match="toy SAEs of notebook 03 first"):
        absorption_picture(results.toy.head(0), results.toy_summary)
    fig, _ = absorption_picture(results.toy, results.toy_summary)
    upper = fig.axes[0]
    assert [text.get_text() for text in upper.get_yticklabels()] == list(results.toy["row"].unique()[:5])
    assert "parent silent 0.92" in upper.get_title(loc="center")


def test_poor_results(results: Results, tmp_path: Path) -> None:
    """One seed, missing parts, NaN: drawn as far as there is something to draw."""
    one = synthetic.results(seeds=(42,))
    only_factorial = one.evaluation[one.evaluation["group"] == "factorial"]
    sparse = one.evaluation.assign(absorption_fraction=None)
    fig, data = ablation_effects(only_factorial)
    save_figure(fig, "poor", data, tmp_path)
    assert set(data["part"]) == {"mechanism"}
    _, curves = training_curves(one.history)
    assert (curves["min"] == curves["max"]).all()
    _, metrics = key_metrics(sparse)
    assert metrics.query("metric == 'absorption_fraction'")["n"].eq(0).all()
    _, picture = absorption_picture(one.toy, one.toy_summary)
    assert picture["std"].isna().all()
    assert letters_figure(one.letters.iloc[:0], one.probe)[1].empty
    _, points = pareto_figure(sparse.drop(columns="probing_k1"))
    assert set(points["metric"]) == {"explained_variance", "ce_score"}
    assert points.query("level == 'main'")["low"].isna().all()  # one seed has no interval
    for draw, table in (
        (training_curves, results.history),
        (key_metrics, results.evaluation),
        (ablation_effects, results.evaluation),
        (pareto_figure, results.evaluation),
    ):
        with pytest.raises(ArtifactError, match="no rows"):
            draw(table.iloc[:0])
    with pytest.raises(ArtifactError, match="no rows"):
        absorption_picture(results.toy.iloc[:0], results.toy_summary)


def test_a_figure_looks_the_same_whoever_draws_it(results: Results, tmp_path: Path) -> None:
    """`make study` draws outside of a notebook, where nobody has set the style."""
    profile = load_profile("smoke")
    with rc_context():
        set_style()
        styled = [path.read_bytes() for path in write_figure("pareto", results, profile, tmp_path / "a")]
    with rc_context({"figure.constrained_layout.use": False, "font.size": 20}):
        plain = [path.read_bytes() for path in write_figure("pareto", results, profile, tmp_path / "b")]
    assert styled == plain


def test_nothing_is_drawn_of_mechanisms_that_nobody_has(results: Results) -> None:
    history = results.history[results.history["method"] == "topk"].drop(columns=["alpha_saturated"], errors="ignore")
    with pytest.raises(ArtifactError, match="mechanism"):
        mechanism_figure(history.drop(columns=["mask_rate", "resampled"], errors="ignore"))
