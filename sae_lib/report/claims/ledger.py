"""The claims ledger: every claim of the two papers, what we obtained beside it, and a verdict that code gives."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pandas as pd

from sae_lib.metrics.registry import ARROWS
from sae_lib.profiles.profile import Profile
from sae_lib.report.claims.data_checks import DATA_CHECKS
from sae_lib.report.claims.file import Claim, PublishedNumber, load_claims, require_claim_ids
from sae_lib.report.claims.links import evidence_links, notebook_cells
from sae_lib.report.claims.paper_checks import PAPER_CHECKS, PaperOutcome
from sae_lib.report.claims.toy_checks import check_on_toys
from sae_lib.report.claims.verdicts import (
    CONTRADICTED,
    INCONSISTENT,
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
    VERDICTS,
    Outcome,
)
from sae_lib.report.results import Results, seeds_of, select
from sae_lib.report.statistics import t_interval
from sae_lib.report.tables.rows import Table
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import read_json, write_json
from sae_lib.util.paths import shown

PAPERS = {"T": "TemporalSAE", "M": "ATM"}
# What `verify` compares.
VERDICT_COLUMNS = ("verdict", "at_this_scale", "ground_truth")
# The language model that the papers' numbers are about.
PAPERS_MODEL = "google/gemma-2-2b"


def evaluate_claims(profile: Profile, results: Results, claims: list[Claim] | None = None) -> pd.DataFrame:
    """One row per claim: id, paper, claim, where, metric, direction, published, measured, verdict,
    at_this_scale, ground_truth, reason, toy_evidence, and the number that decided.

    `verdict` answers the sentence as it stands: claims about Gemma-2-2b are answered only where the profile runs it.
    `at_this_scale` is what the claim's data check says of the results at hand, whatever the model ("" without one).
    `ground_truth` is what its toy check says of SAEs on data with known features ("" without one); `toy_evidence`, what
    is counted there and how it came out.
    """
    rows = []
    for claim in load_claims() if claims is None else claims:
        printed = {number.name: number.value for number in claim.published}
        paper = PAPER_CHECKS[claim.paper_check](printed) if claim.paper_check else None
        scale = DATA_CHECKS[claim.data_check["kind"]](results, claim.data_check) if claim.data_check else None
        toy = check_on_toys(results, claim.toy_check) if claim.toy_check else None
        # A claim about toy data alone is answered by it.
        outcome = _verdict(claim, profile, results, paper, scale or (toy if claim.about == "method" else None))
        by_paper = paper.reason if paper and (claim.about == "paper" or not paper.consistent) else ""
        reasons = [outcome.reason, paper.reason if paper else "", scale.reason if scale else ""]
        rows.append(
            {
                "id": claim.id,
                "paper": PAPERS[claim.id[0]],
                "claim": claim.claim,
                "where": claim.where,
                "metric": claim.metric,
                "direction": claim.direction,
                "published": ", ".join(f"{name} {value}" for name, value in printed.items()),
                "measured": _measured(claim, results),
                "verdict": outcome.verdict,
                "at_this_scale": scale.verdict if scale else "",
                "ground_truth": toy.verdict if toy else "",
                "reason": "; ".join(dict.fromkeys(reason for reason in reasons if reason)),
                "toy_evidence": f"{claim.toy_check['evidence']}: {toy.reason}" if claim.toy_check and toy else "",
                "number": by_paper or next((found.number for found in (scale, toy) if found and found.number), ""),
            }
        )
    return pd.DataFrame(rows)


def _verdict(
    claim: Claim, profile: Profile, results: Results, paper: PaperOutcome | None, scale: Outcome | None
) -> Outcome:
    if paper and not paper.consistent:
        return Outcome(INCONSISTENT, "")
    if claim.about == "paper":
        return Outcome(REPRODUCED, "")
    if claim.about == "model" and profile.model.name != PAPERS_MODEL:
        return Outcome(NOT_RUN, f"the claim is about {PAPERS_MODEL}, this profile reads {profile.model.name}")
    numbers = _numbers(claim, results) if claim.tolerance else None
    if numbers and scale and numbers.verdict == NOT_REPRODUCED and scale.verdict == CONTRADICTED:
        return Outcome(CONTRADICTED, numbers.reason)
    if numbers or scale:
        return Outcome((numbers or scale).verdict, numbers.reason if numbers else "")  # type: ignore[union-attr]
    return Outcome(NOT_RUN, "")


def _values(number: PublishedNumber, results: Results) -> pd.Series:
    """Ours beside a published number, by seed."""
    if number.method is None or number.metric is None:
        return pd.Series(dtype=float)
    frame = results.evaluation if number.letter is None else results.letters
    rows = select(frame, number.group, number.method)
    if number.letter is not None:
        rows = rows[rows["letter"] == number.letter]
    return seeds_of(rows, number.metric)


def _numbers(claim: Claim, results: Results) -> Outcome:
    """Each published number with a row of ours, against its mean over seeds."""
    off = []
    for number in claim.published:
        if number.method is None:
            continue
        ours = t_interval(_values(number, results))
        if ours.n == 0:
            return Outcome(NOT_RUN, f"no results for {number.name}")
        if abs(ours.mean - float(number.value)) > (claim.tolerance or 0.0) * abs(float(number.value)):
            off.append(f"{number.name} {ours.mean:.4g} for {number.value}")
    if off:
        return Outcome(NOT_REPRODUCED, f"beyond {claim.tolerance:.0%}: {', '.join(off)}")
    return Outcome(REPRODUCED, f"every number within {claim.tolerance:.0%}")


def _measured(claim: Claim, results: Results) -> str:
    ours = [(number.name, t_interval(_values(number, results))) for number in claim.published]
    return ", ".join(f"{name} {interval}" for name, interval in ours if interval.n)


def claims_table(evaluated: pd.DataFrame, profile: Profile) -> Table:
    """The ledger as a table to write: an arrow beside each metric, our numbers named as this profile's."""
    shown = evaluated.assign(metric=evaluated["metric"] + " " + evaluated["direction"].map(ARROWS))
    shown = shown.drop(columns="direction").replace("", "–")
    cells, stems = notebook_cells(), {claim.id: claim.shown for claim in load_claims()}
    links = {name: evidence_links(stems[name], cells) for name in shown["id"]}
    shown["see"] = [", ".join(f"[{link.text}]({link.target})" for link in links[name]) for name in shown["id"]]
    names = {"at_this_scale": "at this scale", "ground_truth": "ground truth", "toy_evidence": "toy evidence"}
    shown = shown.rename(columns={"measured": f"measured here ({profile.name})", **names})
    caption = (
        f"Claims of the two papers and what profile {profile.name} says of them. ↑ higher is better, "
        "↓ lower is better, – neither. Published numbers are about Gemma-2-2b; numbers measured here are "
        "mean ± sd over n seeds. Verdict: of the sentence as it stands; at this scale: of the same check on this "
        "profile's model; ground truth: on toy data whose features are known."
    )
    return Table(shown.drop(columns="number"), evaluated.drop(columns="number"), caption)


