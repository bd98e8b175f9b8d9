"""Which learning rate each method is to have at a profile: short runs with the sweep's seeds, judged on the calibration
documents, which no reported metric reads.

    python -m benchmarks.learning_rates --profile smollm2

Each method of `--methods` is trained for `--steps` steps at its own learning rate times each of `--factors`, its
schedules shortened in proportion. Told methods are compared by explained variance at their L0; L1 methods at one
coefficient by what they minimise, E||x - x_hat||^2 + lambda E||f||_1, in units of E||x||^2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from matplotlib import pyplot as plt

from benchmarks.output import arguments, save, table
from sae_lib.autoencoders.config import sae_config
from sae_lib.data.harvest import harvest
from sae_lib.data.tokens import load_tokens
from sae_lib.study.experiment import Experiment
from sae_lib.study.train_one import PUBLISHED_STEPS
from sae_lib.training.trainer import Trainer
from sae_lib.util.parallel import use_one_core

METHODS = ("topk", "matryoshka_4", "jumprelu", "standard", "gated")


def measure(profile: str, method: str, factor: float, steps: int, rows: np.ndarray) -> dict[str, Any]:
    """One short run, and what it gives on `rows` `[row, d_in]`."""
    use_one_core()
    experiment = Experiment.open(profile)
    settings = experiment.profile
    training = settings.training.model_copy(
        update={"steps": steps, "schedule_scale": steps / PUBLISHED_STEPS, "log_every": steps}
    )
    shorter = settings.model_copy(update={"training": training})
    coefficients = settings.sweep.coefficients.get(method)
    level = {"l1_coefficient": sorted(coefficients)[len(coefficients) // 2]} if coefficients else {}
    config = shorter.sae_config(method, level)
    rate = config.optimizer.learning_rate * factor
    config = sae_config(config.model_dump() | {"optimizer": config.optimizer.model_dump() | {"learning_rate": rate}})
    trainer = Trainer(config, experiment.store(), settings.data, training, settings.sweep.seeds[0], "cpu")
    for _ in range(steps):
        trainer.step()
    sae, x = trainer.finish(), torch.from_numpy(rows)
    with torch.no_grad():
        f = sae.encode(x)
        error = (x - sae.decode(f)).square().sum(dim=1).mean()
        power, spread = x.square().sum(dim=1).mean(), (x - x.mean(dim=0)).square().sum(dim=1).mean()
        # of inputs scaled to E||x||^2 = 1 a latent is 1 / sqrt(power) as large
        objective = error / power + level.get("l1_coefficient", 0.0) * f.sum(dim=1).mean() / power.sqrt()
    return {
        "method": method, "factor": factor, "learning_rate": rate, "l0": float((f != 0).sum(dim=1).float().mean()),
        "explained_variance": float(1 - error / spread), "objective": float(objective),
        "dead": float(((f != 0).sum(dim=0) == 0).float().mean()),
    }  # fmt: skip


def main() -> None:
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--profile", default="smollm2")
    parser.add_argument("--methods", nargs="+", default=[*METHODS])
    parser.add_argument("--factors", nargs="+", type=float, default=[0.5, 1.0, 2.0, 4.0])
    parser.add_argument("--steps", type=int, default=400)
    asked = parser.parse_args()
    experiment = Experiment.open(asked.profile)
    tokens = load_tokens(experiment.paths.tokens, "calibration")
    folder = experiment.paths.reference / "calibration"
    store = harvest(experiment.language_model(whole=False), tokens, folder)
    rows = store.rows(np.arange(store.n_rows)).numpy()
    jobs = [(method, factor) for method in asked.methods for factor in asked.factors]
    runs = Parallel(n_jobs=experiment.workers)(
        delayed(measure)(asked.profile, method, factor, asked.steps, rows) for method, factor in jobs
    )
    fig, ax = plt.subplots(figsize=(5, 3.5))
    for method in asked.methods:
        of_method = [run for run in runs if run["method"] == method]
        ax.semilogx([run["learning_rate"] for run in of_method], [run["explained_variance"] for run in of_method], "o-")
    ax.set(xlabel="learning rate", ylabel="explained variance, calibration documents")
    ax.legend(asked.methods, fontsize=7)
    lines = [
        [
            run["method"], f"{run['learning_rate']:.2g}", f"{run['l0']:.1f}", f"{run['explained_variance']:.4f}",
            f"{run['objective']:.4f}", f"{run['dead']:.3f}",
        ]
        for run in runs
    ]  # fmt: skip
    text = table(["method", "learning rate", "L0", "explained variance", "objective", "silent"], lines)
    save(asked.output, f"learning_rates_{asked.profile}", {"steps": asked.steps, "runs": runs}, fig, text)


if __name__ == "__main__":
    main()
