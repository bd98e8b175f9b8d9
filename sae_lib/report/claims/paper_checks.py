"""What the papers' own numbers say about each other: valid at every profile, since nothing of ours enters.

Numbers keep the digits they are printed with, and a check allows for their rounding: 0.009 is anything from
0.0085 to 0.0095.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import NamedTuple

Published = Mapping[str, Decimal]


class PaperOutcome(NamedTuple):
    """Whether the numbers agree, and one sentence with the recomputed ones."""

    consistent: bool
    reason: str


def rounding(value: Decimal) -> tuple[float, float]:
    """The numbers that are printed as `value`.

    >>> rounding(Decimal("0.009"))
    (0.0085, 0.0095)
    """
    exponent = value.as_tuple().exponent
    half = Decimal(5).scaleb(int(exponent) - 1)
    return float(value - half), float(value + half)


def quotient(numerator: Decimal, denominator: Decimal) -> tuple[float, float]:
    """The smallest and the largest quotient of two rounded numbers."""
    (low, high), (least, most) = rounding(numerator), rounding(denominator)
    return low / most, high / least


def overlap(first: tuple[float, float], second: tuple[float, float]) -> bool:
    return first[0] <= second[1] and second[0] <= first[1]


def absorption_as_failure(p: Published) -> PaperOutcome:
    factor = p["ours"] / p["Standard"]
    return PaperOutcome(
        True,
        f"absorption is a failure rate (Chanin et al. 2024): read so, {p['ours']} is {factor:.1f}x worse "
        f"than {p['Standard']}, not better",
    )


def loss_against_cosine(p: Published) -> PaperOutcome:
    """A loss is at least the squared error, and that at least (1 - cos^2) ||x||^2, the error at the best scale."""
    largest = float(p["ours"]) / (1 - float(p["cosine of ours"]) ** 2)
    topk = float(p["TopK"])
    return PaperOutcome(
        topk <= largest,
        f"a loss of {p['ours']} at cosine {p['cosine of ours']} allows ‖x‖² of at most {largest:.0f}; "
        f"TopK's squared error of {topk:.0f} would then be {topk / largest:.1f}x that of outputting zero, "
        f"at cosine {p['cosine of TopK']} (all are means over tokens, taken as those of one activation)",
    )


def headline_is_the_final_system(p: Published) -> PaperOutcome:
    return PaperOutcome(
        p["headline"] == p["Table 1"],
        f"{p['headline']} is run 2's, {p['headline'] / p['baseline']:.1f}x of {p['baseline']}; the final "
        f"system of Table 1, whose cosine and L0 are quoted with it, has {p['Table 1']}, "
        f"{p['Table 1'] / p['baseline']:.1f}x",
    )


def one_factor_two_numerators(p: Published) -> PaperOutcome:
    baselines = [quotient(p[name], p["factor"]) for name in ("headline", "Table 1")]
    implied = [float(p[name] / p["factor"]) for name in ("headline", "Table 1")]
    return PaperOutcome(
        overlap(*baselines),
        f"{p['Table 1']} / {p['baseline']} = {p['Table 1'] / p['baseline']:.1f}; {p['factor']}x is also "
        f"given for {p['headline']}: the two need a baseline of {implied[1]:.5f} and of {implied[0]:.5f}",
    )


def cosine_kept(p: Published) -> PaperOutcome:
    others = [p[name] for name in ("Standard", "TopK", "JumpReLU")]
    kept = float(p["ours"]) ** 2
    return PaperOutcome(
        p["ours"] >= min(others),
        f"{p['ours']} is the lowest of Table 1 (next {min(others)}) and section 6.3 lists the drop from "
        f"{p['Standard']} as a limitation; at the best scale it explains {kept:.0%} of ‖x‖², "
        f"{p['Standard']} explains {float(p['Standard']) ** 2:.0%}",
    )


def l0_factor(p: Published) -> PaperOutcome:
    quotients = quotient(p["Standard"], p["ours"])
    return PaperOutcome(
        overlap(quotients, rounding(p["factor"])),
        f"{p['Standard']} / {p['ours']} = {p['Standard'] / p['ours']:.2f}",
    )


def dead_neurons_are_l0(p: Published) -> PaperOutcome:
    drop = 100 * (1 - p["L0 of ours"] / p["L0 of Standard"])
    return PaperOutcome(
        True,
        f"no count of dead neurons is published; {p['reduction in per cent']} % is the fall of L0, "
        f"1 - {p['L0 of ours']}/{p['L0 of Standard']} = {drop:.2f} %",
    )


def letter_q(p: Published) -> PaperOutcome:
    return PaperOutcome(
        p["q in the abstract"] == p["q in run 4"],
        f"q is {p['q in the abstract']} in the abstract and {p['q in run 4']} in run 4, the final system",
    )


def steps_in_tokens(p: Published) -> PaperOutcome:
    whole = math.floor(p["tokens"] / p["batch"])
    return PaperOutcome(
        whole == p["steps"],
        f"{p['tokens']} / {p['batch']} = {p['tokens'] / p['batch']:.1f}: {whole} whole batches in one pass",
    )


def topk_cosine(p: Published) -> PaperOutcome:
    return PaperOutcome(
        p["TopK in section 2"] == p["TopK in Table 1"],
        f"TopK has {p['TopK in section 2']} in section 2 and {p['TopK in Table 1']} in Table 1, where "
        f"{p['JumpReLU in Table 1']} is JumpReLU's",
    )


def factor_of_run_1(p: Published) -> PaperOutcome:
    holds = overlap(quotient(p["absorption"], p["baseline"]), rounding(p["factor"]))
    return PaperOutcome(holds, f"{p['absorption']} / {p['baseline']} = {p['absorption'] / p['baseline']:.1f}")


def increase_of_run_2(p: Published) -> PaperOutcome:
    low, high = (100 * (q - 1) for q in quotient(p["absorption"], p["absorption of run 1"]))
    return PaperOutcome(
        overlap((low, high), rounding(p["increase in per cent"])),
        f"{p['absorption']} / {p['absorption of run 1']} is an increase of {low:.1f} to {high:.1f} %",
    )


def atm_reduction(p: Published) -> PaperOutcome:
    low, high = (100 * (1 - q) for q in reversed(quotient(p["ATM"], p["JumpReLU"])))
    return PaperOutcome(
        overlap((low, high), rounding(p["reduction in per cent"])),
        f"1 - {p['ATM']}/{p['JumpReLU']} = {100 * (1 - p['ATM'] / p['JumpReLU']):.1f} %",
    )


PAPER_CHECKS: dict[str, Callable[[Published], PaperOutcome]] = {
    check.__name__: check
    for check in (
        absorption_as_failure, loss_against_cosine, headline_is_the_final_system, one_factor_two_numerators,
        cosine_kept, l0_factor, dead_neurons_are_l0, letter_q, steps_in_tokens, topk_cosine, factor_of_run_1,
        increase_of_run_2, atm_reduction,
    )
}  # fmt: skip
