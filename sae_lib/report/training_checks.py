"""What training logs and firing rates say about a claim, over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from sae_lib.report.intervals import difference, main_effects, t_interval
from sae_lib.report.names import MECHANISMS, method_name
from sae_lib.report.results import Results, seeds_of, select
from sae_lib.report.verdicts import NOT_RUN, Comparison, Outcome, decide


def alpha_follows_loss(results: Results, options: Mapping[str, Any]) -> Outcome:
    """Rank correlation, within each run, of the penalty's alpha and the reconstruction loss: negative in the paper."""
    rows = select(results.history, options["group"], options["method"])
    if not {"alpha", "reconstruction"} <= set(rows.columns):
        return Outcome(NOT_RUN, "no log of alpha")
    rows = rows.dropna(subset=["alpha", "reconstruction"])
    correlations = {
        seed: float(stats.spearmanr(part["alpha"], part["reconstruction"]).statistic)
        for seed, part in rows.groupby("seed")
        if part["alpha"].nunique() > 1 and part["reconstruction"].nunique() > 1
    }
    saturated = t_interval(seeds_of(rows, "alpha_saturated")).mean
    note = f"; alpha is saturated at {saturated:.0%} of the steps" if math.isfinite(saturated) else ""
    name = "rank correlation of alpha and the reconstruction loss:"
    return decide([Comparison(name, t_interval(correlations.values()), "lower")], note)


def top_share(histogram: pd.DataFrame, top: float) -> float:
    """Share of all activations made by the most frequent `top` of the latents, from a histogram of log10 rates.

    A latent counts with the rate in the middle of its bin; latents that never fire have a bin at -inf or none.
    """
    bins = histogram.sort_values("log10_rate_left", ascending=False, kind="stable")
    left, count = bins["log10_rate_left"].to_numpy(float), bins["count"].to_numpy(float)
    finite = np.isfinite(left)
    widths = -np.diff(np.unique(left[finite])[::-1])
    middle = left + (widths.min() if len(widths) else 0.0) / 2
    rate = np.where(finite, 10.0 ** np.where(finite, middle, 0.0), 0.0)
    allowed = math.ceil(top * count.sum())
    taken = np.clip(allowed - (np.cumsum(count) - count), 0, count)
    total = float((rate * count).sum())
    return float((rate * taken).sum()) / total if total > 0 else math.nan


def dominance(results: Results, options: Mapping[str, Any]) -> Outcome:
    """Main effect of a mechanism on `top_share` in the factorial."""
    rows = results.evaluation[results.evaluation["group"] == "factorial"]
    # An SAE that stands in several groups has one histogram for each.
    histograms = results.density[results.density["run"].isin(rows["run"])].drop_duplicates(["run", "log10_rate_left"])
    shares = {run: top_share(part, options["top"]) for run, part in histograms.groupby("run")}
    if not set(MECHANISMS) <= set(rows.columns) or not shares:
        return Outcome(NOT_RUN, "no firing-rate histograms of the factorial")
    rows = rows.assign(share=rows["run"].map(shares))
    factor = options["factor"]
    effect = main_effects(rows, "share", MECHANISMS)[factor]
    mean = t_interval(seeds_of(rows, "share")).mean
    name = f"effect of {MECHANISMS[factor]} on the share of the top {options['top']:.0%} (mean {mean:.3f}):"
    return decide([Comparison(name, effect, "lower")])


def fluctuation(results: Results, options: Mapping[str, Any]) -> Outcome:
    """Standard deviation of the log reconstruction loss's changes in the second half of training; same batches."""

    def of(method: str) -> pd.Series:
        rows = select(results.history, "main", method)
        if "reconstruction" not in rows:
            return pd.Series(dtype=float)
        rows = rows[rows["reconstruction"] > 0].sort_values("step", kind="stable")
        rows = rows[rows["step"] > rows["step"].max() / 2]
        changes = {seed: np.diff(np.log(part["reconstruction"])) for seed, part in rows.groupby("seed")}
        return pd.Series({seed: c.std(ddof=1) for seed, c in changes.items() if len(c) > 1}, dtype=float)

    first, ours = options["first"], of(options["first"])
    return decide(
        [
            Comparison(
                f"fluctuation, {method_name(first)} − {method_name(method)}:",
                difference(ours, of(method)),
                options["want"],
            )
            for method in options["second"]
        ]
    )
