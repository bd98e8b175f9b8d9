"""What absorption looks like: which latents fire on which inputs of a family, and where their decoder rows point."""

from __future__ import annotations

import pandas as pd
import torch

from sae_lib.autoencoders import Autoencoder
from sae_lib.metrics.toy.data import Toy
from sae_lib.metrics.toy.score import decoder_cosines, held_out, match_latents
from sae_lib.metrics.toy.training import ToyRun, train_toy


def train_and_picture(run: ToyRun) -> dict[str, float]:
    """Train; `family_picture` with "kind/row/latent" as the name of each value."""
    frame = family_picture(train_toy(run)[0], run.toy)
    return {"/".join(place): value for *place, value in frame.itertuples(index=False)}


@torch.no_grad()
def family_picture(sae: Autoencoder, toy: Toy) -> pd.DataFrame:
    """What the latents of one family do, mean over the families of the toy.

    Returns:
        kind, row, latent, value. kind 'activation': mean activation of the latent of feature `latent` on inputs of kind
        `row` ('parent only', 'parent + child 1' ... 'none'). kind 'cosine': cosine of the decoder row of the latent of
        feature `latent` and the direction of feature `row`.
    """
    x, activations = held_out(toy)
    f = sae.encode(x)
    latent = match_latents(f, activations)
    cosine = decoder_cosines(sae, toy.directions())[latent]
    rows: list[tuple[str, str, str, float]] = []
    for parent, children in toy.children.items():
        family = {"parent": parent} | {f"child {i + 1}": child for i, child in enumerate(children)}
        on = activations > 0
        inputs = {"parent only": on[:, parent] & ~on[:, children].any(dim=1)}
        inputs |= {f"parent + child {i + 1}": on[:, child] for i, child in enumerate(children)}
        inputs["none"] = ~on[:, parent]
        means = {row: f[chosen][:, latent].mean(dim=0) for row, chosen in inputs.items()}
        rows += [("activation", row, name, float(means[row][i])) for row in means for name, i in family.items()]
        rows += [("cosine", row, name, float(cosine[i, j])) for row, j in family.items() for name, i in family.items()]
    frame = pd.DataFrame(rows, columns=["kind", "row", "latent", "value"])
    return frame.groupby(["kind", "row", "latent"], sort=False, as_index=False)["value"].mean()