def claims_summary(evaluated: pd.DataFrame, width: int = 100) -> str:
    """The ledger for a terminal, a line for each claim: its verdicts and the number that decided."""
    short = {INCONSISTENT: "inconsistent", NOT_RUN: "not run", "": "–"}
    columns = dict(zip(VERDICT_COLUMNS, ("verdict", "at this scale", "ground truth"), strict=True))
    lines = ["  ".join(["claim", *(f"{name:<14}" for name in columns.values()), "decided by"])]
    for row in evaluated.to_dict("records"):
        verdicts = "  ".join(f"{short.get(row[column], row[column]):<14}" for column in columns)
        line = f"{row['id']:<5}  {verdicts}  "
        lines.append(line + textwrap.shorten(row["number"] or "–", width - len(line), placeholder=" …"))
    return "\n".join(lines)


def claims_text(evaluated: pd.DataFrame) -> str:
    """The ledger for a terminal, with all its evidence: a block of lines for each claim."""
    blocks = []
    for row in evaluated.to_dict("records"):
        known = (("at this scale", row["at_this_scale"]), ("on ground truth", row["ground_truth"]))
        also = "; ".join(f"{where}: {verdict}" for where, verdict in known if verdict)
        head = f"{row['id']}  {row['verdict']}" + (f" ({also})" if also else "")
        parts = (("published", "published"), ("here", "measured"), ("why", "reason"), ("toy", "toy_evidence"))
        lines = [head, f"      {row['claim']} [{row['where']}]"]
        lines += [f"      {name + ':':<10} {row[key]}" for name, key in parts if row[key]]
        blocks.append("\n".join(lines))
    return "\n".join(blocks)


def write_verdicts(evaluated: pd.DataFrame, profile: Profile, path: Path | str) -> None:
    """Write the verdicts that `verify` compares with: {"profile", "verdicts": {id: {column: verdict}}} for the columns
    verdict, at_this_scale and ground_truth."""
    require_claim_ids(set(evaluated["id"]), "the evaluated claims")
    verdicts = evaluated.set_index("id")[list(VERDICT_COLUMNS)].to_dict("index")
    write_json(path, {"profile": profile.name, "verdicts": verdicts})


def verify(profile: Profile, results_folder: Path | str, expected_file: Path | str, long: bool = False) -> int:
    """Print the claims, with all their evidence if `long`, and compare the verdicts with the expected ones; 0 if all
    agree, otherwise 1.

    Without `results_folder` (a clean clone) the results committed beside `expected_file` are read.

    Raises ArtifactError: no expected verdicts, or another profile's, or unknown or missing ones.
    """
    expected_file, results_folder = Path(expected_file), Path(results_folder)
    expected = _expected(profile, expected_file)
    committed = expected_file.parent / "results"
    folder = results_folder if any(results_folder.glob("*.parquet")) else committed
    evaluated = evaluate_claims(profile, Results.load(folder))
    print(claims_text(evaluated) if long else claims_summary(evaluated))
    print(f"\n{len(evaluated)} claims at profile {profile.name}, from {folder}")
    print("; ".join(f"{verdict}: {(evaluated['verdict'] == verdict).sum()}" for verdict in VERDICTS))
    differing = 0
    for row in evaluated.to_dict("records"):
        for column in VERDICT_COLUMNS:
            got, wanted = row[column], expected[row["id"]].get(column)
            if got != wanted:
                differing += 1
                print(f"DIFFERS {row['id']} {column}: '{got}', committed '{wanted}'")
    print(f"{differing} verdicts differ from {expected_file.name}" if differing else "all verdicts as committed")
    return 1 if differing else 0


def _expected(profile: Profile, path: Path) -> dict[str, dict[str, str]]:
    make_them = f"after `make paper`, `python -m sae_lib accept --profile {profile.name}` makes it"
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise ArtifactError(f"verdicts: there is no {shown(path)} to compare with; {make_them}") from None
    if not isinstance(content, dict) or content.get("profile") != profile.name:
        raise ArtifactError(f"verdicts: {shown(path)} is not of profile {profile.name}; {make_them}")
    verdicts = content.get("verdicts", {})
    require_claim_ids(set(verdicts), path.name)
    return dict(verdicts)
