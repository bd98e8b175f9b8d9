"""Command line of `evaluate_sae`: a table on standard output, and the same as JSON where asked for."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.profiles.profile import explain
from sae_lib.share.evaluate import default_settings, evaluate_sae
from sae_lib.share.evaluate.measures import MEASURES
from sae_lib.share.evaluate.options import add_model_options
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import make_folder, write_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate one SAE. Returns the exit code: 0, or 1 with one line on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m sae_lib.share.evaluate",
        description="Metrics of an SAE, from this package, SAELens or dictionary_learning, on a language model.",
    )
    add = parser.add_argument
    add("folder", help="folder of the SAE")
    add_model_options(parser, required=True, text="held-out text")
    add("--metrics", nargs="+", default=["core", "absorption"], help=f"any of {', '.join(MEASURES)}")
    add("--contexts", type=int, default=64, help="contexts of held-out text")
    add("--json", type=Path, metavar="FILE", help="write summary, letters, tasks and notes here")
    asked = vars(parser.parse_args(arguments))
    output, max_words = asked.pop("json"), asked.pop("max_words")
    try:
        if output is not None:
            _check_place(output)
        result = _evaluate(asked.pop("folder"), max_words, asked)
        if output is not None:
            write_json(output, result)
    except ArtifactError as error:
        print(error, file=sys.stderr)
        return 1
    print(table(result))
    return 0


def _evaluate(folder: str, max_words: int | None, options: dict[str, Any]) -> dict[str, Any]:
    try:
        absorption = AbsorptionConfig(max_words=max_words)
    except ValidationError as error:
        raise ArtifactError(explain(error, AbsorptionConfig, "")) from None
    settings = default_settings().model_copy(update={"absorption": absorption})
    result = evaluate_sae(folder, settings=settings, **options)
    return {
        "summary": _plain(result.summary),
        "letters": [_plain(row) for row in result.letters.to_dict(orient="records")],
        "tasks": [_plain(row) for row in result.tasks.to_dict(orient="records")],
        "notes": result.notes,
    }


def _check_place(output: Path) -> None:
    """Refuse a file that could not be written, before the work for it."""
    make_folder(output.parent)
    if output.is_dir():
        raise ArtifactError(f"--json: {output} is a folder; name a file")
    if not os.access(output.parent, os.W_OK):
        raise ArtifactError(f"--json: nothing can be written into {output.parent.resolve()}; name a file elsewhere")


def table(result: dict[str, Any]) -> str:
    """Names and values in two columns, notes below them."""
    width = max(map(len, result["summary"]))
    rows = [f"{name:<{width}}  {_shown(value)}" for name, value in result["summary"].items()]
    return "\n".join([*rows, *(f"note: {note}" for note in result["notes"])])


def _shown(value: Any) -> str:
    if value is None:
        return "not defined"
    return f"{value:.4f}" if isinstance(value, float) and value != int(value) else f"{value}"


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    """JSON has no NaN: a value that is not there is null."""
    return {str(key): None if isinstance(value, float) and value != value else value for key, value in row.items()}


if __name__ == "__main__":
    sys.exit(main())
