"""The rest of the field and ideas of our own: every method in one line, on the language model and where features are
known; whether an idea is better than the best of them; masked regularisation, and SAEs that layers share."""

import pandas as pd

from sae_lib.autoencoders.switch import at_width, encoder_flops
from sae_lib.mechanisms import methods
from sae_lib.metrics.registry import Column
from sae_lib.report.names import METRICS, method_name
from sae_lib.report.results import by_method, main_rows, select, toy_rows
from sae_lib.report.statistics import Interval, difference, seeds_of, t_interval
from sae_lib.report.tables.controls import method_table
from sae_lib.report.tables.rows import ARROW_NOTE, Lines, Table, cell, gap_cell, intervals, left_out, record, table_of
from sae_lib.util.errors import ArtifactError

COLUMNS = (
    "l0", "explained_variance", "kl_score", "absorption_full", "absorption_fraction", "main_latents_f1", "probing_k1",
)  # fmt: skip
# Of rows of experiment 'field': header, toy and metric.
ON_TOYS = {
    "synthetic: F1": ("synthetic", "f1"),
    "synthetic: MCC": ("synthetic", "mcc"),
    "loud children: excess absorption": ("loud", "excess_absorption"),
}
COST = Column("seconds, of TopK's", "lower", 2)
# Those that absorb least, by their authors, and what a method that is better has to show: lower absorption at no cost.
ON_TOY = "matryoshka"  # of three levels, the only one there
TO_BEAT = ("matryoshka_4", "tree_4", "ortsae", "lista_matryoshka")
ON_MODEL = ("absorption_full", "explained_variance", "ce_score", "kl_score", "probing_k1")
FLOOR = 0.02  # absorption below which there is nothing left to be better by
WHERE_KNOWN = {"tree": "tree", "loud": "loud children", "synthetic": "synthetic"}  # as excess and explained variance
IDEAS = (
    "onset_priced", "consistent", "consistent_onset", "consistent_batchtopk", "presence_matryoshka",
    "masked_matryoshka",
)  # fmt: skip

# SynthSAEBench (arXiv 2602.14687, second version), 16,384 features in 768 dimensions, 4,096 latents, 2 * 10^8 rows, at
# an L0 of 25: the first three of `TOY_COLUMNS`. Ours has 1 / 32 of the features and of the latents and few rows.
ON_FEATURES: dict[str, tuple[float, float, float]] = {
    "BatchTopK": (0.732, 0.757, 0.792),
    "Matryoshka": (0.879, 0.793, 0.779),
    "Matching pursuit": (0.446, 0.693, 0.835),
    "Standard (L1)": (0.556, 0.604, 0.765),
    "JumpReLU": (0.732, 0.753, 0.795),
}
ASK = "set ablations.toy.field and run `make field`"  # where there are no toys of the field
IDEA_COLUMNS = ("l0", "explained_variance", "f1", "parent_silent_rate", "miss_rate", "excess_absorption")
TOY_COLUMNS = ("f1", "mcc", "explained_variance", "l0", "parent_silent_rate", "miss_rate", "excess_absorption")

MASKED_COLUMNS = ("l0", "explained_variance", "kl_score", "absorption_full", "absorption_fraction", "probing_k1")
LAYER_KINDS = {"own": "own SAE", "shared": "the group's"}


def leaderboard_table(evaluation: pd.DataFrame, toy_summary: pd.DataFrame) -> Table:
    """The main table's columns that a choice rests on, beside ground truth, where it was asked for, and the time to
    train. Raises ArtifactError without the field's toys and methods."""
    rows = main_rows(evaluation)
    toys = toy_rows(toy_summary, "field", otherwise="" if {*methods("field")} & {*rows} else ASK)
    caption = "Methods at matched L0 on the language model"
    if len(toys):
        caption += ", and at the true L0 where features are known, with one Matryoshka of three levels"
    caption += "; mean ± sd over seeds. Seconds: to train the fastest seed on one core, as a multiple of TopK's"
    if "switch" in rows:
        d_sae = int(rows["switch"]["d_sae"].iloc[0])
        experts = at_width(d_sae)["experts"]
        share = encoder_flops(1, d_sae, experts) / encoder_flops(1, d_sae)
        caption += f". Switch has {experts} experts, and an encoder of {share:.2f} of TopK's FLOPs"
    table = method_table(evaluation, COLUMNS, caption)
    # Wall time, and a machine has other work: the fastest seed is the one that was disturbed least.
    topk = seeds_of(select(evaluation, "main", "topk"), "train_seconds").min()
    trained = [method for method, part in rows.items() if (part["group"] == "main").all()]

    for header, (toy, metric) in ON_TOYS.items() if len(toys) else ():
        column = METRICS[metric]._replace(label=header)
        of_toy = by_method(toy_rows(toys, "field", toy))
        named = {method_name(m): of_toy.get(ON_TOY if m.startswith(ON_TOY) else m) for m in rows}
        found = {m: t_interval(seeds_of(part, metric)) for m, part in named.items() if part is not None}
        table = table.with_column(f"{toy}_{metric}", column, {m: each for m, each in found.items() if each.n})
    fastest = {method_name(m): t_interval([seeds_of(rows[m], "train_seconds").min() / topk]) for m in trained}
    return table.with_column("seconds_of_topk", COST, {m: each for m, each in fastest.items() if each.n})


