"""The one exception a user is meant to read."""

from collections.abc import Iterator
from contextlib import contextmanager


class ArtifactError(Exception):
    """What a user can put right, told in one line without a traceback: which field, what is wrong, what to do."""


class ModelLacks(ArtifactError):
    """What a language model does not allow to measure: it is left out with this reason, and the rest is measured."""


def shortened(value: str, most: int = 60) -> str:
    """What a user gave, for a message: its beginning where it is long."""
    return value if len(value) <= most else value[: most - 1] + "…"


def first_line(error: BaseException) -> str:
    """What another library's error says first, with what follows a colon at the end of its first line."""
    lines = str(error).strip().splitlines() or [""]
    return " ".join(line.strip() for line in lines[: 1 + lines[0].endswith(":")])


@contextmanager
def told_as(what: str, fix: str = "") -> Iterator[None]:
    """Whatever goes wrong in another library, whose errors have no common type, is told as `what`; but for memory."""
    try:
        yield
    except (ArtifactError, MemoryError):
        raise
    except Exception as error:
        raise ArtifactError(f"{what} ({type(error).__name__}: {first_line(error)[:200]}){fix}") from error
