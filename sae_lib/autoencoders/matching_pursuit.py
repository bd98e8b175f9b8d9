"""The matching-pursuit SAE: latents one after another, each from what those before it have left over."""

from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from sae_lib.autoencoders.base import Autoencoder, Step, architecture
from sae_lib.autoencoders.config import SAEConfig
from sae_lib.autoencoders.latents import Latents
from sae_lib.autoencoders.method import Look
from sae_lib.autoencoders.topk import geometric_median, topk_method


class MatchingPursuitConfig(SAEConfig):
    knob: ClassVar[str] = "k"
    architecture: str = "matching_pursuit"
    k: int = Field(ge=1)
    """Latents of a row at most, one for each round."""
    residual_threshold: float = Field(1e-2, ge=0.0)
    """A row ends when no more than this norm of it is left."""

    @model_validator(mode="after")
    def _encodes_by_its_decoder(self) -> "MatchingPursuitConfig":
        if not self.unit_norm_decoder:
            raise ValueError("matching_pursuit needs unit_norm_decoder: true")
        masking = self.get("masking")
        if self.get("alignment") or (masking and masking.inference != "off"):
            raise ValueError("matching_pursuit has no encoder for alignment, or for masking.inference other than 'off'")
        return self


@architecture(MatchingPursuitConfig)
class MatchingPursuit(Autoencoder):
    """From r = x - b_dec and f = 0, in each of k rounds

        i = argmax_j r . d_j,    v = ReLU(r . d_i),    f_i <- f_i + v,    r <- r - v d_i

    until ||r|| is under a threshold or a round adds no latent (Costa et al. 2025, arXiv 2506.03093, as SAELens has it:
    L = ||x - x_hat||_2^2 alone). W_enc is a copy of the decoder. A child that has absorbed its parent is chosen first,
    and nothing is left for the parent.
    """

    exportable = False
    offsets, scaled = (), ("b_dec", "threshold")
    cfg: MatchingPursuitConfig

    def __init__(self, config: MatchingPursuitConfig, d_in: int, generator: torch.Generator) -> None:
        super().__init__(config, d_in, generator)
        self.threshold: Tensor = nn.Buffer(torch.tensor(config.residual_threshold))

    def initialise(self, x: Float[Tensor, "batch d_in"]) -> None:
        self.b_dec.data.copy_(geometric_median(x))

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        rest = x.reshape(-1, self.d_in) - self.b_dec
        f = rest.new_zeros(len(rest), self.d_sae)
        going = torch.ones_like(rest[:, :1], dtype=torch.bool)
        for _ in range(self.cfg.k):
            with torch.no_grad():  # which latent is the strongest: all products need not be kept for the gradient
                strongest = (rest @ self.W_dec.T).argmax(dim=1, keepdim=True)
            direction = self.W_dec.index_select(0, strongest.squeeze(1))
            value = torch.relu((rest * direction).sum(dim=1, keepdim=True)) * going
            new = (f.detach().gather(1, strongest) == 0) & (value.detach() > 0)
            f = f.scatter_add(1, strongest, value)
            rest = rest - value * direction
            going = going & new & (rest.detach().norm(dim=1, keepdim=True) >= self.threshold)
            if not going.any():
                break
        return f.view(*x.shape[:-1], self.d_sae)

    def encode_training(self, step: Step) -> Latents:
        return Latents(self.encode(step.x))

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        self.W_enc.copy_(self.W_dec.T)


SOURCE = "Costa et al. 2025, *From Flat to Hierarchical*, arXiv 2506.03093"
RECIPE, PLUM = {"architecture": "matching_pursuit"}, Look("#332288", "3", (0, (1, 3)))
topk_method("matching_pursuit", "Matching pursuit", RECIPE, PLUM, papers=(SOURCE,))