def bar_table(evaluation: pd.DataFrame, toy_summary: pd.DataFrame) -> Table:
    """Each idea against the best of `TO_BEAT`, by measure."""
    toys, model = toy_rows(toy_summary, "field"), main_rows(evaluation)
    ours = [m for m in methods("field") if m in IDEAS and m in {*model, *toys["method"]}]
    if not ours:
        raise ArtifactError("evaluation: no idea among the methods; run `make field`")
    compared = [m for m in (*TO_BEAT, *ours) if m in model]
    columns = {METRICS[metric]: {m: seeds_of(model[m], metric) for m in compared} for metric in ON_MODEL}
    for metric, name in (("excess_absorption", "excess"), ("explained_variance", "explained variance")):
        for toy, place in WHERE_KNOWN.items():
            known = by_method(toy_rows(toys, "field", toy))
            column = METRICS[metric]._replace(label=f"{place}: {name}")
            of_seed = {m: seeds_of(part, metric) for m, part in known.items()}
            # A parent that is missed more often alone than under its child is not absorbed.
            columns[column] = {m: values.clip(lower=0.0) for m, values in of_seed.items()}
    lines = Lines()
    for column, of in columns.items():
        means = {m: float(of[m].mean()) for m in (*TO_BEAT, ON_TOY) if m in of and len(of[m])}
        if not means:
            continue
        best = (max if column.direction == "higher" else min)(means, key=lambda m: means[m])
        line = {"measure": column.header, "best of the four": f"{means[best]:.3f} ({method_name(best)})"}
        for method in ours:
            gap = difference(of[method], of[best]) if method in of else t_interval([])
            line[method_name(method)] = gap_cell(gap, 3)
            row = record(method_name(method), column.label, gap, column)
            lines.data.append(row | {"against": best, "met": _met(column, gap, means[best])})
        lines.shown.append(line)
    counts = {row: f"{part['met'].sum()} of {len(part)}" for row, part in pd.DataFrame(lines.data).groupby("row")}
    lines.shown.append({"measure": "met", "best of the four": "–"} | counts)
    used = [toys, *(model[m] for m in ours if m in model)]
    caption = (
        "Ideas against the best of Matryoshka-4, Tree-4, OrtSAE and LISTA-Matryoshka, measure by measure: its mean, "
        "then each idea's difference from it with the 95 % t interval over seeds. Met: absorption is lower (no higher, "
        f"where the best has at most {FLOOR:g}; an excess below zero counts as none), and anything else no worse, "
        "beyond the interval. A method that is better meets all"
    )
    return lines.table(caption, used, ARROW_NOTE, lacking=left_out(evaluation, ON_MODEL))


def _met(column: Column, gap: Interval, best: float) -> bool:
    if column.direction == "higher":
        return gap.n > 1 and gap.high >= 0
    return gap.n > 1 and (gap.low <= 0 if best <= FLOOR else gap.high < 0)


def ground_truth_table(toy_summary: pd.DataFrame) -> Table:
    """By toy and method, at the true L0; then the published rows."""
    rows, used, lines = toy_rows(toy_summary, "field", otherwise=ASK), [], Lines()
    for toy in ("loud", "synthetic"):
        for method, part in by_method(rows[rows["toy"] == toy]).items():
            keys = {"method": method_name(method), "data": WHERE_KNOWN[toy]}
            lines.add(keys, method, intervals(part, TOY_COLUMNS), toy=toy)
            used.append(part)
    for method, values in ON_FEATURES.items():
        printed = [*(f"{value:.3f}" for value in values), "25"]
        line = {METRICS[column].header: text for column, text in zip(TOY_COLUMNS, printed, strict=False)}
        lines.shown.append({"method": method, "data": "SynthSAEBench-16k, published"} | line)
    caption = (
        "Methods where the true features are known, at the true L0 of the features that can have a latent, or as near "
        "as they come; mean ± sd over seeds. Loud children: the tree of the other toys, children five times as loud as "
        "parents. Synthetic: 512 features in SynthSAEBench's shape, 128 latents; its published rows (arXiv 2602.14687) "
        "have 32 times as many of both. Excess absorption: P(parent silent | child) - P(parent missed | parent alone)"
    )
    return lines.table(caption, used, ARROW_NOTE)


def ideas_table(toy_summary: pd.DataFrame) -> Table:
    """Ideas against absorption, by toy and change."""
    rows, lines = toy_rows(toy_summary, "ideas", otherwise=ASK), Lines()
    for (idea, toy, rho, method, label), part in rows.groupby(["idea", "toy", "rho", "method", "label"], sort=False):
        place, name = f"{toy}, rho = {rho:g}" if toy == "chain" else str(toy), method_name(str(method))
        keys = {"idea": idea, "data": place, "method": name, "change": label}
        lines.add(keys, name, intervals(part, IDEA_COLUMNS), idea=idea, toy=place, change=label)
    caption = (
        "Ideas against absorption where the true features are known; mean ± sd over seeds. order: what fills the "
        "prefixes of a LISTA-Matryoshka, k = 2. consistency: weight of a penalty on encoders that are inhibited along "
        "similar decoder rows. onset: share of the L1 penalty that a latent is let off where it was on at the token "
        "before; chain: parents and singles persist with rho. The last two at the true L0, or as near as they come"
    )
    return lines.table(caption, [rows], ARROW_NOTE)


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
