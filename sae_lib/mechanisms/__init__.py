"""What the two papers add to an SAE. Each is a small object with state; any architecture can use any.

A file that is added here is found. The order of import is that in which mechanisms act, and methods stand in tables.
"""

from importlib import import_module
from pkgutil import iter_modules

from sae_lib.autoencoders.method import METHODS, methods
from sae_lib.mechanisms.base import MECHANISMS, Mechanism, build_mechanisms

# isort: off
from sae_lib.mechanisms import temporal_penalty, gradient_scaling, resampling, adaptive_temporal_masking, soft_frozen
# isort: on

__all__ = [
    "MECHANISMS",
    "METHODS",
    "Mechanism",
    "adaptive_temporal_masking",
    "build_mechanisms",
    "gradient_scaling",
    "methods",
    "resampling",
    "soft_frozen",
    "temporal_penalty",
]

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)
