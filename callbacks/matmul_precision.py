"""Precision of matrix products of fp32 tensors."""

from typing import Literal

import torch
from lightning import Callback, LightningModule, Trainer

Precision = Literal["highest", "high", "medium"]


class MatmulPrecision(Callback):
    """Set the precision of matrix products of fp32 tensors while the trainer runs, because it is a global setting.

    Args:
        precision: ``highest`` (fp32), ``high`` (TF32 on a GPU) or ``medium`` (bf16).
    """

    def __init__(self, precision: Precision = "highest") -> None:
        self.precision = precision
        self.before: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.precision)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.before is not None:
            torch.set_float32_matmul_precision(self.before)
        self.before = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "")
