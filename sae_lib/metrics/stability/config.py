"""The numbers of the stability metrics, by name."""

from pydantic import Field

from sae_lib.util.strict import Strict


class StabilityConfig(Strict):
    """What is read of the language model for stability across contexts and along tokens.

    >>> StabilityConfig(contexts=4).contexts
    4
    """

    words_per_letter: int = Field(default=10, gt=0)
    """At most this many of a letter's evaluated words are read in fresh prompts."""
    contexts: int = Field(default=8, ge=2)
    """Prompts for each of these words, each with examples of its own, from one example up to the number in
    absorption's prompts."""
    min_occurrences: int = Field(default=4, ge=2)
    """An evaluated word counts in running text when it stands there at least so often, as a whole word."""
    max_occurrences: int = Field(default=32, ge=2)
    """The first so many occurrences of a word in running text are used."""
    text_contexts: int = Field(default=128, gt=0)
    """At most this many held-out contexts are read."""
    seed: int = 45
    """Chooses the words and draws the examples of their prompts."""
