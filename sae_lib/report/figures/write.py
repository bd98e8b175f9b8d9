"""Every figure that `make paper` writes: which function draws it, and from which results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from sae_lib.profiles.profile import Profile
from sae_lib.report.figures.absorption import absorption_picture, circuits_figure, letters_figure, planted_figure
from sae_lib.report.figures.explaining import density_figure, mechanism_figure, probe_figure
from sae_lib.report.figures.leaderboard import leaderboard_figure
from sae_lib.report.figures.stability import stability_figure
from sae_lib.report.figures.style import save_figure, set_style
from sae_lib.report.figures.sweep import pareto_figure
from sae_lib.report.figures.toy import toy_importance_figure, toy_matched_figure, toy_rho_figure, toy_sweep_figure
from sae_lib.report.figures.training import (
    ablation_effects,
    collapse_figure,
    key_metrics,
    tokens_figure,
    training_curves,
)
from sae_lib.report.results import Results

# File in the figures folder, without its ending -> the function that draws it; its parameters name what it reads.
FIGURES: dict[str, Callable[..., tuple[Figure, pd.DataFrame]]] = {
    "training_curves": training_curves,
    "collapse": collapse_figure,
    "tokens": tokens_figure,
    "key_metrics": key_metrics,
    "absorption_picture": absorption_picture,
    "toy_matched": toy_matched_figure,
    "toy_sweep": toy_sweep_figure,
    "toy_rho": toy_rho_figure,
    "toy_importance": toy_importance_figure,
    "absorption_by_letter": letters_figure,
    "planted": planted_figure,
    "circuits": circuits_figure,
    "pareto": pareto_figure,
    "leaderboard": leaderboard_figure,
    "stability": stability_figure,
    "ablation_effects": ablation_effects,
    "probe_by_letter": probe_figure,
    "mechanisms": mechanism_figure,
    "firing_rates": density_figure,
}


def write_figure(name: str, results: Results, profile: Profile, folder: Path | str) -> list[Path]:
    """Draw a figure of `FIGURES` and save it in `folder`; the paths of its PDF, PNG and CSV."""
    set_style()  # for good: to put the settings back would also turn off that notebooks show figures
    fig, data = results.into(FIGURES[name], profile)
    return save_figure(fig, name, data, folder)
