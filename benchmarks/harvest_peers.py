"""The peers' ways from a language model to activations, on one model in memory, without network.

Each is called again and again, and a call gives as many activations as there are tokens. SAELens and
dictionary_learning fill a buffer and yield from it; the buffers' sizes are such that the model refills what a call
takes out, once a call.
"""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sae_lib.data.language_model import LanguageModel

Harvester = Callable[[], object]
NEEDS = {"SAELens": ("sae_lens", "transformer_lens"), "dictionary_learning": ("dictionary_learning", "nnsight")}


def plain_transformers(lm: LanguageModel, tokens: Int[Tensor, "context position"], batch: int) -> Harvester:
    """A loop as in a tutorial: the base model's forward pass with `output_hidden_states`, one layer kept in memory."""

    @torch.no_grad()
    def run() -> None:
        kept = []
        for part in tokens.split(batch):
            output = lm.model.base_model(part.to(lm.device), output_hidden_states=True, use_cache=False)
            kept.append(output.hidden_states[lm.layer + 1].flatten(0, 1).cpu())
        torch.cat(kept)

    return run


def saelens(lm: LanguageModel, tokens: Int[Tensor, "context position"], batch: int) -> Harvester:
    """`ActivationsStore` on TransformerLens, fed with the contexts as a tokenised dataset."""
    import datasets
    from sae_lens.training.activations_store import ActivationsStore

    from benchmarks.saebench import hooked_transformer

    contexts, positions = tokens.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its default of 10^9 tokens means many epochs
        store = ActivationsStore(
            model=hooked_transformer(lm),
            dataset=datasets.Dataset.from_dict({"input_ids": tokens.tolist()}),
            streaming=False,
            hook_name=f"blocks.{lm.layer}.hook_resid_post",
            hook_head_index=None,
            context_size=positions,
            d_in=lm.d_in,
            n_batches_in_buffer=2 * contexts,
            total_training_tokens=10**9,
            store_batch_size_prompts=batch,
            train_batch_size_tokens=batch * positions,
            prepend_bos=True,
            normalize_activations="none",
            device=lm.device,
            dtype=str(lm.dtype).removeprefix("torch."),
        )

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it copies a tensor
            taken = 0
            while taken < contexts * positions:
                taken += len(next(store))

    return run


def dictionary_learning(lm: LanguageModel, tokens: Int[Tensor, "context position"], batch: int) -> Harvester:
    """`ActivationBuffer` on nnsight, fed with the contexts as text, which it tokenises itself; two batches or more."""
    from dictionary_learning.buffer import ActivationBuffer
    from nnsight import LanguageModel as Traced

    contexts, positions = tokens.shape
    texts = lm.tokenizer.batch_decode(tokens[:, 1:])
    traced = Traced(lm.model, tokenizer=lm.tokenizer)
    buffer = ActivationBuffer(
        itertools.cycle(texts), traced, traced.model.layers[lm.layer], d_submodule=lm.d_in,
        n_ctxs=2 * (contexts - batch),  # it refills when less than half is left, so a batch later than at a half
        ctx_len=positions, refresh_batch_size=batch, out_batch_size=batch * positions, device=str(lm.device),
    )  # fmt: skip

    def run() -> None:
        taken = 0
        while taken < contexts * positions:
            taken += len(next(buffer))

    return run


PEERS: dict[str, Callable[[LanguageModel, Tensor, int], Harvester]] = {
    "transformers": plain_transformers,
    "SAELens": saelens,
    "dictionary_learning": dictionary_learning,
}


def peers_installed() -> list[str]:
    """The peers that this environment has; transformers is always there."""
    return [name for name in PEERS if all(importlib.util.find_spec(needed) for needed in NEEDS.get(name, ()))]


def blocks(lm: LanguageModel) -> list[nn.Module]:
    """Gemma-2's blocks 0 .. layer."""
    layers: Any = lm.model.base_model.layers
    return list(layers[: lm.layer + 1])


def flop_per_token(lm: LanguageModel, positions: int) -> float:
    """Floating-point operations per token of blocks 0 .. layer: 2 per weight, and attention over the positions before.

    Gemma-2-2b cut after layer 12: 2.03 GFLOP for the weights.
    """
    config: Any = lm.model.config.get_text_config()
    weights = sum(p.numel() for block in blocks(lm) for p in block.parameters() if p.ndim > 1)
    attention = 2 * config.num_attention_heads * config.head_dim * positions  # scores and values, half of the pairs
    return 2.0 * weights + (lm.layer + 1) * attention
