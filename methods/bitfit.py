"""BitFit."""

from collections.abc import Iterable

from methods.base import PEFTMethod


class BitFit(PEFTMethod):
    """Bias tuning (Ben Zaken et al., ACL 2022, arXiv:2106.10199; "Bias" in VPT's tables).

    Args:
        bitfit_norm: Whether the biases of normalisation layers train too, as in VPT's tables.
    """

    def __init__(self, bitfit_norm: bool = True, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super().__init__(**kwargs)
        self.bitfit_norm = bitfit_norm

    def trainable_names(self) -> Iterable[str]:
        names = [name for name, _ in self.backbone.named_parameters() if name.endswith("bias")]
        return [name for name in names if self.bitfit_norm or "norm" not in name]
