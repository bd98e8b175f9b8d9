"""Sparsity and reconstruction error of an SAE on rows of activations: no language model is needed."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sae_lib.autoencoders.base import Autoencoder

_ROWS = 4096


class ReconstructionSums:
    """Running sums over rows of activations, in float64; the metrics are read off at the end.

    With x a row, f its latents, x_hat its reconstruction, N rows:

    - l0 = mean number of f_i != 0; l1 = mean of sum_i f_i
    - mse = mean over rows and over d_in of (x - x_hat)^2
    - cosine = mean of cos(x, x_hat), 0 where x_hat = 0
    - density_i = share of rows with f_i != 0; dead_fraction = share of latents with density 0

    Everything is computed in float32 or better, whatever the type of the rows.
    """

    def __init__(self, d_sae: int, device: torch.device) -> None:
        self.rows = 0
        self.d_in = 0
        self.squared_error = torch.zeros((), dtype=torch.float64, device=device)
        self.l1 = torch.zeros((), dtype=torch.float64, device=device)
        self.cosine = torch.zeros((), dtype=torch.float64, device=device)
        self.on = torch.zeros(d_sae, dtype=torch.int64, device=device)

    def add(
        self, x: Float[Tensor, "row d_in"], f: Float[Tensor, "row d_sae"], x_hat: Float[Tensor, "row d_in"]
    ) -> None:
        """Add rows, on the device that the sums are on."""
        x, f, x_hat = x.float(), f.float(), x_hat.float()
        self.rows += len(x)
        self.d_in = x.shape[1]
        self.squared_error += (x - x_hat).pow(2).sum(dtype=torch.float64)
        self.l1 += f.sum(dtype=torch.float64)
        self.cosine += F.cosine_similarity(x, x_hat, dim=1).sum(dtype=torch.float64)
        self.on += (f != 0).sum(dim=0)

    def density(self) -> Float[Tensor, " d_sae"]:
        """Share of rows on which each latent is on, on the CPU."""
        return (self.on.double() / self.rows).float().cpu()

    def metrics(self, variance: float) -> dict[str, float]:
        """l0, l1, mse, cosine, explained_variance and dead_fraction.

        explained_variance = 1 - sum ||x - x_hat||^2 / sum ||x - mean(x)||^2, centred: predicting the mean
        gives 0. SAEBench 0.6.0 divides by S - (S / d)^2 instead, with S = mean ||x||^2, which is no variance.

        Args:
            variance: mean of ||x - mean(x)||^2 over the rows.
        """
        error = self.squared_error.item() / self.rows
        return {
            "l0": int(self.on.sum()) / self.rows,
            "l1": self.l1.item() / self.rows,
            "mse": error / self.d_in,
            "cosine": self.cosine.item() / self.rows,
            "explained_variance": 1 - error / variance if variance else math.nan,
            "dead_fraction": (self.on == 0).double().mean().item(),
        }


@torch.no_grad()
def reconstruction_statistics(
    sae: Autoencoder, activations: Float[Tensor, "row d_in"]
) -> tuple[dict[str, float], Float[Tensor, " d_sae"]]:
    """Reconstruct rows of activations, without a language model.

    Returns:
        l0, l1, mse, cosine, explained_variance, dead_fraction as in `ReconstructionSums`, and the density.
    """
    sums = ReconstructionSums(sae.d_sae, sae.device)
    for rows in activations.split(_ROWS):
        rows = rows.to(sae.device)
        f = sae.encode(rows.to(sae.dtype))
        sums.add(rows, f, sae.decode(f))
    exact = activations.double()
    return sums.metrics((exact - exact.mean(dim=0)).pow(2).sum(dim=1).mean().item()), sums.density()
