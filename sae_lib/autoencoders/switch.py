"""The Switch SAE: a router sends each row to one of several small TopK SAEs."""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from sae_lib.autoencoders.base import Step, architecture
from sae_lib.autoencoders.latents import Latents
from sae_lib.autoencoders.method import Look
from sae_lib.autoencoders.topk import TopK, TopKConfig, strongest, topk_method, topk_rate


class SwitchConfig(TopKConfig):
    annealed: ClassVar[bool] = False
    architecture: str = "switch"
    experts: int = Field(8, ge=2)
    """Latents belong in blocks of equal size to so many experts."""
    balance_coefficient: float = Field(3.0, ge=0.0)
    """Weight of the loss that keeps the experts equally busy; for inputs of mean squared norm 1."""

    @model_validator(mode="after")
    def _equal_experts(self) -> "SwitchConfig":
        if self.d_sae % self.experts:
            raise ValueError(f"d_sae = {self.d_sae} is no multiple of experts = {self.experts}; change one of them")
        if self.k > (width := self.d_sae // self.experts):
            raise ValueError(f"k = {self.k} is above the {width} latents of one expert; lower k or experts")
        return self


@architecture(SwitchConfig)
class Switch(TopK):
    """p = softmax(sqrt(d_in) (x - b_router) W_router); of the one expert with the largest p_e, the k largest latents:

        f = p_e TopK(ReLU(pre)),    L = ||x - x_hat||_2^2 + beta E sum_e s_e mean(p_e)

    with s_e the share of the batch that expert e gets (Mudide et al. 2024, arXiv 2410.08201). The router learns through
    the factor p_e. Of the encoder's product one of E blocks is computed (`encoder_flops`), so that at equal FLOPs the
    dictionary is about E times as wide. Features that several experts need are learnt several times.

    The authors have beta d_in and no sqrt(d_in) in the router: the same for inputs of mean square 1 per dimension,
    whichever scale they come in. They train GPT-2 small's layer 8: beta = 3, no AuxK, the TopK rate of learning,
    falling over the last fifth; encoders have no bias of their own.
    """

    exportable = False
    scaled = ("b_dec", "b_router")
    cfg: SwitchConfig

    def __init__(self, config: SwitchConfig, d_in: int, generator: torch.Generator) -> None:
        super().__init__(config, d_in, generator)
        router = torch.rand(d_in, config.experts, generator=generator) * 2 - 1
        self.W_router = nn.Parameter(router / d_in**0.5)
        self.b_router = nn.Parameter(torch.zeros(d_in))

    def initialise(self, x: Float[Tensor, "batch d_in"]) -> None:
        super().initialise(x)
        self.b_router.data.copy_(self.b_dec.data)

    def route(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch expert"]:
        return torch.softmax((x - self.b_router) @ self.W_router * self.d_in**0.5, dim=-1)

    def _routed(self, x: Float[Tensor, "batch d_in"], p: Float[Tensor, "batch expert"]) -> Float[Tensor, "batch d_sae"]:
        """The latents: each expert's rows go through its own block of the encoder."""
        largest, expert = p.max(dim=1)
        by_expert = expert.argsort(stable=True)
        counts = torch.bincount(expert, minlength=self.cfg.experts).tolist()
        blocks = torch.arange(self.d_sae, device=x.device).chunk(self.cfg.experts)
        found = []
        for block, rows in zip(blocks, by_expert.split(counts), strict=True):
            pre = self.pre_activations(x.index_select(0, rows), block)
            found.append(strongest(pre * largest.index_select(0, rows)[:, None].to(pre.dtype), self.cfg.k))
        f = found[0].new_zeros(len(x), self.cfg.experts, len(blocks[0]))
        return f.index_put((by_expert, expert[by_expert]), torch.cat(found)).flatten(1)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        rows = x.reshape(-1, self.d_in)
        return self._routed(rows, self.route(rows)).view(*x.shape[:-1], self.d_sae)

    def encode_training(self, step: Step) -> Latents:
        step.kept = self.route(step.x)
        return Latents(self._routed(step.x, step.kept))

    def auxiliary_loss(self, step: Step) -> Float[Tensor, ""]:
        p = step.kept.float()
        share = torch.bincount(p.argmax(dim=1), minlength=self.cfg.experts) / len(p)
        balance = self.cfg.balance_coefficient * self.cfg.experts * (share * p.mean(dim=0)).sum()
        auxk = super().auxiliary_loss(step)
        return balance if auxk is None else balance + auxk

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        super().fold_input_scale(scale)
        self.W_router.mul_(scale)  # p has no units


def encoder_flops(d_in: int, d_sae: int, experts: int = 1) -> int:
    """Of one row, forward: a product and a sum for each weight of the router and of one expert. `experts` = 1 is TopK.

    >>> encoder_flops(768, 24576) / encoder_flops(768, 24576, experts=8)
    7.979220779220779
    """
    return 2 * d_in * (d_sae // experts + (experts if experts > 1 else 0))


def at_width(d_sae: int) -> dict[str, Any]:
    """TopK's learning rate, and eight experts, or as many as have eight latents each."""
    return topk_rate(d_sae) | {"experts": next((e for e in (8, 4) if d_sae % e == 0 and d_sae >= 8 * e), 2)}


SWITCH = {"architecture": "switch", "auxk_coefficient": 0.0}
SOURCE = "Mudide et al. 2024, *Efficient Dictionary Learning with Switch Sparse Autoencoders*, arXiv 2410.08201"
STEEL = Look("#6699cc", "v", (0, (2, 2)))
topk_method("switch", "Switch", SWITCH, STEEL, at_width=at_width, papers=(SOURCE,))
