"""Every place the artifact reads or writes, from one root: notebooks run in one folder or another."""

import os
from dataclasses import dataclass
from pathlib import Path

from sae_lib.util.errors import ArtifactError

ROOT = Path(__file__).resolve().parents[2]
LOCK_FILE = ROOT / "requirements.lock"
NOTEBOOKS = ROOT / "notebooks"
OUTPUT_VARIABLE = "SAE_LIB_OUTPUT"
# Of a notebook that is run by hand or under nbval; `make paper` names the profile itself.
PROFILE_VARIABLE = "SAE_LIB_PROFILE"

# Profiles whose figures and tables are committed with the repository, and where.
COMMITTED = {"pocket": ROOT / "figures"} | {name: ROOT / "figures" / name for name in ("smollm2", "field")}


def output_root() -> Path:
    """Where all profiles write: the folder that `SAE_LIB_OUTPUT` names, or `build`. Raises as `output_folder`."""
    named = _redirected()
    return output_folder(named, OUTPUT_VARIABLE) if named else ROOT / "build"


def _redirected() -> str:
    return os.environ.get(OUTPUT_VARIABLE, "").strip()


def output_folder(named: Path | str, field: str) -> Path:
    """The folder that a user names for what is written; it need not be there yet. Raises ArtifactError, which names the
    field: no folder can have that name, such as where a file has it or lies above it."""
    try:
        folder = Path(named).expanduser().resolve()
        # Asks the system, which refuses a name that is too long.
        there = next(place for place in (folder, *folder.parents) if place.exists())
        reason = None if there.is_dir() else f"{there} is no folder"
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    if reason:
        raise ArtifactError(f"{field}: '{str(named)[:80]}' cannot be a folder ({reason}); name a folder of yours")
    return folder


def corpus_cache() -> Path:
    """Where the packaged corpus is kept, for all profiles."""
    return output_root() / "corpus"


@dataclass(unsafe_hash=True)
class Paths:
    """The folders of one profile, each made by whoever writes into it."""

    profile: str

    def __post_init__(self) -> None:
        root = output_root() / self.profile
        self.root = root
        self.tokens = root / "tokens"  # packed contexts of token ids and their manifest
        self.store = root / "store"  # shards of residual-stream activations
        self.runs = root / "runs"  # one folder for each trained SAE
        self.reference = root / "reference"  # what metrics compute once: clean losses, probes, held-out activations
        self.results = root / "results"  # tidy tables and the manifest of each notebook
        self.notebooks = root / "notebooks"  # executed copies of the notebooks that finished
        self.failed = root / "failed"  # and of those that stopped with an error
        self.logs = root / "logs"
        self.keys = root / "keys"  # what each finished notebook was made from
        # Figures and tables; the committed folder for profiles that have one, if output is not redirected.
        self.figures = root / "figures" if _redirected() else COMMITTED.get(self.profile, root / "figures")

    @property
    def known_results(self) -> Path:
        """The tables of the last run here, or else those committed with the figures."""
        return self.results if any(self.results.glob("*.parquet")) else self.figures / "results"


def verdicts_file(profile: str) -> Path:
    """The committed verdicts of a profile, which a run is compared with."""
    return ROOT / "figures" / f"verdicts_{profile}.json"


def shown(path: Path) -> str:
    """A path as people should read it: relative to the repository where it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
