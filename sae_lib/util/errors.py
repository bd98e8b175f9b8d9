"""The one exception a user is meant to read."""


class ArtifactError(Exception):
    """A mistake in the input or the surroundings, told in one line: which field, what is wrong, what to do.

    Everything the user can put right raises this; command lines print it without a traceback.
    Other exceptions are faults of the code and keep their traceback.
    """


class ModelLacks(ArtifactError):
    """What a language model does not allow to measure: it is left out with this reason, and the rest is measured."""


def first_line(error: BaseException) -> str:
    """What another library's error says first, for a message of one line."""
    return (str(error).strip().splitlines() or [""])[0]
