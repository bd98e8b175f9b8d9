"""SAEs of this project for other libraries: SAELens's format, dictionary_learning's, with a model card.

    python -m sae_lib export build/pocket/runs/RUN --to both --out FOLDER [--push USER/NAME [--dry-run]]

FOLDER then holds README.md, the model card, and a folder for each format, which is also the SAE's id in a repository
on the hub. `sae_lib.share.load.load_sae` reads both back.
"""

from __future__ import annotations

from pathlib import Path

from sae_lib.share.card import card
from sae_lib.share.dictionary_learning import save_dictionary_learning
from sae_lib.share.facts import Facts, read_run
from sae_lib.share.saelens import save_saelens
from sae_lib.share.weights import inference_form
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import atomic_folder, atomic_write
from sae_lib.util.paths import output_folder

FORMATS = ("saelens", "dictionary_learning")


def export_run(
    run: Path | str, to: str, out: Path | str, *, profile: str | None = None, repo: str | None = None
) -> Facts:
    """Write a trained SAE in the format of another library, with its model card. Whole or not at all.

    >>> export_run("build/pocket/runs/0357a2d1574dba2de712", "both", "my_sae").method      # doctest: +SKIP
    'matryoshka_2'

    Args:
        run: folder of one run, `build/<profile>/runs/<run>`.
        to: "saelens", "dictionary_learning" or "both".
        out: folder to make; it may exist if it is empty.
        profile: name or path of the profile it was trained with, if it is not the one that the run lies in.
        repo: hub repository that the card names.

    Raises:
        ArtifactError: no such run, a run that has not finished, an unknown format, a folder that is not empty or
            cannot be written.
    """
    formats = FORMATS if to == "both" else (to,)
    if not set(formats) <= set(FORMATS):
        raise ArtifactError(f"to: {to!r} is no known format; choose {', '.join(FORMATS)} or both")
    out = output_folder(out, "out")
    sae, facts = read_run(Path(run).expanduser(), profile)
    form = inference_form(sae)
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ArtifactError(f"out: {out} is not empty; name a new folder, or empty that one")
        with atomic_folder(out) as folder:
            if "saelens" in formats:
                save_saelens(form, folder / "saelens", facts)
            if "dictionary_learning" in formats:
                save_dictionary_learning(sae, folder / "dictionary_learning", facts)
            with atomic_write(folder / "README.md") as file:
                file.write(card(facts, form.architecture, formats, repo))
    except OSError as error:
        raise ArtifactError(f"out: {out} cannot be written ({error.strerror or error}); name another folder") from error
    return facts
