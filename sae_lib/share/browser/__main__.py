"""Command line: one SAE as an offline HTML page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sae_lib.share.browser import write_browser
from sae_lib.share.browser.sources import CONTEXTS, examine_folder, examine_run
from sae_lib.share.evaluate.options import add_model_options
from sae_lib.study.experiment import Experiment
from sae_lib.util.errors import ArtifactError
from sae_lib.util.paths import output_root, shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page. Returns the exit code: 0, or 1 with one line on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m sae_lib.share.browser",
        description="Every latent of an SAE, and absorption word by word, as one HTML file that opens offline.",
    )
    add = parser.add_argument
    add("folder", nargs="?", help="folder of an SAE, from this package, SAELens or dictionary_learning")
    add("--profile", help="instead of a folder: an SAE of this profile's main table")
    add("--method", default="topk", help="of the profile (default: topk)")
    add("--seed", type=int, help="of the profile (default: its first)")
    add("--out", type=Path, metavar="FOLDER", help="where the page is written (default: browser, under the output)")
    add("--contexts", type=int, default=CONTEXTS, help=f"contexts that examples come from (default: {CONTEXTS})")
    add_model_options(parser.add_argument_group("with a folder"), required=False, text="text")
    asked = parser.parse_args(arguments)
    if (asked.folder is None) == (asked.profile is None) or (asked.folder and not asked.model):
        parser.error("give --profile, or a folder with --model")
    try:
        print(f"open {shown(_write(asked))} in a browser")
    except ArtifactError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _write(asked: argparse.Namespace) -> Path:
    if asked.contexts < 1 or (asked.max_words is not None and asked.max_words < 1):
        raise ArtifactError("contexts, max-words: must be 1 or more")
    if asked.profile is not None:
        experiment = Experiment.open(asked.profile)
        seed = experiment.profile.training.seeds[0] if asked.seed is None else asked.seed
        folder = asked.out or experiment.paths.root / "browser"
        found = examine_run(experiment, asked.method, seed, asked.contexts)
        return write_browser(found, folder / f"{asked.method}_{seed}.html").resolve()
    names = ("revision", "files", "text_field", "contexts", "context_length", "max_words", "device", "dtype", "cache")
    options = {name: getattr(asked, name) for name in (*names, "any_origin")}
    found = examine_folder(asked.folder, asked.model, asked.layer, **options)
    name = Path(asked.folder).resolve().name
    return write_browser(found, (asked.out or output_root() / "browser") / f"{name}.html").resolve()


if __name__ == "__main__":
    sys.exit(main())
