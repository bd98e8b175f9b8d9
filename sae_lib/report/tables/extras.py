"""What a study asks of some SAEs beside their scores, as a rule beside SAEs that have learned nothing."""

import pandas as pd

from sae_lib.metrics.registry import Column
from sae_lib.report.names import METRICS, method_name
from sae_lib.report.results import BESIDE, by_method, rows_of
from sae_lib.report.statistics import difference, seeds_of, t_interval
from sae_lib.report.tables.rows import ARROW_NOTE, Lines, Table, cell, gap_cell, intervals, record, table_of
from sae_lib.util.errors import ArtifactError

CARRIER_METRICS: dict[str, Column] = {
    "words": Column("words", "none", 0),
    "carried": Column("carried", "none", 2),
    "named": Column("logit lost: these latents", "none", 3),
    "random": Column("another that is on", "none", 3),
    "direction": Column("the probe's direction", "none", 3),
}
ENDING_METRICS: dict[str, Column] = {
    "absorption_full": Column("endings, full", "lower", 3),
    "absorption_full_random": Column("random directions", "none", 3),
    "absorption_full_null": Column("shuffled endings", "none", 3),
    "main_latent_f1": Column("endings, main latent F1", "higher", 3),
    "absorption_fraction": Column("endings, fraction", "lower", 3),
    "letters_full": Column("first letters, full", "lower", 3),
}
SHOWN_N = (2, 10, 50, 500)  # latents that are ablated
PERTURBATION_METRICS = {
    f"{metric}_{n}": Column(f"{metric.upper()}, N = {n}", "higher", 3) for metric in ("tpp", "scr") for n in SHOWN_N
}
INTERPRETED = ("interpretation_surprisal", "interpretation_embedding", "interpretation_latents")
MASKED_COLUMNS = ("l0", "explained_variance", "kl_score", "absorption_full", "absorption_fraction", "probing_k1")
LAYER_KINDS = {"own": "own SAE", "shared": "the group's"}


def carriers_table(carriers: pd.DataFrame) -> Table:
    """Whether latents carry letters: of words that are absorbed (*full*), and that a main latent finds."""
    rows = rows_of(carriers, *BESIDE, otherwise="carriers: no rows; make study tests which latents carry letters")
    lines = Lines(CARRIER_METRICS)
    for method, of_method in by_method(rows).items():
        for kind, part in of_method.groupby("kind"):
            keys = {"method": method_name(method), "latents": str(kind)}
            lines.add(keys, method_name(method), intervals(part, CARRIER_METRICS), kind=kind)
    caption = (
        "Whether latents carry letters to the model's answer; mean ± sd over seeds. absorbed: the latent by which a "
        "word counts as absorbed (full); found: the main latents of a word on which they fire. Logit lost: how much "
        "the logit of the word's letter, less the mean of all letters', falls where the residual stream at the word "
        "loses what those latents write; what another latent writes that is on there; all that the probe reads. "
        "carried: words in which these latents cost more than the other one; 0.5 where nothing is carried"
    )
    return lines.table(caption, [rows])


def endings_table(endings: pd.DataFrame, evaluation: pd.DataFrame) -> Table:
    """Absorption of word endings, mean over endings, beside that of first letters by the same SAEs."""
    missing = "endings: no rows; make study measures the absorption of word endings"
    rows, lines = rows_of(endings[endings["ending"] == "all"], *BESIDE, otherwise=missing), Lines(ENDING_METRICS)
    letters = evaluation.drop_duplicates("run").set_index("run").reindex(columns=["absorption_full"]).squeeze(axis=1)
    rows = rows.assign(letters_full=rows["run"].map(letters))
    for method, part in by_method(rows).items():
        lines.add({"method": method_name(method)}, method_name(method), intervals(part, ENDING_METRICS))
    named = endings.loc[endings["ending"] != "all"].groupby("ending", sort=False)["words"].max()
    counts = ", ".join(f"{ending} ({int(words)})" for ending, words in named.items())
    caption = (
        "Absorption by the same rules where the general feature is how a word ends and not its first letter; mean ± sd "
        f"over seeds. Endings that the probe finds, with their words: {counts}. random directions, shuffled endings: "
        "the score of nothing"
    )
    return lines.table(caption, [rows], ARROW_NOTE)


