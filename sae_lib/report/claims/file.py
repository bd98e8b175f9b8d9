"""claims.yaml in typed and validated form."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from sae_lib.metrics.registry import Direction
from sae_lib.profiles.profile import validated
from sae_lib.report.claims.data_checks import KINDS, SINGLE
from sae_lib.report.claims.paper_checks import PAPER_CHECKS
from sae_lib.report.figures.write import FIGURES
from sae_lib.report.tables.write import TABLES
from sae_lib.util.errors import ArtifactError
from sae_lib.util.strict import Strict

CLAIMS_FILE = Path(__file__).parent / "claims.yaml"
CLAIM_IDS = tuple([f"T-{n:02d}" for n in range(1, 31)] + [f"M-{n:02d}" for n in range(1, 9)])
# Options of a check that set a size.
SIZES = {"effect", "share", "allowed", "bound", "margin", "fall"}


class PublishedNumber(Strict):
    """A number as the paper prints it, and the row of ours that stands beside it."""

    name: str
    value: Decimal
    group: str = "as_written"
    method: str = ""
    metric: str = ""
    letter: str = ""

    @field_validator("value", mode="before")
    @classmethod
    def _as_printed(cls, value: Any) -> Any:
        if not isinstance(value, str):
            raise ValueError(f"write {value} in quotes: the digits printed are its precision")
        return value


class Claim(Strict):
    """One entry of claims.yaml; its head explains the fields."""

    id: str
    short: str = Field(max_length=36)
    claim: str
    paraphrase: bool = False
    where: str
    about: Literal["model", "method", "paper", "setting"]
    same_as: str = ""
    metric: str
    direction: Direction
    shown: tuple[str, ...] = ()
    published: tuple[PublishedNumber, ...] = ()
    tolerance: float = Field(0.0, ge=0.0)
    argument: str = ""
    paper_check: str = ""
    data_check: dict[str, Any] = Field({})
    toy_check: dict[str, Any] = Field({})

    @model_validator(mode="after")
    def _decidable(self) -> Claim:
        checks = {"data_check": (self.data_check, [*KINDS, *SINGLE]), "toy_check": (self.toy_check, [*KINDS])}
        named = [("shown", stem, [*FIGURES, *TABLES]) for stem in self.shown]
        named += [("paper_check", self.paper_check, [*PAPER_CHECKS])] if self.paper_check else []
        named += [(f"{name}.kind", check.get("kind", ""), known) for name, (check, known) in checks.items() if check]
        for name, value, known in named:
            if value not in known:
                raise ValueError(f"{name} '{value}' is none of {', '.join(known)}")
        for name, (check, _) in checks.items():
            if any(SIZES & {*want} for want in (check, *check.get("wants", ()))) and not check.get("because"):
                raise ValueError(f"{name}.because is missing: say why the effect or the bound has its size")
        if self.toy_check and not self.toy_check.get("evidence"):
            raise ValueError("toy_check.evidence is missing: say in one line what is counted on the toy data")
        if self.about == "paper" and not self.paper_check:
            raise ValueError("a claim about the paper needs a paper_check")
        if not (self.paper_check or self.data_check or self.toy_check or self.tolerance):
            raise ValueError("nothing decides: give a tolerance, a paper_check, a data_check or a toy_check")
        return self


def load_claims(path: Path | str = CLAIMS_FILE) -> list[Claim]:
    """The claims of a file in the order of `CLAIM_IDS`. Raises ArtifactError: an entry that does not validate, an id
    that is unknown, missing or there twice."""
    path = Path(path)
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf8"))
    except (OSError, yaml.YAMLError) as error:
        raise ArtifactError(f"claims: {path} cannot be read: {' '.join(str(error).split())}") from None
    claims: list[Claim] = []
    for entry in entries or []:
        name = entry.get("id", "an entry without id") if isinstance(entry, dict) else "an entry"
        claims.append(validated(Claim, entry, f"claims.{name}"))
    require_claim_ids([claim.id for claim in claims], path.name)
    return sorted(claims, key=lambda claim: CLAIM_IDS.index(claim.id))


def require_claim_ids(found: Sequence[str], where: str) -> None:
    """Raises ArtifactError unless `found` are the ids of the claims, each once; `where` is named in it."""
    twice = sorted({name for name in found if found.count(name) > 1})
    differing = {"missing": {*CLAIM_IDS} - {*found}, "unknown": {*found} - {*CLAIM_IDS}, "there twice": twice}
    if parts := [f"{what} {', '.join(sorted(ids))}" for what, ids in differing.items() if ids]:
        raise ArtifactError(f"claims: {where}: {'; '.join(parts)}; the ids are T-01 to T-30 and M-01 to M-08")
