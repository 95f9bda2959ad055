"""Base of methods that are computed from the features of all training images, without a gradient."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from backbones.evaluating import evaluating
from callbacks.ema import EMA
from lightning_modules.batch import Batch, Features
from lightning_modules.run import callbacks_of
from lightning_modules.task import Task
from lightning_modules.timm_head import TimmHead
from methods.core.frozen import FrozenBackbone


class ClosedForm(FrozenBackbone):
    """A method whose fit is one pass over the training images, as they are in a test; a subclass gives ``compute``."""

    one_pass = True
    scales_over_widths = False
    precisions = ("32-true", "bf16-mixed", "bf16-true", "16-true", "64-true")  # 16-mixed needs gradients to scale

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.automatic_optimization = False
        self.read: list[tuple[Tensor, Tensor, Tensor]] = []  # features, classes and validity of the batches so far
        for name in ("init_from", "head_batch_norm"):
            if self.hparams.get(name):
                raise ValueError(
                    f"{name}: {self.method_name()} is computed from the training images alone; leave it out"
                )

    @classmethod
    def refusal(cls, task: type[Task]) -> str:
        if task.targets == "labels" and task.unit == "image" and issubclass(task, TimmHead):
            return super().refusal(task)
        return f"{cls.method_name()} compares features of images of known classes, and here are none: use linear_probe"

    @abstractmethod
    def compute(self, features: Tensor, labels: Tensor) -> None:
        """Compute the classifier.

        Args:
            features: Features (N, C) of all training images, fp32.
            labels: Their classes (N,).
        """

    def adapt_before_data(self) -> None:
        if "+" in self.method_name():
            raise ValueError(
                f"{self.method_name()}: a method that is computed in one pass stands alone; give one of them"
            )
        super().adapt_before_data()
        self.check_features()

    def check_features(self) -> None:
        """Refuse a backbone whose features are not one vector for each image.

        Raises:
            ValueError: With the backbone.
        """
        try:
            self.frozen_layers()
        except ValueError as error:
            raise ValueError(f"{self.method_name()}: {error}; use linear_probe or another backbone") from error

    # the fit

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage != "fit":
            return
        if any(isinstance(c, EMA) and c.decay is not None for c in callbacks_of(self.trainer)):
            raise ValueError(f"ema.decay averages over steps, and {self.method_name()} has none; leave it out")
        self.trainer.fit_loop.max_epochs = 1
        self.trainer.check_val_every_n_epoch = 1

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.read = []

    @torch.no_grad()
    def training_step(self, batch: Batch, batch_idx: int) -> None:
        # in the place of the step of all tasks, because no loss is minimised
        with evaluating(self), self.mixed_dtypes():
            inputs = batch.inputs
            (features,) = inputs.tensors if isinstance(inputs, Features) else self.frozen_features(inputs)
        self.read.append((features.float(), batch.targets, batch.valid))
        if self.trainer.is_last_batch:
            self.compute(*self.gathered())
            optimizer: Any = self.optimizers()
            optimizer.step()  # without a gradient it changes nothing; checkpoints need a step to be counted

    def gathered(self) -> tuple[Tensor, Tensor]:
        """Features (N, C) and classes (N,) that all ranks have read."""
        parts = [torch.cat(part) for part in zip(*self.read, strict=True)]
        self.read = []
        # all ranks have equally many rows, because loaders pad them with rows that are not valid
        every: list[Any] = [self.all_gather(part) for part in parts]
        features, labels, valid = (e.reshape(-1, *p.shape[1:]) for e, p in zip(every, parts, strict=True))
        return features[valid.bool()], labels[valid.bool()]
