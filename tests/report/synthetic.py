"""Results as the notebooks leave them, made up: the schema with plausible numbers, seeded."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae_lib.profiles.profile import load_profile
from sae_lib.report.results import Results

POCKET = load_profile("pocket")
GEMMA = POCKET.model_copy(update={"model": POCKET.model.model_copy(update={"name": "google/gemma-2-2b"})})
SEEDS = (42, 43, 44, 45, 46)
SWEEP_SEEDS = (7, 8)
LETTERS = "abcdefghijklmnopqrstuvw"
# method -> (absorption fraction, explained variance, L0) of the main table
MAIN = {
    "standard": (0.12, 0.90, 16.0),
    "gated": (0.13, 0.91, 16.3),
    "topk": (0.20, 0.92, 16.0),
    "batchtopk": (0.19, 0.93, 16.4),
    "matryoshka_2": (0.05, 0.90, 16.1),
    "matryoshka_4": (0.03, 0.88, 15.9),
    "jumprelu": (0.17, 0.91, 15.6),
    "temporal_sae": (0.10, 0.84, 17.0),
    "atm": (0.06, 0.87, 15.8),
    "dropout": (0.08, 0.86, 16.2),
}
WRITTEN = {
    "paper_standard": (0.02, 0.97, 300.0),
    "topk": (0.01, 0.99, 320.0),
    "jumprelu": (0.01, 0.98, 310.0),
    "temporal_sae": (0.05, 0.60, 120.0),
    "paper_atm": (0.02, 0.95, 250.0),
}
COLLAPSED = {
    "temporal penalty alone": (0.02, 0.97, 300.0),
    "gradient scaling alone": (0.02, 0.97, 310.0),
    "resampling alone": (0.30, 0.60, 900.0),
}


def measured(rng: np.random.Generator, method: str, variance: float) -> dict[str, float]:
    """Sparse probing and stability of one SAE; ATM's are the best."""
    gain = 0.04 * (method == "atm")
    k1 = 0.60 + 0.15 * variance + gain + 0.003 * rng.standard_normal()
    return {
        "probing_k1": k1, "probing_k2": k1 + 0.03, "probing_k5": k1 + 0.07, "probing_all": 0.95, "probing_chance": 0.5,
        "context_firing": 0.6 + 4 * gain + 0.01 * rng.standard_normal(), "context_probe": 0.93, "context_words": 300,
        "token_change": 0.8 - 4 * gain + 0.01 * rng.standard_normal(), "token_change_shuffled": 1.2,
        "token_autocorrelation": 0.2 + 0.01 * rng.standard_normal(), "token_autocorrelation_shuffled": 0.0,
    }  # fmt: skip


def sae_row(rng: np.random.Generator, group: str, method: str, seed: int, centre: Any, **more: Any) -> dict[str, Any]:
    absorption, variance, l0 = centre
    absorption = max(0.0, absorption + 0.004 * rng.standard_normal())
    variance = variance + 0.002 * rng.standard_normal()
    tag = "-".join(str(value) for value in more.values())
    return {
        "run": f"{group}-{method}-{seed}-{tag}", "group": group, "method": method, "label": "", "seed": seed,
        "architecture": "standard", "temporal": False, "resampling": False, "gradient_scaling": False,
        "masking": False, "c": np.nan, "r": np.nan, "importance": None, "dropped": None, "varied": None,
        "paper_run": None, "l1_coefficient": 0.04,
        "temporal_coefficient": np.nan, "resampling_threshold": np.nan, "k": np.nan, "target_l0": np.nan,
        "d_sae": 1024, "steps": 976,
        "tokens": 999_424, "train_seconds": 20.0, "final_loss": 0.2 + 0.01 * rng.standard_normal(),
        "l0": l0 * (1 + 0.01 * rng.standard_normal()), "l1": 2.2 * l0, "mse": 1 - variance,
        "cosine": variance**0.5, "explained_variance": variance, "ce_clean": 3.5, "ce_zero": 8.0,
        "ce_sae": 3.7, "ce_score": min(1.0, variance + 0.05), "kl_zero": 5.0, "kl_sae": 0.2,
        "kl_score": min(1.0, variance + 0.04), "dead_fraction": 0.1 + 0.01 * rng.standard_normal(),
        "absorption_fraction": absorption, "absorption_full": absorption / 4,
        "absorption_unthresholded": absorption * 2, "num_split_features": 1.3 + 0.05 * rng.standard_normal(),
        "probe_f1": 0.9, "letters": len(LETTERS), "words": 700,
        **measured(rng, method, variance),
    } | more  # fmt: skip


