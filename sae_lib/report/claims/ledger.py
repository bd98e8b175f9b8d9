"""The claims ledger: every claim of the two papers, what we obtained beside it, and a verdict that code gives."""

import textwrap
from functools import partial
from pathlib import Path

import pandas as pd

from sae_lib.metrics.registry import ARROWS
from sae_lib.profiles.profile import Profile
from sae_lib.report.claims.data_checks import check_on_data, check_on_toys
from sae_lib.report.claims.file import Claim, PublishedNumber, load_claims, require_claim_ids
from sae_lib.report.claims.paper_checks import PAPER_CHECKS
from sae_lib.report.claims.verdicts import VERDICTS, Outcome, Verdict, united
from sae_lib.report.results import Results, select
from sae_lib.report.statistics import Interval, seeds_of, t_interval
from sae_lib.report.tables.rows import Table
from sae_lib.report.tables.write import TABLES, write_table
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import atomic_write, read_json, write_json
from sae_lib.util.paths import shown, verdicts_file

DETAILS = "claims_details.md"  # all evidence, beside the ledger
_SHORT = {Verdict.INCONSISTENT: "inconsistent", Verdict.NOT_RUN: "not run", Verdict.UNTESTABLE: "untestable", "": "–"}
_KEPT = {"short", "claim", "where", "about", "same_as", "metric", "direction"}  # of a claim, in its row
PAPERS = {"T": "TemporalSAE", "M": "ATM"}
# What `verify` compares.
VERDICT_COLUMNS = {"verdict": "as stated", "at_this_scale": "at this scale", "ground_truth": "ground truth"}
REAL_MODEL = "smollm2"  # profile of a published model: its committed verdicts stand in the ledger of every other one
PAPERS_MODEL = "google/gemma-2-2b"  # which the papers' numbers are about


def evaluate_claims(profile: Profile, results: Results, claims: list[Claim] | None = None) -> pd.DataFrame:
    """One row per claim. `verdict` answers the sentence as it stands: claims about Gemma-2-2b are answered only where
    the profile runs it. `at_this_scale` is what the claim's data check says of the results at hand, whatever the model;
    `ground_truth`, what its toy check says of SAEs on data with known features; `on_real`, `at_this_scale` of the
    committed results of `REAL_MODEL` ("" where there is none). `number` is the one that decided."""
    # The committed verdicts on the real model stand in every other profile's ledger.
    file, rows = verdicts_file(REAL_MODEL), []
    real = read_json(file)["verdicts"] if profile.name != REAL_MODEL and file.is_file() else {}
    for claim in load_claims() if claims is None else claims:
        printed = {number.name: number.value for number in claim.published}
        consistent, arithmetic = PAPER_CHECKS[claim.paper_check](printed) if claim.paper_check else (True, "")
        scale = check_on_data(results, claim.data_check) if claim.data_check else None
        toy = check_on_toys(results, claim.toy_check) if claim.toy_check else None
        made = [found for found in (scale, toy) if found]
        checks = {"": claim.data_check, "toy data: ": claim.toy_check}
        sizes = "; ".join(f"{where}{check['because']}" for where, check in checks.items() if "because" in check)
        outcome = _verdict(claim, profile, results, made) if consistent else Outcome(Verdict.INCONSISTENT, "")
        by_paper = arithmetic if claim.about in ("paper", "setting") or not consistent else ""
        reasons = [outcome.reason, arithmetic, scale.reason if scale else ""]
        # The number belongs to the verdict that a reader sees first.
        made.sort(key=lambda found: found.verdict != outcome.verdict)
        rows.append(
            {
                "id": claim.id,
                "paper": PAPERS[claim.id[0]],
                **claim.model_dump(include=_KEPT),
                "where": claim.where + (" (our paraphrase)" if claim.paraphrase else ""),
                "published": ", ".join(f"{name} {value}" for name, value in printed.items()),
                "measured": ", ".join(f"{number.name} {ours}" for number, ours in _ours(claim, results) if ours.n),
                "verdict": outcome.verdict,
                "at_this_scale": scale.verdict if scale else "",
                "ground_truth": toy.verdict if toy else "",
                "on_real": real.get(claim.id, {}).get("at_this_scale", ""),
                "number": by_paper or next((found.number for found in made if found.number), ""),
                "reason": "; ".join(dict.fromkeys(reason for reason in reasons if reason)),
                "toy_evidence": f"{claim.toy_check['evidence']}: {toy.reason}" if toy else "",
                "argument": f"{claim.argument.strip()}{f' Sizes: {sizes}.' if sizes else ''}".strip(),
            }
        )
    return pd.DataFrame(rows)


def findings(evaluated: pd.DataFrame) -> pd.DataFrame:
    """The rows that count: each fact once, and no settings."""
    return evaluated[(evaluated["same_as"] == "") & (evaluated["about"] != "setting")]


