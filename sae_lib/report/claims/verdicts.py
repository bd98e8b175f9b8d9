"""The words a claim can be answered with, and the rule that chooses one from comparisons over seeds.

All comparisons hold: reproduced. One is reversed, after Holm's correction over the claim's comparisons: contradicted.
Otherwise: not reproduced. Without two seeds there is no interval, and so no verdict.
"""

from __future__ import annotations

from typing import NamedTuple

from sae_lib.report.statistics import CONFIDENCE, Interval, holm, p_value

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
CONTRADICTED = "contradicted"
INCONSISTENT = "inconsistent in the paper"
NOT_RUN = "not run at this profile"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, CONTRADICTED, INCONSISTENT, NOT_RUN)


# More comparisons than this are told by those that fail.
_MANY = 6


class Outcome(NamedTuple):
    """A verdict, the sentence with the numbers that gave it, and the one that decided."""

    verdict: str
    reason: str
    number: str = ""


class Comparison(NamedTuple):
    """A quantity, and whether the paper has it below or above zero (`margin` towards zero's other side is allowed)."""

    name: str
    interval: Interval
    want: str
    margin: float = 0.0

    def __str__(self) -> str:
        allowed = f", {self.margin:g} allowed" if self.margin else ""
        return f"{self.name} {self.interval.range}{allowed}"

    @property
    def holds(self) -> bool:
        i = self.interval
        return i.low > -self.margin if self.want == "higher" else i.high < self.margin

    @property
    def reversed(self) -> bool:
        i = self.interval
        return i.high < -self.margin if self.want == "higher" else i.low > self.margin

    @property
    def p(self) -> float:
        """Of the t test against the margin."""
        return p_value(self.interval, -self.margin if self.want == "higher" else self.margin)


def decide(comparisons: list[Comparison], note: str = "") -> Outcome:
    """The verdict of several comparisons, and what they are."""
    reason = "; ".join(map(str, comparisons)) + note
    short = [c for c in comparisons if c.interval.n < 2]
    if short or not comparisons:
        missing = ", ".join(c.name for c in short if c.interval.n == 0)
        return Outcome(NOT_RUN, f"no results for {missing}" if missing else f"one seed gives no interval: {reason}")
    # One of many intervals misses by chance; all of them holding needs no correction.
    adjusted = holm(c.p for c in comparisons)
    reversed_ = [c for c, p in zip(comparisons, adjusted, strict=True) if c.reversed and p < 1 - CONFIDENCE]
    if len(comparisons) > _MANY:
        told = reversed_ or [c for c in comparisons if not c.holds]
        held = sum(c.holds for c in comparisons)
        reason = f"{held} of {len(comparisons)} comparisons hold" + "".join(f"; not: {c}" for c in told) + note
    if all(c.holds for c in comparisons):
        return Outcome(REPRODUCED, reason, comparisons[0].interval.range)
    decided = reversed_ or [c for c in comparisons if not c.holds]
    return Outcome(CONTRADICTED if reversed_ else NOT_REPRODUCED, reason, decided[0].interval.range)
