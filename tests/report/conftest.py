"""Every figure of the tests is drawn in the project's style, and closed afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pytest

from sae_lib.report.figures.style import set_style


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    set_style()
    yield
    plt.close("all")