def _verdict(claim: Claim, profile: Profile, results: Results, made: list[Outcome]) -> Outcome:
    if claim.about in ("paper", "setting"):
        return Outcome(made[0].verdict if made else Verdict.REPRODUCED, "")
    if claim.about == "method":
        return Outcome(united(made).verdict if made else Verdict.NOT_RUN, "")
    if profile.model.name != PAPERS_MODEL:
        return Outcome(Verdict.NOT_RUN, f"the claim is about {PAPERS_MODEL}, this profile reads {profile.model.name}")
    scale = made[0] if claim.data_check else Outcome(Verdict.NOT_RUN, "")
    if not claim.tolerance:
        return Outcome(scale.verdict, "")
    numbers = _numbers(claim, results)
    reversed_ = numbers.verdict == Verdict.NOT_REPRODUCED and scale.verdict == Verdict.CONTRADICTED
    return Outcome(Verdict.CONTRADICTED, numbers.reason) if reversed_ else numbers


def _ours(claim: Claim, results: Results) -> list[tuple[PublishedNumber, Interval]]:
    """The published numbers that have a row of ours, each with the interval of what stands there."""
    found = []
    for number in (number for number in claim.published if number.metric):
        rows = select(results.letters if number.letter else results.evaluation, number.group, number.method)
        rows = rows[rows["letter"] == number.letter] if number.letter else rows
        found.append((number, t_interval(seeds_of(rows, number.metric))))
    return found


def _numbers(claim: Claim, results: Results) -> Outcome:
    """Each published number with a row of ours, against its mean over seeds: reproduced where every interval lies
    within the tolerance, not reproduced where one lies outside."""
    off, unclear = [], []
    for number, ours in _ours(claim, results):
        if ours.n < 2:
            return Outcome(Verdict.NOT_RUN, f"{'no results' if ours.n == 0 else 'one seed'} for {number.name}")
        allowed = claim.tolerance * abs(float(number.value))
        lowest, highest = float(number.value) - allowed, float(number.value) + allowed
        told = f"{number.name} {ours.mean:.4g} for {number.value}"
        if ours.high < lowest or ours.low > highest:
            off.append(told)
        elif not (lowest <= ours.low and ours.high <= highest):
            unclear.append(told)
    if off:
        return Outcome(Verdict.NOT_REPRODUCED, f"beyond {claim.tolerance:.0%}: {', '.join(off)}")
    if unclear:
        return Outcome(Verdict.INCONCLUSIVE, f"too spread for {claim.tolerance:.0%}: {', '.join(unclear)}")
    return Outcome(Verdict.REPRODUCED, f"every number within {claim.tolerance:.0%}")


def claims_table(evaluated: pd.DataFrame, profile: Profile) -> Table:
    """The ledger, a line for each claim, settings last. What is written beside it as CSV has all its evidence."""
    shown = evaluated.assign(number=evaluated["number"].mask(evaluated["number"] == "", evaluated["measured"]))
    shown = shown.replace("", "–")
    shown["short"] += shown["same_as"].map(lambda other: f" (= {other})" if other != "–" else "")
    shown["short"] += (shown["about"] == "setting").map({True: " (setting)", False: ""})
    shown["metric"] += " " + shown["direction"].map(ARROWS)
    for column, width in (("published", 60), ("number", 110)):
        shown[column] = [_shortened(text, width) for text in shown[column]]
    shown["id"] = [f"[{name}]({DETAILS}#{name.lower()})" for name in shown["id"]]
    shown = shown.sort_values("about", key=lambda about: about == "setting", kind="stable")
    here = f"measured here ({profile.name})"
    columns = {
        "id": "id", "short": "claim", "published": "published", "number": here, "verdict": "verdict",
        "at_this_scale": "at this scale", "on_real": "real model", "ground_truth": "ground truth",
    }  # fmt: skip
    if profile.name == REAL_MODEL:
        del columns["on_real"]
    caption = (
        f"Claims of the two papers and what profile {profile.name} says of them. Published numbers are about "
        "Gemma-2-2b; measured here is the number that decided: mean [95 % interval] over seeds. Verdict: of the "
        "sentence as it stands; at this scale: of the same check on this profile's model; real model: at profile "
        f"{REAL_MODEL}; ground truth: on toy data "
        f"whose features are known. Settings are no findings and are not counted. All evidence: {DETAILS}."
    )
    return Table(shown[list(columns)].rename(columns=columns), evaluated, caption)


_shortened = partial(textwrap.shorten, placeholder=" …")


