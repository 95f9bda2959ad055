"""The precision of matrix products is set while the trainer runs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from callbacks.matmul_precision import MatmulPrecision
from datamodules import ImageDataset
from methods import PEFTMethod

Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
MakeTrainer = Callable[..., Trainer]


class Look(Callback):
    seen = ""

    def on_train_batch_end(self, *_: Any) -> None:
        self.seen = torch.get_float32_matmul_precision()


def test_set_and_set_back(build: Build, data: Data, trainer: MakeTrainer) -> None:
    look = Look()
    trainer(callbacks=[MatmulPrecision("high"), look], max_steps=1).fit(build("ssf"), datamodule=data())
    assert look.seen == "high"
    assert torch.get_float32_matmul_precision() == "highest"


def test_set_back_after_a_failure(build: Build, data: Data, trainer: MakeTrainer) -> None:
    model = build("ssf")
    model.losses = None  # type: ignore[assignment,method-assign]
    with pytest.raises(TypeError):
        trainer(callbacks=[MatmulPrecision("medium")]).fit(model, datamodule=data())
    assert torch.get_float32_matmul_precision() == "highest"
