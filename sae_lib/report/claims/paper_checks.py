"""What the papers' own numbers say about each other: valid at every profile, since nothing of ours enters. Numbers keep
the digits they are printed with, and a check allows for their rounding."""

import math
from collections.abc import Callable, Mapping
from decimal import Decimal

Published = Mapping[str, Decimal]
Range = tuple[float, float]


def rounding(value: Decimal) -> Range:
    """The numbers that are printed as `value`: 0.0085 to 0.0095 for 0.009."""
    exponent = value.as_tuple().exponent
    half = Decimal(5).scaleb(int(exponent) - 1)
    return float(value - half), float(value + half)


def quotient(numerator: Decimal, denominator: Decimal) -> Range:
    """The smallest and the largest quotient of two rounded numbers."""
    (low, high), (least, most) = rounding(numerator), rounding(denominator)
    return low / most, high / least


def overlap(first: Range, second: Range) -> bool:
    return first[0] <= second[1] and second[0] <= first[1]


def _largest_norm(p: Published) -> float:
    """A loss is at least the squared error, and that at least (1 - cos^2) ||x||^2, the error at the best scale."""
    return float(p["ours"]) / (1 - float(p["cosine of ours"]) ** 2)


def _increase(p: Published) -> Range:
    low, high = quotient(p["absorption"], p["absorption of run 1"])
    return 100 * (low - 1), 100 * (high - 1)


def _reduction(p: Published) -> Range:
    low, high = quotient(p["ATM"], p["JumpReLU"])
    return 100 * (1 - high), 100 * (1 - low)


# Name -> whether the numbers agree, and one sentence with the recomputed ones.
PAPER_CHECKS: dict[str, Callable[[Published], tuple[bool, str]]] = {
    "absorption_as_failure": lambda p: (
        True,
        f"absorption is a failure rate (Chanin et al. 2024): read so, {p['ours']} is {p['ours'] / p['Standard']:.1f}x "
        f"worse than {p['Standard']}, not better",
    ),
    "loss_against_cosine": lambda p: (
        float(p["TopK"]) <= _largest_norm(p),
        f"a loss of {p['ours']} at cosine {p['cosine of ours']} allows ‖x‖² of at most {_largest_norm(p):.0f}; "
        f"TopK's squared error of {p['TopK']:.0f} would then be {float(p['TopK']) / _largest_norm(p):.1f}x that of "
        f"outputting zero, at cosine {p['cosine of TopK']} (all are means over tokens, taken as those of one "
        "activation)",
    ),
    "headline_is_the_final_system": lambda p: (
        p["headline"] == p["Table 1"],
        f"{p['headline']} is run 2's, {p['headline'] / p['baseline']:.1f}x of {p['baseline']}; the final "
        f"system of Table 1, whose cosine and L0 are quoted with it, has {p['Table 1']}, "
        f"{p['Table 1'] / p['baseline']:.1f}x",
    ),
    "one_factor_two_numerators": lambda p: (
        overlap(quotient(p["headline"], p["factor"]), quotient(p["Table 1"], p["factor"])),
        f"{p['Table 1']} / {p['baseline']} = {p['Table 1'] / p['baseline']:.1f}; {p['factor']}x is also given for "
        f"{p['headline']}: the two need a baseline of {p['Table 1'] / p['factor']:.5f} and of "
        f"{p['headline'] / p['factor']:.5f}",
    ),
    "cosine_kept": lambda p: (
        p["ours"] >= min(p["Standard"], p["TopK"], p["JumpReLU"]),
        f"{p['ours']} is the lowest of Table 1 (next {min(p['Standard'], p['TopK'], p['JumpReLU'])}) and section 6.3 "
        f"lists the drop from {p['Standard']} as a limitation; at the best scale it explains {p['ours'] ** 2:.0%} of "
        f"‖x‖², {p['Standard']} explains {p['Standard'] ** 2:.0%}",
    ),
    "l0_factor": lambda p: (
        overlap(quotient(p["Standard"], p["ours"]), rounding(p["factor"])),
        f"{p['Standard']} / {p['ours']} = {p['Standard'] / p['ours']:.2f}",
    ),
    "dead_neurons_are_l0": lambda p: (
        True,
        f"no count of dead neurons is published; {p['reduction in per cent']} % is the fall of L0, "
        f"1 - {p['L0 of ours']}/{p['L0 of Standard']} = {100 * (1 - p['L0 of ours'] / p['L0 of Standard']):.2f} %",
    ),
    "letter_q": lambda p: (
        p["q in the abstract"] == p["q in run 4"],
        f"q is {p['q in the abstract']} in the abstract and {p['q in run 4']} in run 4, the final system",
    ),
    "steps_in_tokens": lambda p: (
        math.floor(p["tokens"] / p["batch"]) == p["steps"],
        f"{p['tokens']} / {p['batch']} = {p['tokens'] / p['batch']:.1f}: {math.floor(p['tokens'] / p['batch'])} whole "
        "batches in one pass",
    ),
    "topk_cosine": lambda p: (
        p["TopK in section 2"] == p["TopK in Table 1"],
        f"TopK has {p['TopK in section 2']} in section 2 and {p['TopK in Table 1']} in Table 1, where "
        f"{p['JumpReLU in Table 1']} is JumpReLU's",
    ),
    "factor_of_run_1": lambda p: (
        overlap(quotient(p["absorption"], p["baseline"]), rounding(p["factor"])),
        f"{p['absorption']} / {p['baseline']} = {p['absorption'] / p['baseline']:.1f}",
    ),
    "increase_of_run_2": lambda p: (
        overlap(_increase(p), rounding(p["increase in per cent"])),
        "{} / {} is an increase of {:.1f} to {:.1f} %".format(p["absorption"], p["absorption of run 1"], *_increase(p)),
    ),
    "atm_reduction": lambda p: (
        overlap(_reduction(p), rounding(p["reduction in per cent"])),
        f"1 - {p['ATM']}/{p['JumpReLU']} = {100 * (1 - p['ATM'] / p['JumpReLU']):.1f} %",
    ),
}
