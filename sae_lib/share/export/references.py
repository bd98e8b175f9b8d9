"""What methods compute at inference, and who described them: the words of a model card."""

from __future__ import annotations

FORMULAS = {
    "standard": "f     = ReLU(u)",
    "topk": "f     = the k largest of ReLU(u)",
    "jumprelu": "f     = u where u > threshold, else 0",
    "gated": "f     = ReLU(exp(r_mag) u + b_mag) where u + b_gate > 0, else 0",
}

_STANDARD = (
    "Huben et al. 2024, *Sparse Autoencoders Find Highly Interpretable Features in Language Models*, arXiv 2309.08600"
)
_TEMPORAL = "*TemporalSAE: Stabilizing Neural Features through Adaptive Regularization*, anonymous, under review"
_ATM = (
    "Li and Ren 2025, *Time-Aware Feature Selection: Adaptive Temporal Masking for Stable Sparse Autoencoder "
    "Training*, arXiv 2510.08855"
)
_TOPK = "Gao et al. 2024, *Scaling and evaluating sparse autoencoders*, arXiv 2406.04093"
_BATCHTOPK = "Bussmann et al. 2024, *BatchTopK Sparse Autoencoders*, arXiv 2412.06410"

# Method -> papers.
METHOD_PAPERS: dict[str, tuple[str, ...]] = {
    "standard": (_STANDARD,),
    "paper_standard": (_STANDARD, _TEMPORAL),
    "gated": (
        "Rajamanoharan et al. 2024, *Improving Dictionary Learning with Gated Sparse Autoencoders*, arXiv 2404.16014",
    ),
    "topk": (_TOPK,),
    "batchtopk": (_BATCHTOPK,),
    "matryoshka": (
        "Bussmann et al. 2025, *Learning Multi-Level Features with Matryoshka Sparse Autoencoders*, arXiv 2503.17547",
    ),
    "jumprelu": (
        "Rajamanoharan et al. 2024, *Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse "
        "Autoencoders*, arXiv 2407.14435",
    ),
    "temporal_sae": (_TEMPORAL,),
    "atm": (_ATM,),
    "paper_atm": (_ATM,),
    "dropout": (_STANDARD, _ATM),
}
METRIC_PAPERS = (
    "Chanin et al. 2024, *A is for Absorption: Studying Feature Splitting and Absorption in Sparse Autoencoders*, "
    "arXiv 2409.14507",
    "Karvonen et al. 2025, *SAEBench: A Comprehensive Benchmark for Sparse Autoencoders in Language Model "
    "Interpretability*, arXiv 2503.09532",
)
