"""Base of methods that train nothing inside the backbone."""

from callbacks.features.reusable import ReusableFeatures
from methods.core.base import PEFTMethod


class FrozenBackbone(PEFTMethod, ReusableFeatures):
    """A method over a frozen backbone, whose features can be cached."""
