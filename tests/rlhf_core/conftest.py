"""What the tests of the mathematics share."""

import jaxtyping
import pytest


@pytest.fixture
def no_shape_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """For runs of many small steps: the checks would take most of their time, and draw from Python's generator."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
