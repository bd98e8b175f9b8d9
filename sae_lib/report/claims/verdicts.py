"""The words a claim can be answered with, and the rule that chooses one from comparisons over seeds.

A comparison asks whether a quantity lies on the paper's side of a bound, and how far: the margin is half of the effect
that the paper claims. Of the interval of its mean over seeds:

- reproduced: it lies beyond the bound, on the paper's side;
- contradicted: it lies beyond the bound on the other side, after Holm's correction over the claim's comparisons;
- not reproduced: it excludes the margin, so half of the effect is not there, whatever its sign;
- inconclusive: it holds both the bound and the margin, and seeds are told that would settle it;
- untestable here: the measure cannot move, does not tell a trained SAE from one that never was, or is not measurable
  on this model.

All intervals allow for another processor's rounding (`statistics.guarded`), so that a verdict holds on any.
"""

import math
from enum import StrEnum
from typing import NamedTuple

from sae_lib.report.statistics import CONFIDENCE, Interval, guarded, holm, p_value, t_quantile


class Verdict(StrEnum):
    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    INCONCLUSIVE = "inconclusive"
    UNTESTABLE = "untestable here"
    CONTRADICTED = "contradicted"
    INCONSISTENT = "inconsistent in the paper"
    NOT_RUN = "not run at this profile"


VERDICTS, INCONSISTENT = tuple(Verdict), Verdict.INCONSISTENT
_MANY = 6  # more comparisons are told by those that fail
_MOST_SEEDS = 1000  # more are told as "more than"


class Outcome(NamedTuple):
    """A verdict, the sentence with the numbers that gave it, and the one that decided."""

    verdict: Verdict
    reason: str
    number: str = ""


class Comparison(NamedTuple):
    """A quantity, and whether the paper has it below or above zero, by twice the `margin`. A claim that something does
    not get worse has `allowed` instead: how far it may. `untestable` says why the quantity decides nothing here;
    `rounding` is what another processor changes in its value of one seed."""

    name: str
    interval: Interval
    want: str
    allowed: float = 0.0
    margin: float = 0.0
    untestable: str = ""
    rounding: float = 0.0

    def __str__(self) -> str:
        told = f", {self.allowed:.3g} allowed" if self.allowed else f", margin {self.margin:.2g}" if self.margin else ""
        value = self.interval.range if self.interval.n else "no value"
        return f"{self.name} {value}{told}" + (f" ({self.untestable})" if self.untestable else "")

    @property
    def number(self) -> str:
        """The interval first, then what it is of."""
        name = self.name.rstrip(":")
        return f"{self.interval.range} {name}" if self.interval.n else name

    @property
    def side(self) -> Interval:
        """The quantity, guarded, with the paper's side above zero."""
        i = guarded(self.interval, self.rounding)
        return i if self.want == "higher" else i._replace(mean=-i.mean, low=-i.high, high=-i.low)

    @property
    def holds(self) -> bool:
        return self.side.low > -self.allowed

    @property
    def excluded(self) -> bool:
        """Whether half of the effect is not there."""
        return self.side.high < self.margin - self.allowed

    @property
    def seeds(self) -> str:
        """How many seeds would settle it, if the mean and the spread over seeds stayed as they are."""
        i = self.side
        distance = max(i.mean + self.allowed, self.margin - self.allowed - i.mean)
        for n in range(i.n, _MOST_SEEDS + 1):
            if t_quantile(n - 1) * i.sd / math.sqrt(n) < distance:
                return f"about {n} seeds would settle it"
        return f"more than {_MOST_SEEDS} seeds would be needed"


def decide(comparisons: list[Comparison], note: str = "") -> Outcome:
    """The verdict of a claim that holds where all of `comparisons` do. Those that are untestable decide nothing."""
    reason = "; ".join(map(str, comparisons)) + note
    tested = [c for c in comparisons if not c.untestable]
    short = [c for c in tested if c.interval.n < 2]
    if short or not comparisons:
        missing = ", ".join(c.name for c in short if c.interval.n == 0)
        why = f"no results for {missing}" if missing else f"one seed gives no interval: {reason}"
        return Outcome(Verdict.NOT_RUN, why)
    # One of many intervals misses by chance; all of them holding needs no correction.
    adjusted = holm(p_value(c.side, -c.allowed) for c in tested)
    reversed_ = [c for c, p in zip(tested, adjusted, strict=True) if c.side.high < -c.allowed and p < 1 - CONFIDENCE]
    excluded = [c for c in tested if c.excluded]
    open_ = [c for c in tested if not c.holds]
    if len(comparisons) > _MANY:
        held = sum(c.holds for c in tested)
        told = reversed_ or excluded or open_
        reason = f"{held} of {len(comparisons)} comparisons hold" + "".join(f"; not: {c}" for c in told) + note
    if reversed_:
        return Outcome(Verdict.CONTRADICTED, reason, reversed_[0].number)
    if excluded:
        return Outcome(Verdict.NOT_REPRODUCED, reason, excluded[0].number)
    if open_:
        first, seeds = open_[0], open_[0].seeds
        return Outcome(Verdict.INCONCLUSIVE, f"{reason}; {seeds}", f"{first.interval.range}; {seeds}: {first.name}")
    if len(tested) < len(comparisons):
        first = next(c for c in comparisons if c.untestable)
        return Outcome(Verdict.UNTESTABLE, reason, f"{first.untestable}: {first.number}")
    return Outcome(Verdict.REPRODUCED, reason, comparisons[0].number)


def united(outcomes: list[Outcome]) -> Outcome:
    """Of a sentence that should hold at any scale, so that every check has to agree; untestable ones have no say."""
    first = (Verdict.CONTRADICTED, Verdict.NOT_REPRODUCED, Verdict.NOT_RUN, Verdict.INCONCLUSIVE, Verdict.REPRODUCED)
    return min(outcomes, key=lambda outcome: [*first, Verdict.UNTESTABLE].index(outcome.verdict))
