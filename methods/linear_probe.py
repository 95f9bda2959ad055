"""Linear probe."""

from methods.base import PEFTMethod


class LinearProbe(PEFTMethod):
    """Linear probe: the backbone is frozen and only the new classifier trains."""
