"""Command line of `export_run`, with an upload to the Hugging Face hub where asked for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sae_lib.share.export import FORMATS, export_run
from sae_lib.share.export.hub import check_repo, check_token, push, upload_plan
from sae_lib.util.errors import ArtifactError


def main(arguments: Sequence[str] | None = None) -> int:
    """Export one SAE. Returns the exit code: 0, or 1 with one line on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m sae_lib.share.export",
        description="Write a trained SAE, with a model card, as SAELens and dictionary_learning load it.",
    )
    add = parser.add_argument
    add("run", help="folder of one run: build/<profile>/runs/<run>")
    add("--to", default="both", metavar="FORMAT", help=f"{', '.join(FORMATS)} or both (default)")
    add("--out", required=True, type=Path, metavar="FOLDER", help="new folder for the files")
    add("--profile", help="name or path of the profile it was trained with, if the run was moved")
    add("--push", metavar="USER/NAME", help="repository on the Hugging Face hub to upload to")
    add("--revision", default="main", help="branch of that repository")
    add("--private", action="store_true", help="make it a private repository")
    add("--dry-run", action="store_true", help="with --push: print what would be uploaded, send nothing")
    asked = parser.parse_args(arguments)
    try:
        if asked.dry_run and not asked.push:
            raise ArtifactError("dry-run: it says what --push would upload; name a repository with --push USER/NAME")
        if asked.push:
            check_repo(asked.push)
        if asked.push and not asked.dry_run:
            check_token()
        export_run(asked.run, asked.to, asked.out, profile=asked.profile, repo=asked.push)
        print(f"wrote {asked.out}")
        if asked.push:
            send = upload_plan if asked.dry_run else push
            print(send(asked.out.expanduser(), asked.push, asked.revision, asked.private))
    except ArtifactError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
