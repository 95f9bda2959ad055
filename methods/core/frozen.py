"""Base of methods inside whose backbone nothing trains."""

from callbacks.features.reusable import ReusableFeatures
from methods.core.base import PEFTMethod


class FrozenBackbone(PEFTMethod, ReusableFeatures):
    """A method that reads features of a frozen backbone, so that they can be cached."""
