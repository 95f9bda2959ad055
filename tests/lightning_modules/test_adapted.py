"""Contract between a method and the callbacks."""

import pytest

from lightning_modules.adapted import AdaptedTask
from methods import METHODS, PEFTMethod
from tests.conftest import random_tiny


@pytest.mark.parametrize("method", ["ssf", "linear_probe", "gps"])
def test_contract_is_filled(method: str) -> None:
    """A composed class has every verb that callbacks call, and is adapted once."""
    model = random_tiny(method)
    assert isinstance(model, AdaptedTask)
    assert not model.adapted
    assert not type(model).__abstractmethods__


def test_a_method_alone_is_no_task() -> None:
    assert issubclass(METHODS["ssf"], PEFTMethod)
    with pytest.raises(TypeError, match="abstract"):
        METHODS["ssf"]()
