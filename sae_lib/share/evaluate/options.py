"""Options of the command lines that read any SAE on any language model."""

from __future__ import annotations

from argparse import _ActionsContainer


def add_model_options(parser: _ActionsContainer, *, required: bool, text: str) -> None:
    """Which model and layer, on what text. `parser` is an ArgumentParser or a group of one; `text` says what the text
    is for.
    """
    add = parser.add_argument
    add("--model", required=required, help="'pocket', a local folder or a hub id")
    add("--layer", type=int, help="block after which the SAE reads, from 0 (default: what its own files name)")
    add("--revision", help="branch, tag or commit of a hub model")
    add("--files", nargs="+", default=[], metavar="FILE", help=f"{text}: .jsonl, .parquet or .txt")
    add("--text-field", default="text", help="column of the text in those files")
    add("--context-length", type=int, default=128, help="tokens in a context")
    add("--max-words", type=int, help="words of the absorption metric (default: the whole vocabulary)")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--dtype", default="float32", help="of the language model: float32, bfloat16 or float16")
    add("--cache", help="folder for what depends on the model only")
    add("--any-origin", action="store_true", help="go on even where the SAE's files name another model or layer")
