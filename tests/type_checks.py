"""The run-time type checker of the tests: beartype, where an int may stand for a float, as for mypy."""

from beartype import BeartypeConf, beartype

numeric_tower = beartype(conf=BeartypeConf(is_pep484_tower=True))
