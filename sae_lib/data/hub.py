"""The Hugging Face hub: which commit of what is read (pinned in `hub.yaml`), and what its refusals mean."""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sae_lib.util.errors import ArtifactError, first_line

PINS = Path(__file__).with_suffix(".yaml")
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
REFUSED = (401, 403)
PAGE = "https://huggingface.co"


class Pin(NamedTuple):
    """One entry of `hub.yaml`, which says what its fields are."""

    revision: str | None
    licence: str
    gated: bool
    config: Mapping[str, Any] = {}


_pinned = yaml.safe_load(PINS.read_text(encoding="utf8"))
MODELS, DATASETS = ({name: Pin(**pin) for name, pin in _pinned[kind].items()} for kind in ("models", "datasets"))


class Source(NamedTuple):
    """Pins, and for messages: the fields that name a repository and its commit, its address, what to do without it."""

    pins: Mapping[str, Pin]
    name: str
    revision: str
    page: str
    instead: str

    def read_revision(self, name: str | None, given: str | None = None) -> str | None:
        """The revision that is read: the one given, or else that of the pin."""
        pin = self.pins.get(name or "")
        return given or (pin.revision if pin else None)


MODEL = Source(MODELS, "model.name", "model.revision", PAGE, "name a folder, or use the profile pocket")
CORPUS, PROBING = (
    Source(DATASETS, f"{of}.{name}", f"{of}.{commit}", f"{PAGE}/datasets", f"set {of}.source to documentation or files")
    for of, name, commit in (("corpus", "name", "revision"), ("probing", "datasets", "revisions"))
)


def explain(error: BaseException, name: str, revision: str | None, source: Source) -> str | None:
    """What went wrong with reading a repository of the hub and what to do, in one line, by the error and its causes;
    None for one that neither the hub, the network nor the hub's cache has to do with."""
    from huggingface_hub import constants, get_token

    chain: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in chain:  # which may be a circle
        chain.append(each)
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    kinds = {kind.__name__ for each in chain for kind in type(each).__mro__}
    # datasets drops the causes of some of its errors; their text is all that is left.
    lost = " ".join(str(each) for each in chain if type(each).__name__ == "DatasetNotFoundError")
    page, asked = f"{source.page}/{name}", f"{name} at revision {revision or 'main'}"
    pin = source.pins.get(name)
    codes = (getattr(getattr(each, "response", None), "status_code", None) for each in chain)
    status = next((code for code in codes if isinstance(code, int) and code >= 400), None)
    if "GatedRepoError" in kinds or "gated dataset" in lost or (pin and pin.gated and status in REFUSED):
        token = "use a token of the account that accepted them, with access to gated repositories (HF_TOKEN)"
        log_in = "run `hf auth login` or set HF_TOKEN"
        return f"{source.name}: {name} is gated: accept its terms at {page}, then {token if get_token() else log_in}"
    if "RevisionNotFoundError" in kinds or "Revision " in lost:
        pinned = " (pinned in sae_lib/data/hub.yaml)" if pin and revision == pin.revision else ""
        has = f"{name} has no revision {revision}{pinned} on the hub; {page}/commits/main lists them"
        return f"{source.revision}: {has}"
    if {"RepositoryNotFoundError", "HFValidationError"} & kinds or "doesn't exist on the Hub" in lost:
        kind = "neither a local folder nor a model" if source is MODEL else "no dataset"
        fix = "check the spelling, or set HF_TOKEN if it is private"
        return f"{source.name}: {name} is {kind} on the hub that you may read; {fix}"
    if status is not None:
        says = " ".join(str(error).split())
        return f"{source.name}: the hub answers {status} for {name} ({says}); see {page}, or {source.instead}"
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        what = f"{asked} cannot be written to the hub's cache {constants.HF_HUB_CACHE} ({error.strerror})"
        return f"{source.name}: {what}; set HF_HOME to a folder with room that you may write"
    unreachable = {"HTTPError", "EntryNotFoundError", "ConnectionError", "TimeoutError"}
    if not unreachable & kinds and not any("LocalEntryNotFoundError" in str(each) for each in chain):
        return None
    connect = "unset HF_HUB_OFFLINE" if constants.is_offline_mode() else "connect"
    what = f"{asked} is not wholly in the hub's cache and the hub cannot be reached"
    return f"{source.name}: {what}; {connect}, or {source.instead}"


@contextmanager
def reading(name: str, revision: str | None, source: Source) -> Iterator[None]:
    """Whatever goes wrong with reading a repository is told in one line (ArtifactError); but for faults of the code,
    where no other library's code is run on what is read, as with a model."""
    try:
        yield
    except ArtifactError:
        raise
    except Exception as error:
        told = explain(error, name, revision, source)
        if told is None and source is MODEL:
            raise
        kind = f"{type(error).__name__}: {first_line(error)}"
        cannot = f"{source.name}: cannot read '{name}' ({kind}); check the network and {source.revision}"
        raise ArtifactError(told or f"{cannot}, or {source.instead}") from error
