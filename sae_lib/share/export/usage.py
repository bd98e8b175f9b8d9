"""How an exported SAE is loaded, library by library: the code of a model card."""

from __future__ import annotations

from collections.abc import Sequence

from sae_lib.share.export.facts import Facts

LIBRARIES = {"saelens": "SAELens", "dictionary_learning": "dictionary_learning"}


def loading(facts: Facts, formats: Sequence[str], repo: str | None) -> str:
    """What to feed it, and one code block for each library; from the hub where the repository is known, else from this
    folder."""
    blocks = [
        f"{LIBRARIES[name]}:\n\n```python\n{_code(name, repo)}\n```\n\n{_note(name, facts)}".rstrip()
        for name in formats
    ]
    return "\n\n".join([_input(facts), *blocks, f"sae_lib:\n\n```python\n{_own(formats[0], repo)}\n```"])


def _input(facts: Facts) -> str:
    block, hook = facts.place.block, facts.place.transformer_lens_hook
    if hook is None:
        return "Its files do not say which activations it reads."
    module = f"the output of the module `{block}` of the transformers model; " if block else ""
    return f"Its input: {module}in TransformerLens `{hook}`, of a model loaded without processing."


def _code(name: str, repo: str | None) -> str:
    if name == "saelens":
        load = f'SAE.from_pretrained("{repo}", "saelens")' if repo else 'SAE.load_from_disk("saelens")'
        return f"from sae_lens import SAE\n\nsae = {load}"
    load = f'sae, config = load_dictionary({_path(name, repo)}, device="cpu")'
    return _fetching("from dictionary_learning.utils import load_dictionary", load, repo)


def _own(name: str, repo: str | None) -> str:
    return _fetching("from sae_lib.share.load import load_sae", f"sae = load_sae({_path(name, repo)})", repo)


def _fetching(imported: str, load: str, repo: str | None) -> str:
    """The code for a library that reads local folders only."""
    if repo is None:
        return f"{imported}\n\n{load}"
    return f'from huggingface_hub import snapshot_download\n{imported}\n\nfolder = snapshot_download("{repo}")\n{load}'


def _path(name: str, repo: str | None) -> str:
    return f'f"{{folder}}/{name}"' if repo else f'"{name}"'


def _note(name: str, facts: Facts) -> str:
    """What differs from the SAE as this project keeps it."""
    if facts.config.architecture in ("batchtopk", "matryoshka"):
        held = "a JumpReLU with one threshold for all latents" if name == "saelens" else "its own class"
        return (
            f"Written as {held}, evaluated by its threshold. The library keeps what is above it, this project what is "
            "at or above it: the threshold written is the next smaller float32, and the latents are the same."
        )
    return ""
