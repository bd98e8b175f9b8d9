"""Every figure that `make paper` writes: which function draws it, and from which results."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from sae_lib.profiles.profile import Profile
from sae_lib.report.figures import absorption, explaining, leaderboard, stability, sweep, toy, training
from sae_lib.report.figures.style import save_figure, set_style
from sae_lib.report.results import Results

# File in the figures folder, without its ending -> the function that draws it; its parameters name what it reads.
FIGURES: dict[str, Callable[..., tuple[Figure, pd.DataFrame]]] = {
    "training_curves": training.training_curves, "collapse": training.collapse_figure,
    "tokens": training.tokens_figure, "key_metrics": training.key_metrics,
    "absorption_picture": absorption.absorption_picture, "toy_matched": toy.toy_matched_figure,
    "toy_sweep": toy.toy_sweep_figure, "toy_rho": toy.toy_rho_figure, "toy_importance": toy.toy_importance_figure,
    "absorption_by_letter": absorption.letters_figure, "planted": absorption.planted_figure,
    "circuits": absorption.circuits_figure, "pareto": sweep.pareto_figure,
    "leaderboard": leaderboard.leaderboard_figure, "stability": stability.stability_figure,
    "ablation_effects": training.ablation_effects, "probe_by_letter": explaining.probe_figure,
    "mechanisms": explaining.mechanism_figure, "firing_rates": explaining.density_figure,
}  # fmt: skip


def write_figure(name: str, results: Results, profile: Profile, folder: Path | str) -> list[Path]:
    """Draw a figure of `FIGURES` and save it in `folder`; the paths of its PDF, PNG and CSV."""
    set_style()  # for good: to put the settings back would also turn off that notebooks show figures
    fig, data = results.into(FIGURES[name], profile)
    return save_figure(fig, name, data, folder)