def evaluation(seeds: tuple[int, ...] = SEEDS) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [sae_row(rng, "main", m, s, centre) for m, centre in MAIN.items() for s in seeds]
    rows += [sae_row(rng, "as_written", m, s, centre) for m, centre in WRITTEN.items() for s in seeds]
    for method, (absorption, variance, _) in MAIN.items():
        for l0 in (8.0, 12.0, 30.0, 64.0, 160.0):
            centre = (absorption * (16 / l0) ** 0.3, 1 - (1 - variance) * (16 / l0) ** 0.4, l0)
            rows += [sae_row(rng, "sweep", method, s, centre, label=f"k={l0:g}") for s in SWEEP_SEEDS]
    rows += [sae_row(rng, "untrained", "untrained", s, (0.03, 0.25, 500.0)) for s in seeds[:1]]
    for on in itertools.product((False, True), repeat=3):
        temporal, resampling, scaling = on
        centre = (0.12 - 0.02 * temporal, 0.90 - 0.004 * resampling, 16 + 8 * resampling)
        parts = {"temporal": temporal, "resampling": resampling, "gradient_scaling": scaling}
        dead = 0.3 - 0.25 * resampling
        rows += [
            sae_row(rng, "factorial", "temporal_sae", s, centre, **parts, dead_fraction=dead + 0.001 * s)
            for s in seeds[:3]
        ]
    for number in (1, 2, 3, 4):
        centre = (0.05 + 0.01 * number, 0.8, 120.0)
        rows += [sae_row(rng, "sequence", "temporal_sae", s, centre, paper_run=f"run_{number}") for s in seeds[:3]]
    usual = {"temporal_coefficient": 1e-4, "resampling_threshold": 0.005}
    for coefficient, threshold in ((1e-4, 0.005), (1e-2, 0.005), (1.0, 0.005), (1e-4, 1e-5)):
        varied = "resampling_threshold" if threshold < 0.005 else "temporal_coefficient"
        name = f"{varied.replace('_', ' ')} {threshold if threshold < 0.005 else coefficient:g}"
        centre = (0.10 - 0.03 * (coefficient == 1), 0.84 + 0.05 * (threshold < 0.005), 17.0)
        where: dict[str, Any] = {"temporal_coefficient": coefficient, "resampling_threshold": threshold}
        where |= {"label": name, "varied": varied}
        rows += [sae_row(rng, "sensitivity", "temporal_sae", s, centre, **where) for s in seeds[:3]]
    where = {"label": "no warm-up", "varied": "warm_up", **usual}
    rows += [sae_row(rng, "sensitivity", "temporal_sae", s, (0.1, 0.7, 17.0), **where) for s in seeds[:3]]
    for dropped, extra in (("nothing", 0.0), ("magnitude", 0.03), ("frequency", 0.04), ("contribution", 0.05)):
        centre = (0.06 + extra, 0.87, 15.8)
        rows += [sae_row(rng, "atm_importance", "atm", s, centre, dropped=dropped) for s in seeds[:3]]
    for c, r in itertools.product((-0.5, 0.0, 0.5, 1.0), (0.5, 1.0, 2.0, 5.0)):
        centre = (0.10 - 0.02 * c - 0.005 * r, 0.9 - 0.01 * r, 15 - c)
        rows.append(sae_row(rng, "atm_grid", "atm", seeds[0], centre, c=c, r=r))
    for label, centre in COLLAPSED.items():
        rows += [sae_row(rng, "collapse", "temporal_sae", s, centre, label=label) for s in seeds[:3]]
    for method, centre in (("atm", (0.07, 0.88, 16.0)), ("dropout", (0.09, 0.87, 16.0))):
        rows += [sae_row(rng, "atm_fair", method, s, centre, c=0.0, r=2.0) for s in seeds]
    return pd.DataFrame(rows)


