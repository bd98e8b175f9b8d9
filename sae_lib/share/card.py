"""The model card of an exported SAE: README.md with the front matter that the Hugging Face hub reads.

Every statement about the SAE is taken from its run folder; what a run does not say is not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sae_lib import __version__
from sae_lib.mechanisms import METHODS
from sae_lib.report.names import MECHANISMS, METRICS, method_name
from sae_lib.share.facts import Facts

LICENSE = "mit"
LIBRARIES = {"saelens": "SAELens", "dictionary_learning": "dictionary_learning"}
# What methods compute at inference.
FORMULAS = {
    "standard": "f     = ReLU(u)",
    "topk": "f     = the k largest of ReLU(u)",
    "jumprelu": "f     = u where u > threshold, else 0",
    "gated": "f     = ReLU(exp(r_mag) u + b_mag) where u + b_gate > 0, else 0",
}
METRIC_PAPERS = (
    "Chanin et al. 2024, *A is for Absorption: Studying Feature Splitting and Absorption in Sparse Autoencoders*, "
    "arXiv 2409.14507",
    "Karvonen et al. 2025, *SAEBench: A Comprehensive Benchmark for Sparse Autoencoders in Language Model "
    "Interpretability*, arXiv 2503.09532",
)


def card(facts: Facts, architecture: str, formats: Sequence[str], repo: str | None = None) -> str:
    """The text of README.md.

    Args:
        facts: what is known about the SAE.
        architecture: its form at inference (`InferenceForm.architecture`).
        formats: "saelens", "dictionary_learning": the folders beside the card.
        repo: id of the hub repository that it will lie in, if it is known.
    """
    sections = [
        _front_matter(facts, formats),
        _what_it_is(facts, architecture),
        "## Loading it\n\n" + loading(facts, formats, repo),
        _measured(facts),
        "## How it was trained\n\n" + _table(("setting", "value"), [*_data_rows(facts), *_config_rows(facts)]),
        "## Limits\n\n" + _bullets(_limits(facts)),
        _sources(facts),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(facts: Facts, formats: Sequence[str]) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        license=LICENSE,
        library_name=formats[0],
        tags=["sparse-autoencoder", "mechanistic-interpretability", facts.method.replace("_", "-"), *formats],
        base_model=facts.place.model if facts.place.on_hub else None,
        datasets=facts.dataset,
    )
    return f"---\n{data.to_yaml()}\n---"


def _what_it_is(facts: Facts, architecture: str) -> str:
    config = facts.config
    on = [name for part, name in MECHANISMS.items() if getattr(config, part)]
    mechanisms = f" Mechanisms in training: {', '.join(on)}." if on else ""
    state = "" if facts.trained else " It is **untrained**: the weights are as they were initialised."
    encoded = "(x - b_dec)" if config.subtract_b_dec else "x"
    bias = "" if architecture == "gated" else " + b_enc"
    return (
        f"# {method_name(facts.method)} sparse autoencoder\n\n"
        f"{config.d_sae:,} latents on {facts.place.described}; it is {facts.d_in:,} wide.{mechanisms}{state}\n\n"
        f"```\nu     = {encoded} W_enc{bias}\n{FORMULAS[architecture]}\nx_hat = f W_dec + b_dec\n```\n\n"
        "It takes raw activations; any scale used in training is folded into the weights."
    )


def _data_rows(facts: Facts) -> Iterable[tuple[str, str]]:
    revision = f", revision {facts.revision}" if facts.revision else ""
    yield "model", (facts.place.model or "not known") + revision
    yield "place", facts.place.block or facts.place.transformer_lens_hook or "not known"
    if facts.text:
        yield "text", facts.text
    if facts.context_length:
        yield "context length", f"{facts.context_length} tokens, the first of them BOS; special tokens are left out"
    yield "tokens", f"{facts.tokens:,}"
    yield "steps", f"{facts.steps:,}" + (f" of {facts.tokens // facts.steps:,} tokens" if facts.trained else "")
    yield "seed", str(facts.seed)


def _config_rows(facts: Facts) -> Iterable[tuple[str, str]]:
    """The configuration, flat; what is off is left out."""
    for name, value in _flat(facts.config.model_dump(mode="json")):
        if value not in (None, []):
            yield f"`{name}`", ", ".join(map(str, value)) if isinstance(value, list) else _shown(value)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def loading(facts: Facts, formats: Sequence[str], repo: str | None) -> str:
    """What to feed it, and one code block for each library; from the hub where the repository is known, else from this
    folder."""
    block, hook = facts.place.block, facts.place.transformer_lens_hook
    module = f"the output of the module `{block}` of the transformers model; " if block else ""
    parts = [
        "Its files do not say which activations it reads."
        if hook is None
        else f"Its input: {module}in TransformerLens `{hook}`, of a model loaded without processing."
    ]
    for name in formats:
        parts += [f"{LIBRARIES[name]}:", _code(name, name, repo)]
        if facts.config.architecture in ("batchtopk", "matryoshka"):
            held = "a JumpReLU with one threshold for all latents" if name == "saelens" else "its own class"
            parts.append(
                f"Written as {held}, evaluated by its threshold. The library keeps what is above it, this project what "
                "is at or above it: the threshold written is the next smaller float32, and the latents are the same."
            )
    return "\n\n".join([*parts, "sae_lib:", _code("sae_lib", formats[0], repo)])


def _code(library: str, folder: str, repo: str | None) -> str:
    """The code that loads `folder` with a library; SAELens alone reads from the hub by itself."""
    path = f'f"{{folder}}/{folder}"' if repo else f'"{folder}"'
    lines = {
        "saelens": [
            "from sae_lens import SAE\n",
            f'sae = SAE.from_pretrained("{repo}", "saelens")' if repo else 'sae = SAE.load_from_disk("saelens")',
        ],
        "dictionary_learning": [
            "from dictionary_learning.utils import load_dictionary\n",
            f'sae, config = load_dictionary({path}, device="cpu")',
        ],
        "sae_lib": ["from sae_lib.share.load import load_sae\n", f"sae = load_sae({path})"],
    }[library]
    if repo and library != "saelens":
        lines.insert(0, "from huggingface_hub import snapshot_download")
        lines.insert(2, f'folder = snapshot_download("{repo}")')
    code = "\n".join(lines)
    return f"```python\n{code}\n```"


def _measured(facts: Facts) -> str:
    rows = [
        (
            metric.label,
            f"{facts.scores[name]:.{metric.decimals}f}",
            "–" if metric.direction == "none" else metric.direction,
        )
        for name, metric in METRICS.items()
        if name in facts.scores
    ]
    if not rows:
        return "## Measured\n\nNo scores are kept with this run."
    tokens = facts.scores.get("tokens")
    explained = {
        "l0": f"L0 to KL score: on {int(tokens):,} tokens of held-out text." if tokens else "",
        "absorption_fraction": "Absorption: how often the latents of a first letter fail to fire on a word with it.",
        "probing_k1": "Probing: accuracy of a linear probe on the k best latents, or on the residual stream.",
        "context_firing": "Contexts: how often a letter's latents fire on a word, over different prompts.",
        "token_change": "Tokens: how much latents change from a token to the next, and to a random one (shuffled).",
    }
    notes = [note for name, note in explained.items() if name in facts.scores and note]
    table = _table(("metric", "value", "better"), rows)
    return f"## Measured\n\n{table}\n\nOf this SAE alone, one seed. {' '.join(notes)}"


def _limits(facts: Facts) -> Iterable[str]:
    yield (
        f"Trained on {facts.tokens:,} tokens of one corpus: what is rare there is unlikely to have a latent."
        if facts.trained
        else "Untrained: a baseline for metrics, its latents mean nothing."
    )
    dead = facts.scores.get("dead_fraction")
    if dead:
        yield f"{dead:.1%} of the latents never fired on the held-out text."
    explained = facts.scores.get("explained_variance")
    if explained is not None:
        lost = f"{1 - explained:.1%} of the activations' variance is not in the reconstruction."
        yield lost if explained > 0 else "The reconstruction is further from the activations than their mean is."
    yield "A latent is no guarantee of a meaning: latents are labelled by what makes them fire, one by one."
    if facts.place.model and not facts.place.on_hub:
        yield f"{facts.place.described_model} is not on the hub, and the SAE is of no use without it."
    if facts.place.on_hub:
        yield f"The terms of {facts.place.model} apply to the model itself, which is not part of this repository."


def _sources(facts: Facts) -> str:
    papers = METHODS[facts.method].papers if facts.method in METHODS else ()
    cited = [*papers, *(METRIC_PAPERS if facts.scores else ())]
    return (
        f"## Citation and licence\n\nMade with sae_lib {__version__}, run `{facts.run}`. "
        f"Licence: {LICENSE.upper()}.\n\n{_bullets(cited)}"
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
