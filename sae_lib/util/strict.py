"""What every configuration is made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
"""An integer that every generator here takes: PyTorch's, NumPy's and scikit-learn's."""


class Strict(BaseModel):
    """A model that refuses keys it does not know and cannot be changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