def letters(seeds: tuple[int, ...] = SEEDS) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = []
    for group, centres in (("main", MAIN), ("as_written", WRITTEN)):
        for (method, centre), seed in itertools.product(centres.items(), seeds):
            for place, letter in enumerate(LETTERS):
                fraction = float(np.clip(centre[0] * rng.gamma(2, 0.5), 0, 1))
                rows.append(
                    {
                        "run": f"{group}-{method}-{seed}-", "group": group, "method": method, "label": "",
                        "seed": seed, "letter": letter, "probe_f1": 0.9, "test_words": 60 - 2 * place,
                        "true_positives": 55 - 2 * place, "absorption_fraction": fraction,
                        "absorption_full": fraction / 4, "absorption_unthresholded": fraction * 2,
                        "num_split_features": 1 + (place % 2), "k1_f1": 0.7,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def history(seeds: tuple[int, ...] = SEEDS, steps: int = 976) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    rows = []
    noise = {"standard": 0.02, "jumprelu": 0.08}
    shown = {method: WRITTEN[method] for method in ("paper_standard", "temporal_sae")}
    for group, centres in (("main", MAIN), ("as_written", shown)):
        for (method, (_, variance, l0)), seed in itertools.product(centres.items(), seeds):
            temporal = method == "temporal_sae"
            for step in range(0, steps, 20):
                unexplained = (1 - variance) + 0.9 * np.exp(-step / 60)
                loss = unexplained * np.exp(noise.get(method, 0.03) * rng.standard_normal())
                rows.append(
                    {
                        "run": f"{group}-{method}-{seed}-", "group": group, "method": method, "seed": seed,
                        "step": step, "tokens": step * 1024, "loss": loss * (1.5 + len(method) / 4),
                        "reconstruction": loss, "sparsity": 0.1, "auxiliary": 0.0, "temporal": 0.0,
                        "l0": l0 * (1 + 3 * np.exp(-step / 100)), "explained_variance": 1 - loss,
                        "dead_fraction": 0.1, "mask_rate": np.nan, "resampled": 0,
                        "alpha": float(step < 200 or rng.random() < 0.5) if temporal else np.nan,
                        "alpha_saturated": 0.9 if temporal else np.nan,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def density(table: pd.DataFrame) -> pd.DataFrame:
    """A histogram for each SAE of the factorial; gradient scaling moves mass out of the top bins."""
    lefts = np.arange(-5.0, 0.0, 0.25)
    rows = []
    for sae in table[table["group"] == "factorial"].itertuples():
        centre = -2.5 - (0.3 if sae.gradient_scaling else 0.0) + 0.001 * (sae.seed - 44)
        counts = np.round(1000 * np.exp(-((lefts - centre) ** 2) / (1.0 if sae.gradient_scaling else 1.6)))
        rows += [
            {
                "run": sae.run,
                "method": sae.method,
                "seed": sae.seed,
                "log10_rate_left": left,
                "count": int(count),
            }
            for left, count in zip(lefts, counts, strict=True)
        ]
    return pd.DataFrame(rows)


# method -> how often its parent is silent, how far its child points along the parent
TOYS = {
    "standard": (0.92, 0.6), "gated": (0.90, 0.6), "topk": (0.85, 0.6), "batchtopk": (0.84, 0.6),
    "matryoshka": (0.02, 0.1), "jumprelu": (0.88, 0.6), "temporal_sae": (0.90, 0.6), "temporal_previous": (0.7, 0.5),
    "variance": (0.7, 0.5), "consistent": (0.1, 0.1), "atm": (0.01, 0.1), "dropout": (0.1, 0.5),
}  # fmt: skip


def toys(seeds: tuple[int, ...] = SEEDS) -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(3)
    features = ["parent", "child 1", "child 2", "child 3"]
    rows = []
    for method, seed in itertools.product(("standard", "atm", "dropout"), seeds):
        silent, along = TOYS[method]
        for place, name in enumerate(["parent only", *(f"parent + {child}" for child in features[1:]), "none"]):
            for at, latent in enumerate(features):
                on = (latent == "parent" and name != "none") or (at > 0 and at == place)
                value = float(on) * (1 - silent if latent == "parent" and 0 < place < 4 else 1)
                value = abs(value + 0.01 * rng.standard_normal())
                rows.append((method, seed, "activation", name, latent, value))
        for feature, latent in itertools.product(features, features):
            value = 1.0 if feature == latent else along if feature == "parent" else 0.0
            rows.append((method, seed, "cosine", feature, latent, value + 0.02 * rng.standard_normal()))
    columns = ["method", "seed", "kind", "row", "latent", "value"]
    return pd.DataFrame(rows, columns=columns), toy_summary(seeds)


def toy_summary(seeds: tuple[int, ...] = SEEDS) -> pd.DataFrame:
    rng = np.random.default_rng(4)

    def row(experiment: str, toy: str, method: str, seed: int, silent: float, **more: Any) -> dict[str, Any]:
        return {
            "experiment": experiment, "toy": toy, "method": method, "label": "", "seed": seed, "rho": 0.0,
            "parent_silent_rate": silent + 0.005 * rng.standard_normal(), "miss_rate": 0.01,
            "cos_child_parent": TOYS[method][1] + 0.01 * rng.standard_normal(),
            "cos_parent_parent": 0.98 - 0.05 * (silent > 0.5) + 0.001 * rng.standard_normal(),
            "explained_variance": 0.98 + 0.001 * rng.standard_normal(), "l0": 1.1, "true_l0": 1.12,
            "dead_fraction": 0.2, "top_share": 0.3, "alpha_loss_correlation": np.nan,
        } | more  # fmt: skip

    rows = []
    toys = [("pair", method) for method in ("standard", "atm", "dropout")] + [("tree", method) for method in TOYS]
    for (toy, method), seed in itertools.product(toys, seeds):
        silent = TOYS[method][0]
        temporal = {"alpha_loss_correlation": -0.5 + 0.01 * seed / 46} if method == "temporal_sae" else {}
        rows.append(row("matched", toy, method, seed, silent, **temporal))
    for on, seed in itertools.product(itertools.product((False, True), repeat=3), seeds):
        parts = dict(zip(("temporal", "resampling", "gradient_scaling"), on, strict=True))
        values = {
            "dead_fraction": 0.2 - 0.1 * on[1] + 0.001 * rng.standard_normal(),
            "top_share": 0.3 - 0.05 * on[2] + 0.001 * rng.standard_normal(),
        }
        rows.append(row("factorial", "tree", "temporal_sae", seed, 0.9 - 0.2 * on[0], **parts, **values))
    for dropped, silent in IMPORTANCE.items():
        rows += [row("importance", "tree", "atm", seed, silent, dropped=dropped) for seed in seeds]
    for toy, (method, f1), seed in itertools.product(("loud", "synthetic"), FIELD.items(), seeds):
        silent = TOYS[method][0]
        found = {"f1": f1 + 0.001 * seed, "mcc": 0.7, "excess_absorption": silent - 0.01}
        rows.append(row("field", toy, method, seed, silent, **found))
    for (toy, method), seed in itertools.product([*itertools.product(("tree",), ("matryoshka", IDEA))], seeds):
        found = {"f1": 0.8, "mcc": 0.7, "excess_absorption": (0.1 if method == IDEA else 0.3) + 0.001 * seed}
        rows.append(row("field", toy, method, seed, 0.5, **found) | {"explained_variance": 0.9})
    for toy, weight, seed in itertools.product(("tree", "chain"), (0, 1), seeds):
        excess = 0.8 - 0.3 * weight + 0.001 * (seed - 44)
        named = {"idea": "consistency", "label": str(weight), "rho": 0.9 * (toy == "chain")}
        rows.append(row("ideas", toy, "standard", seed, 0.9, f1=0.5, excess_absorption=excess) | named)
    return pd.DataFrame(rows)


# method of the field's toys -> F1
FIELD = {"topk": 0.6, "matryoshka": 0.8}
# An idea that is held against the best of the field, on the tree too.
IDEA = "consistent"
# part dropped from the importance -> how often the parent is silent
IMPORTANCE = {"nothing": 0.01, "magnitude": 0.1, "frequency": 0.2, "contribution": 0.3}


def seed_stability(seeds: tuple[int, ...] = SEEDS) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    rows = []
    for method, (a, b) in itertools.product(MAIN, itertools.combinations(seeds, 2)):
        cosine = 0.5 + 0.2 * (method == "atm") + 0.01 * rng.standard_normal()
        rows.append(
            {
                "group": "main", "method": method, "seed_a": a, "seed_b": b, "matched_cosine": cosine,
                "max_cosine": cosine + 0.05, "share_matched": cosine - 0.2,
            }
        )  # fmt: skip
    return pd.DataFrame(rows, columns=["group", "method", "seed_a", "seed_b", "matched_cosine", "max_cosine",
                                       "share_matched"])  # fmt: skip


def probing_tasks(table: pd.DataFrame) -> pd.DataFrame:
    keys = ["run", "group", "method", "label", "seed", "probing_k1", "probing_k2", "probing_k5", "probing_all"]
    rows = table.loc[table["group"] == "main", keys].rename(columns=lambda name: name.removeprefix("probing_"))
    tasks = [rows.assign(dataset=f"set {n % 2}", task=f"task {n}", train=400, test=100) for n in range(3)]
    return pd.concat(tasks, ignore_index=True)


def trajectory() -> pd.DataFrame:
    """Absorption that rises along TemporalSAE's run and hardly along others."""
    followed = {("as_written", "paper_standard"): 1e-5, ("as_written", "temporal_sae"): 6e-4, ("main", "topk"): 4e-4}
    rows = [
        {
            "run": f"{group}-{method}-42-", "group": group, "method": method, "label": "", "seed": 42, "step": step,
            "absorption_fraction": height * step, "absorption_full": height * step / 2, "main_latent_f1": 0.3,
        }
        for (group, method), height in followed.items()
        for step in range(99, 976, 100)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def carriers(seeds: tuple[int, ...] = SEEDS) -> pd.DataFrame:
    kinds = {"absorbed": 0.3, "found": 0.9}
    rows = [
        {"group": "main", "method": "topk", "seed": seed, "kind": kind, "words": 200, "carried": 0.5 + 0.5 * lost,
         "named": lost + 0.01 * (seed - 44), "random": 0.02, "direction": 0.1}
        for kind, lost in kinds.items()
        for seed in seeds
    ]  # fmt: skip
    return pd.DataFrame(rows)


def perturbation(seeds: tuple[int, ...] = SEEDS) -> pd.DataFrame:
    rows = [
        {"group": group, "method": method, "seed": seed, "n": n, "tpp": most * n / 500 + 0.001 * (seed - 44),
         "intended": most * n / 500, "unintended": 0.0, "scr": most}
        for group, method, most in (("main", "topk", 0.3), ("untrained", "untrained", 0.1))
        for n in (2, 5, 10, 20, 50, 100, 500)
        for seed in seeds
    ]  # fmt: skip
    return pd.DataFrame(rows)


def circuits(seeds: tuple[int, ...] = SEEDS) -> pd.DataFrame:
    rows = [
        {"group": group, "method": method, "seed": seed, "n": n, "faithful": most * n / 100 + 0.001 * (seed - 44),
         "outside": 1 - most * n / 100, "all_latents": most, "error": 1 - most, "whole": 2.0, "letters": 26,
         "words": 52}
        for group, method, most in (("main", "topk", 0.9), ("untrained", "untrained", 0.1))
        for n in (1, 3, 10, 30, 100)
        for seed in seeds
    ]  # fmt: skip
    return pd.DataFrame(rows)


def endings(seeds: tuple[int, ...] = SEEDS) -> pd.DataFrame:
    rows = [
        {"run": f"main-topk-{seed}-", "group": "main", "method": "topk", "seed": seed, "ending": ending, "words": 40,
         "probe_f1": 0.8, "absorption_full": full + 0.01 * (seed - 44), "absorption_fraction": 0.3,
         "main_latent_f1": 0.6, "endings": 2, "absorption_full_random": 0.1, "absorption_full_null": 0.5}
        for ending, full in (("-ing", 0.1), ("-ed", 0.3), ("all", 0.2))
        for seed in seeds
    ]  # fmt: skip
    return pd.DataFrame(rows)


def interpretation(seeds: tuple[int, ...] = SEEDS) -> pd.DataFrame:
    rows = [
        {"group": group, "method": method, "seed": seed, "interpretation_surprisal": auc + 0.01 * (seed - 44),
         "interpretation_embedding": 0.8, "interpretation_latents": 50}
        for group, method, auc in (("main", "topk", 0.7), ("untrained", "untrained", 0.6))
        for seed in seeds
    ]  # fmt: skip
    return pd.DataFrame(rows)


def masked(table: pd.DataFrame) -> pd.DataFrame:
    rows = table[(table["group"] == "main") & (table["method"] == "matryoshka_4")]
    shares = [
        rows.assign(masked=share, absorption_full=rows["absorption_full"] - share / 10, letters=23)
        for share in (0.0, 0.1)
    ]
    return pd.concat(shares, ignore_index=True)


def layer_groups(seeds: tuple[int, ...] = SEEDS) -> pd.DataFrame:
    rows = [
        {"layer": layer, "group": group, "kind": kind, "seed": seed, "distance": 0.1, "amad": 0.05, "l0": 40.0,
         "explained_variance": (0.9 if kind == "own" else 0.85) + 0.001 * (seed - 44)}
        for layer, group in ((0, "0-1"), (1, "0-1"), (2, "2"))
        for kind in ("own", "shared")[: 2 - (layer == 2)]
        for seed in seeds
    ]  # fmt: skip
    return pd.DataFrame(rows)


def results(seeds: tuple[int, ...] = SEEDS) -> Results:
    table = evaluation(seeds)
    toy, summary = toys(seeds)
    logs = history(seeds)
    # TemporalSAE's recipe without its mechanisms trains as a standard SAE does.
    plain = table[
        (table["group"] == "factorial") & ~table["temporal"] & ~table["resampling"] & ~table["gradient_scaling"]
    ]
    standard = logs[(logs["group"] == "main") & (logs["method"] == "standard")].drop(columns=["run", "group", "method"])
    logs = pd.concat([logs, plain[["run", "group", "method", "seed"]].merge(standard, on="seed")], ignore_index=True)
    return Results(
        table, letters(seeds), density(table), logs, probing_tasks(table), seed_stability(seeds), toy, summary,
        carriers=carriers(seeds), circuits=circuits(seeds), layer_groups=layer_groups(seeds),
        perturbation=perturbation(seeds), trajectory=trajectory(), endings=endings(seeds), masked=masked(table),
        interpretation=interpretation(seeds),
    )  # fmt: skip


def shifted(results: Results, group: str, method: str, column: str, by: float) -> Results:
    """`by` added to a column of the rows of a method in a group."""
    rows = results.evaluation.copy()
    rows.loc[(rows["group"] == group) & (rows["method"] == method), column] += by
    return replace(results, evaluation=rows)


def save(results: Results, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, table in vars(results).items():
        table.to_parquet(folder / f"{name}.parquet")
    return folder
