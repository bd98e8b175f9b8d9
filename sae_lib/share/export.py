"""SAEs of this project for other libraries: SAELens's format and dictionary_learning's, with a README.

    python -m sae_lib export build/pocket/runs/RUN --to both --out FOLDER

FOLDER then holds README.md and a folder for each format, which is also the SAE's id in a repository on the hub.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from sae_lib.mechanisms import METHODS
from sae_lib.report.names import METRICS, method_name
from sae_lib.share.dictionary_learning import save_dictionary_learning
from sae_lib.share.facts import Facts, read_run
from sae_lib.share.saelens import save_saelens
from sae_lib.share.weights import inference_form
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import atomic_folder
from sae_lib.util.paths import output_folder

# How each is loaded.
FORMATS = {
    "saelens": """\
```python
from sae_lens import SAE

sae = SAE.load_from_disk("saelens")
```""",
    "dictionary_learning": """\
```python
from dictionary_learning.utils import load_dictionary

sae, config = load_dictionary("dictionary_learning", device="cpu")
```""",
}


def export_run(run: Path | str, to: str, out: Path | str) -> Facts:
    """Write a trained SAE in the format of another library, with a README. Whole or not at all.

    >>> export_run("build/pocket/runs/0357a2d1574dba2de712", "both", "my_sae").method      # doctest: +SKIP
    'matryoshka_2'

    `run`: its folder; `to`: "saelens", "dictionary_learning" or "both"; `out`: a folder that is new or empty. Raises
    ArtifactError: no such run, one that has not finished, an unknown format, a folder that is full or not writable.
    """
    formats = [*FORMATS] if to == "both" else [to]
    if not set(formats) <= set(FORMATS):
        raise ArtifactError(f"to: {to!r} is no known format; choose {', '.join(FORMATS)} or both")
    out = output_folder(out, "out")
    sae, facts = read_run(Path(run).expanduser())
    try:
        if out.exists() and any(out.iterdir()):
            raise ArtifactError(f"out: {out} is not empty; name a new folder, or empty that one")
        with atomic_folder(out) as folder:
            if "saelens" in formats:
                save_saelens(inference_form(sae), folder / "saelens", facts)
            if "dictionary_learning" in formats:
                save_dictionary_learning(sae, folder / "dictionary_learning", facts)
            (folder / "README.md").write_text(readme(facts, formats), encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"out: {out} cannot be written ({error.strerror or error}); name another folder") from error
    return facts


def readme(facts: Facts, formats: Sequence[str]) -> str:
    """What the run says of the SAE, with the front matter that the hub reads."""
    place, method = facts.place, METHODS.get(facts.method)
    front = {
        "license": "mit", "library_name": formats[0], "base_model": place.model if place.on_hub else None,
        "datasets": facts.dataset, "tags": ["sparse-autoencoder", facts.method, *formats],
    }  # fmt: skip
    training = {
        "model": place.model, "reads": place.transformer_lens_hook, "module of transformers": place.block,
        "text": facts.dataset, "tokens": f"{facts.tokens:,}", "steps": f"{facts.steps:,}", "seed": facts.seed,
        "context length": facts.context_length, "run": facts.run, **facts.config.model_dump(mode="json"),
    }  # fmt: skip
    scores = (
        (f"{metric.label} ({metric.direction})", f"{facts.scores[name]:.{metric.decimals}f}")
        for name, metric in METRICS.items()
        if name in facts.scores
    )
    parts = [
        f"---\n{yaml.safe_dump({key: value for key, value in front.items() if value})}---",
        f"# {method_name(facts.method)} sparse autoencoder",
        "It takes the raw residual stream, where every context opens with BOS."
        + ("" if facts.steps else " It is **untrained**: the weights are as they were initialised."),
        *(FORMATS[name] for name in formats),
        "## Training",
        _table(("setting", "value"), ((key, str(value)) for key, value in training.items() if value is not None)),
        "## Scores of this seed",
        _table(("score (which is better)", "value"), scores),
        *(method.papers if method else ()),
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
