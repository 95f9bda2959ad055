"""Small models that are registered with timm."""

import timm

from commands.matrix import small_models


def test_a_second_copy() -> None:
    """timm changes the arguments of some networks while it builds them."""
    for name in timm.list_models(module=small_models.__name__.rpartition(".")[2]):
        first, second = timm.create_model(name, num_classes=3), timm.create_model(name, num_classes=3)
        assert first.state_dict().keys() == second.state_dict().keys()