def perturbation_table(perturbation: pd.DataFrame) -> Table:
    """Targeted probe perturbation and spurious correlation removal, for some numbers of latents."""
    rows = rows_of(perturbation, *BESIDE, otherwise="perturbation: no rows; make study ablates what probes read")
    lines = Lines(PERTURBATION_METRICS)
    for method, of_method in by_method(rows).items():
        wide = of_method.pivot(index="seed", columns="n", values=["tpp", "scr"])
        wide.columns = [f"{metric}_{n}" for metric, n in wide.columns]
        found = intervals(wide.reset_index(), [column for column in PERTURBATION_METRICS if column in wide])
        lines.add({"method": method_name(method)}, method_name(method), found)
    caption = (
        "Targeted probe perturbation (TPP: the accuracy that a probe loses without the N latents of the largest effect "
        "on it, less what other classes' probes lose) and spurious correlation removal (SCR: the share of a biased "
        "probe's lost accuracy that comes back without the other attribute's N latents), by SAEBench's algorithms; "
        "mean ± sd over seeds. They rank nothing here: where features are known TPP falls while SAEs learn, and SCR "
        "goes against the truth for large N (2605.18229); compare trained SAEs with the untrained"
    )
    return lines.table(caption, [rows])


def interpretation_table(interpretation: pd.DataFrame) -> Table:
    """Automatic interpretation by the judges that need no other model."""
    rows = rows_of(interpretation, *BESIDE, otherwise="interpretation: no rows; make study interprets latents")
    caption = (
        "How well latents can be told from five examples of where they fire, on windows half of which have them: areas "
        "under the ROC curve, 0.5 by chance. Surprisal: what the language model gains by reading the examples first; "
        "embedding: how alike residual streams are to those of the examples (2410.13928). Latents: how many a mean is "
        "taken of. Mean ± sd over seeds"
    )
    return table_of("method", by_method(rows), INTERPRETED, caption, "compare trained SAEs with the untrained")


def masked_table(masked: pd.DataFrame) -> Table:
    """One method by the share of tokens that were hidden from the language model."""
    if masked.empty:
        raise ArtifactError("masked: no rows; make study trains on hidden tokens where ablations.masked_tokens is set")
    named = {f"{share:g}": part for share, part in masked.groupby("masked")}
    method = method_name(str(masked["method"].iloc[0]))
    caption = (
        f"Masked regularisation: {method} on activations of texts of which a share of the tokens was hidden from the "
        "language model; every measure reads whole texts. Mean ± sd over seeds"
    )
    return table_of("share hidden", named, MASKED_COLUMNS, caption)


def layer_groups_table(layer_groups: pd.DataFrame) -> Table:
    """What it costs that neighbouring layers share an SAE: each layer by its own and by its group's."""
    if layer_groups.empty:
        raise ArtifactError("layer_groups: no rows; make study compares layers where ablations.layer_groups is set")
    metric, lines = "explained_variance", Lines()
    header, decimals = METRICS[metric].header, METRICS[metric].decimals
    for layer, rows in layer_groups.groupby("layer"):
        first = rows.iloc[0]
        line = {"layer": str(layer), "group": str(first["group"]), "angle within": f"{first['distance']:.3f}"}
        of = {kind: seeds_of(rows[rows["kind"] == kind], metric) for kind in LAYER_KINDS}
        line |= {f"{name}: {header}": cell(t_interval(of[kind]), decimals) for kind, name in LAYER_KINDS.items()}
        change = difference(of["shared"], of["own"])
        lines.shown.append(line | {"difference": gap_cell(change, decimals)})
        found = {kind: t_interval(values) for kind, values in of.items()} | {"difference": change}
        lines.data += [record(f"layer {layer}, {what}", metric, each, METRICS[metric]) for what, each in found.items()]
    caption = (
        "TopK SAEs of single layers, and one for each group of neighbouring layers whose residual streams point the "
        "same way, trained for as many steps on windows each from one of its layers; explained variance on held-out "
        "text, mean ± sd over seeds, and the difference with its 95 % interval. Angle within: the largest angular "
        f"distance of two layers of the group, in units of pi; mean over groups {layer_groups['amad'].iloc[0]:.3f}"
    )
    return lines.table(caption, [layer_groups])
