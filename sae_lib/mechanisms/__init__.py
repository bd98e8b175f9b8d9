"""What the two papers, and others, add to an SAE; any architecture can use any. A file that is added here is found. The
order of import is that in which mechanisms act, and methods stand in tables."""

from importlib import import_module
from pkgutil import iter_modules

from sae_lib.autoencoders.method import METHODS, methods
from sae_lib.mechanisms.base import MECHANISMS, Mechanism, build_mechanisms

__all__ = ["MECHANISMS", "METHODS", "Mechanism", "build_mechanisms", "methods"]

_FIRST = ("temporal_penalty", "gradient_scaling", "resampling", "adaptive_temporal_masking", "soft_frozen")
for _name in (*_FIRST, *(module.name for module in iter_modules(__path__))):
    import_module(f"{__name__}.{_name}")
