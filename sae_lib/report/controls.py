"""Which measures tell a trained SAE from one that was never trained, or whose decoder was left alone or shuffled."""

from __future__ import annotations

from sae_lib.report.names import MAIN_METHODS, METRICS
from sae_lib.report.results import Results
from sae_lib.report.statistics import ROUNDING, difference, guarded

# The groups of the results that hold controls.
CONTROLS = ("untrained", "control")
# Share of what a control leaves to be gained, up to 1 or down to 0, that a trained SAE has to gain.
LEAST_GAIN = 0.1


def like_controls(results: Results, metric: str) -> list[str]:
    """The methods of the main table that are not shown to be better in `metric` than each control, beyond the spread
    over seeds and by `LEAST_GAIN`. With any such method the measure does not tell trained from untrained.

    Empty where the metric has no better direction, or no control has two seeds.
    """
    better = METRICS[metric].direction if metric in METRICS else "none"
    if better == "none":
        return []
    rows = results.evaluation[results.evaluation["group"].isin(CONTROLS)]
    named = rows[["group", "method"]].drop_duplicates().itertuples(index=False, name=None)
    controls = [results.seeds(group, method, metric) for group, method in named]

    rounding = 2**0.5 * ROUNDING.get(metric, 0.0)

    def alike(method: str) -> bool:
        for control in controls:
            gap = guarded(difference(results.seeds("main", method, metric), control), rounding)
            least = LEAST_GAIN * ((1 - control.mean()) if better == "higher" else control.mean())
            gain, surely = (gap.mean, gap.low) if better == "higher" else (-gap.mean, -gap.high)
            if gap.n > 1 and not (surely > 0 and gain > least):
                return True
        return False

    return [method for method in MAIN_METHODS if alike(method)]
