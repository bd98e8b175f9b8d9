"""The size of the ground-truth study. No torch."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sae_lib.util.strict import Seed, Strict


class FieldConfig(Strict):
    """Methods on two more toys: children louder than their parents, and more features than latents."""

    methods: tuple[str, ...] = Field(
        ("standard", "gated", "topk", "batchtopk", "matryoshka", "jumprelu", "temporal_sae", "atm"), min_length=1
    )
    challengers: tuple[str, ...] = ()
    """Methods that are to beat those that absorb least: on these toys, and beside those on the tree too."""
    ranked: Literal[False] = False
    """Nothing is left of what this asked for; it stands in the keys of results."""
    steps: int = Field(2000, ge=10)
    """Of an SAE on the synthetic data, as are the next four."""
    batch: int = Field(512, ge=8, multiple_of=8)
    rate: float = Field(0.3, gt=0.0)
    """Learning rate, as a share of that of the smaller toys."""
    l1_levels: tuple[Annotated[float, Field(gt=0.0)], ...] = Field((0.03, 0.1, 0.3), min_length=2)
    k_levels: tuple[Annotated[int, Field(gt=0)], ...] = Field((3, 6, 12), min_length=1)


class ToyConfig(Strict):
    """How many toy SAEs are trained, and for how long."""

    seeds: tuple[Seed, ...] = Field((42, 43, 44, 45, 46), min_length=1)
    sweep_seeds: tuple[Seed, ...] = Field((7, 8), min_length=1)
    """Seeds of the sparsity sweep, from which the matched sparsity is interpolated; no reported seed is one of them."""
    steps: int = Field(500, ge=10)
    batch: int = Field(256, ge=8, multiple_of=8)
    l1_levels: tuple[Annotated[float, Field(gt=0.0)], ...] = Field((0.001, 0.01, 0.03, 0.1, 0.3), min_length=2)
    """Levels of l1_coefficient in the sparsity sweep; ten times as much for the Gated SAE."""
    k_levels: tuple[Annotated[int, Field(gt=0)], ...] = Field((1, 2, 3, 4, 5), min_length=1)
    """Levels of k, and of target_l0 (JumpReLU)."""
    refinements: int = Field(1, ge=0)
    """How often the interpolated coefficient is trained and added to the levels before it is interpolated again."""
    rhos: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], ...] = Field((0.0, 0.5, 0.9, 0.99), min_length=1)
    """Persistence of the root features along a sequence."""
    temporal_coefficient: float = Field(0.05, gt=0.0)
    """lambda_2 at which the temporal penalty matters on a toy; the paper's 1e-4 is always shown beside it."""
    field: FieldConfig | None = None
    """The rest of the field; nothing where it is not set."""

    @field_validator("seeds", "sweep_seeds", "l1_levels", "k_levels", "rhos")
    @classmethod
    def _distinct(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(values)) != len(values):
            raise ValueError(f"values are repeated: {list(values)}")
        return values

    @model_validator(mode="after")
    def _seeds_apart(self) -> "ToyConfig":
        if both := sorted(set(self.seeds) & set(self.sweep_seeds)):
            raise ValueError(f"sweep_seeds {both} are also in seeds; take others: the sweep chooses the sparsity")
        return self
