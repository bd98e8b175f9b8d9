"""What an SAE computes once it is trained, without anything that only training uses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.topk import BatchTopK


@dataclass(frozen=True)
class InferenceForm:
    """The four forms that every SAE of this package has at inference, in float32 on the CPU.

    With u = x W_enc, or (x - b_dec) W_enc where `subtract_b_dec`:

        standard    f = ReLU(u + b_enc)
        topk        the k largest of ReLU(u + b_enc)
        jumprelu    f = ReLU(u + b_enc) where u + b_enc > threshold, else 0
        gated       f = ReLU(exp(r_mag) u + b_mag) where u + b_gate > 0, else 0

    `tensors`: W_enc `[d_in, d_sae]`, W_dec `[d_sae, d_in]`, b_dec `[d_in]`, and of the others, each `[d_sae]`, those
    that the form names.
    """

    architecture: Literal["standard", "topk", "jumprelu", "gated"]
    tensors: dict[str, Tensor]
    subtract_b_dec: bool
    k: int | None = None

    def centred(self, subtract_b_dec: bool) -> InferenceForm:
        """The same SAE with b_dec taken off its input, or not: what that changes goes into the encoder's biases.

        Exact but for rounding. Computed in float64, since b_dec is large beside the biases where the residual stream
        has a large mean.
        """
        if subtract_b_dec == self.subtract_b_dec:
            return self
        sign = 1.0 if subtract_b_dec else -1.0
        shift = sign * (self.tensors["b_dec"].double() @ self.tensors["W_enc"].double())
        moved = {}
        for name, gain in (("b_enc", None), ("b_gate", None), ("b_mag", "r_mag")):
            if name in self.tensors:
                scale = self.tensors[gain].double().exp() if gain else 1.0
                moved[name] = (self.tensors[name].double() + scale * shift).float()
        return replace(self, tensors=self.tensors | moved, subtract_b_dec=subtract_b_dec)

    @property
    def unit_decoder(self) -> bool:
        """Whether every row of W_dec has norm 1, by the tolerance with which dictionary_learning asks."""
        norms = self.tensors["W_dec"].norm(dim=1)
        return torch.allclose(norms, torch.ones_like(norms))


def inference_form(sae: Autoencoder) -> InferenceForm:
    """An SAE as other libraries can hold it.

    BatchTopK and Matryoshka have one threshold and keep what is *at or* above it; a JumpReLU keeps what is above. The
    next smaller float32 makes the two the same for every input.
    """
    tensors = {name: tensor.detach().cpu().float().contiguous() for name, tensor in sae.state_dict().items()}
    if isinstance(sae, BatchTopK):
        tensors["threshold"] = strict_threshold(tensors["threshold"]).expand(sae.d_sae).contiguous()
        return InferenceForm("jumprelu", tensors, sae.cfg.subtract_b_dec)
    architecture = sae.cfg.architecture
    assert architecture != "batchtopk" and architecture != "matryoshka"
    return InferenceForm(architecture, tensors, sae.cfg.subtract_b_dec, sae.cfg.k if architecture == "topk" else None)


def strict_threshold(threshold: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The t for which z > t says the same as z >= threshold, for every float32 z.

    0 stays 0: what it keeps beyond z > 0 is zero already.
    """
    below = torch.nextafter(threshold, torch.full_like(threshold, -torch.inf))
    return torch.where(threshold == 0, threshold, below)