def claims_details(evaluated: pd.DataFrame, folder: Path | str) -> str:
    """What stands behind the ledger's lines, in Markdown, a section for each claim; links to what is in `folder`."""
    there = {path.name for path in Path(folder).glob("*")}
    stems = {claim.id: claim.shown for claim in load_claims()}
    sections = ["# Claims in detail\n\nWhat stands behind each line of [the ledger](claims.md).\n"]
    for row in evaluated.to_dict("records"):
        files = {name: f"{name}.{'md' if name in TABLES else 'png'}" for name in stems[row["id"]]}
        links = ", ".join(f"[{n}]({file})" if file in there else f"{n} (not made yet)" for n, file in files.items())
        named = VERDICT_COLUMNS | {"on_real": f"at {REAL_MODEL}"}
        verdicts = "; ".join(f"{name} **{row[column]}**" for column, name in named.items() if row[column])
        fields = {
            "Claim": f"{row['claim']} [{row['paper']}, {row['where']}]",
            "Verdict": verdicts,
            "Decided by": row["number"],
            "Why it follows": row["argument"],
            "Metric": f"{row['metric']} {ARROWS[row['direction']]}",
            "Published": row["published"],
            "Measured": row["measured"],
            "Evidence": row["reason"],
            "Toy data": row["toy_evidence"],
            "See": links,
        }
        lines = [f"- *{name}*: {value}" for name, value in fields.items() if value]
        sections.append("\n".join([f"## {row['id']}", "", *lines, ""]))
    return "\n".join(sections)


def write_claims(evaluated: pd.DataFrame, profile: Profile, folder: Path | str) -> list[Path]:
    """Write the ledger and what stands behind it. Returns the paths."""
    paths = write_table(claims_table(evaluated, profile), "claims", folder)
    with atomic_write(Path(folder) / DETAILS) as file:
        file.write(claims_details(evaluated, folder))
    return [*paths, Path(folder) / DETAILS]


def claims_summary(evaluated: pd.DataFrame) -> str:
    """The ledger for a terminal of 100 columns, a line for each claim: its verdicts and the number that decided."""
    lines = ["  ".join(["claim", *(f"{name:<14}" for name in VERDICT_COLUMNS.values()), "decided by"])]
    for row in evaluated.to_dict("records"):
        verdicts = "  ".join(f"{_SHORT.get(row[column], row[column]):<14}" for column in VERDICT_COLUMNS)
        line = f"{row['id']:<5}  {verdicts}  "
        lines.append(line + _shortened(row["number"] or "–", 100 - len(line)))
    return "\n".join(lines)


def write_verdicts(evaluated: pd.DataFrame, profile: Profile, path: Path | str) -> None:
    """Write the verdicts that `verify` compares with: {"profile", "verdicts": {id: {column: verdict}}}."""
    verdicts = evaluated.set_index("id")[list(VERDICT_COLUMNS)].to_dict("index")
    write_json(path, {"profile": profile.name, "verdicts": verdicts})


def verify(profile: Profile, results_folder: Path | str, expected_file: Path | str, long: bool = False) -> int:
    """Print the claims, with all their evidence if `long`, and compare the verdicts with the expected ones; 0 if all
    agree, otherwise 1. Raises ArtifactError: no results, no expected verdicts, another profile's, other claims'."""
    expected_file = Path(expected_file)
    make_them = f"after `make paper`, `python -m sae_lib accept --profile {profile.name}` makes it"
    try:
        content = read_json(expected_file)
    except FileNotFoundError:
        raise ArtifactError(f"verdicts: there is no {shown(expected_file)} to compare with; {make_them}") from None
    if not isinstance(content, dict) or content.get("profile") != profile.name:
        raise ArtifactError(f"verdicts: {shown(expected_file)} is not of profile {profile.name}; {make_them}")
    expected = content.get("verdicts", {})
    require_claim_ids([*expected], expected_file.name)
    evaluated = evaluate_claims(profile, Results.load(results_folder))
    print(claims_details(evaluated, expected_file.parent) if long else claims_summary(evaluated))
    print(f"\n{len(evaluated)} claims at profile {profile.name}, from {results_folder}")
    counted = findings(evaluated)
    print(f"{len(counted)} findings; settings and what is told twice are not counted:")
    for column, name in VERDICT_COLUMNS.items():
        numbers = {_SHORT.get(verdict, verdict): (counted[column] == verdict).sum() for verdict in VERDICTS}
        print(f"  {name}: " + ", ".join(f"{number} {verdict}" for verdict, number in numbers.items() if number))
    differing = [
        f"DIFFERS {row['id']} {column}: '{row[column]}', committed '{expected[row['id']].get(column)}'"
        for row in evaluated.to_dict("records")
        for column in VERDICT_COLUMNS
        if row[column] != expected[row["id"]].get(column)
    ]
    told = f"{len(differing)} verdicts differ from {expected_file.name}" if differing else "all verdicts as committed"
    print(*differing, told, sep="\n")
    return 1 if differing else 0
