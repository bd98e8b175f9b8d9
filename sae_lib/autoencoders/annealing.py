"""k annealing: an option of the TopK family. k starts high, so that every latent learns, and falls to its value."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from sae_lib.autoencoders.config import SECTIONS, MechanismConfig, SAEConfig
from sae_lib.autoencoders.method import Look, Method, register
from sae_lib.autoencoders.topk import BATCHTOPK, BUSSMANN, TopKConfig, topk_rate


class KAnnealingConfig(MechanismConfig):
    """Section `k_annealing`: k falls linearly from `start` times k to k over the first `share` of the steps,

        k_t = k (start + (1 - start) min(1, t / (share T)))

    In dictionary_learning (`k_anneal_steps`) it falls from d_in to k, in sparsify (`k_decay_steps`) from 10 k, in
    chanind's LISTA-Matryoshka from 60 to 25 over the whole run, which is the default here. A row gets the whole part
    of it (TopK), a batch the whole part of its multiple (BatchTopK).
    """

    start: float = Field(2.4, ge=1.0)
    share: float = Field(1.0, gt=0.0, le=1.0)

    def check(self, config: SAEConfig) -> None:
        if not isinstance(config, TopKConfig) or not config.annealed:
            raise ValueError(f"k_annealing is for the TopK family, not for {config.architecture}; leave it out")
        if self.start * config.k > config.d_sae:
            most = f"{self.start:g} times k = {config.k} is above d_sae = {config.d_sae}"
            raise ValueError(f"k_annealing.start: {most}; lower it or widen the SAE")

    def k_at(self, k: int, time: float) -> float:
        """k after the share `time` of the run."""
        fallen = min(1.0, time / self.share)
        return self.start * k + (k - self.start * k) * fallen if fallen < 1.0 else k


SECTIONS["k_annealing"] = KAnnealingConfig
# A threshold that averages over a thousand steps would be that of the larger k before.
ANNEALED: dict[str, Any] = BATCHTOPK | {"k_annealing": {}, "threshold_momentum": 0.99}
register(
    Method(
        "batchtopk_annealed", "BatchTopK, k annealed", ANNEALED, Look("#b8860b", "d", (0, (4, 1, 1, 1, 1, 1))),
        "field", topk_rate, 1e-2, (BUSSMANN,),
    )
)  # fmt: skip
