"""Stability of an SAE: across the contexts of absorption's words, and along the tokens of the held-out text."""

from __future__ import annotations

from collections.abc import Sequence

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.metrics.registry import Column, Earlier, Inputs, Measured, Score, register
from sae_lib.metrics.stability.config import StabilityConfig
from sae_lib.metrics.stability.contexts import context_stability
from sae_lib.metrics.stability.reference import StabilityReference, build_stability_reference
from sae_lib.metrics.stability.tokens import token_stability


def _reference(inputs: Inputs) -> StabilityReference:
    return build_stability_reference(
        inputs.lm, inputs.reference("absorption"), inputs.settings("absorption"), inputs.settings("stability"),
        inputs.held_out, inputs.folder,
    )  # fmt: skip


def _evaluate(saes: Sequence[Autoencoder], inputs: Inputs, earlier: Sequence[Earlier]) -> list[Measured]:
    reference, measured = inputs.reference("stability"), []
    for sae, known in zip(saes, earlier, strict=True):
        # Contexts are those of the latents that absorption finds for a letter.
        summary = context_stability(sae, reference, known["absorption"]["main_latents"])
        rows, has_predecessor = (t.to(sae.device) for t in (reference.text_activations, reference.has_predecessor))
        measured.append(Measured(summary | token_stability(sae, rows, has_predecessor)))
    return measured


register(
    Score(
        name="stability",
        version=1,
        settings=StabilityConfig,
        reference=_reference,
        evaluate=_evaluate,
        needs=("absorption",),
        columns={
            "context_firing": Column("contexts, firing", "higher", 3),
            "context_probe": Column("contexts, probe", "none", 3),
            "context_words": Column("context words", "none", 0),
            "token_change": Column("tokens, change", "none", 3),
            "token_change_shuffled": Column("change, shuffled", "none", 3),
            "token_autocorrelation": Column("tokens, autocorrelation", "none", 3),
            "token_autocorrelation_shuffled": Column("autocorrelation, shuffled", "none", 3),
        },
    )
)
