"""Contract of a task: a backbone with a head, a loss and metrics.

A task depends on Lightning and one backbone library, but not on methods, file formats or commands. A task implements
the verbs. A method overrides ``features`` or adds terms to ``losses``. No class overrides a step.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from backbones.inject import Backbone
from lightning_modules.batch import Batch
from lightning_modules.optim.optimized import Optimized
from lightning_modules.run import datamodule_of
from lightning_modules.seed import seed_epoch

Targets = Literal["labels", "masks", "tags", "numbers", "objects", "tokens", "noise"]
"""What a sample is paired with: one class, a class of each pixel, any number of classes, numbers, objects, the tokens
that follow, or noise."""


class Headline(NamedTuple):
    """The number that a task is judged by: ``val/<name>`` is monitored, ``test/<name>`` is reported.

    Args:
        name: Name of the metric, such as ``box_map``.
        higher_is_better: Whether a larger value is better.
        label: Name in tables and on axes, with its unit.
        scale: Factor of the shown value; 100 for a share that is shown as percent.
    """

    name: str
    higher_is_better: bool
    label: str
    scale: float = 1.0

    @property
    def mode(self) -> Literal["max", "min"]:
        """Direction for Lightning's checkpoint and early stopping."""
        return "max" if self.higher_is_better else "min"


class Task(Optimized, ABC):
    """A backbone with a head, a loss and metrics. A subclass implements the verbs."""

    headline: Headline  # of the class, unless an option chooses it
    unit: ClassVar[str] = "image"  # name of one sample
    speed_unit: ClassVar[str] = ""  # of what ``amount`` counts; by default samples
    links: ClassVar[dict[str, str]] = {}  # option -> attribute of the datamodule that gives its value
    targets: ClassVar[Targets] = "labels"
    one_pass: ClassVar[bool] = False  # whether a fit reads each training sample once, as it is in a test
    dense: ClassVar[bool] = False  # whether the head reads maps of an image, and not one feature
    necks: ClassVar[tuple[str, ...]] = ()  # names among ``heads`` that are counted as the neck
    backbone: Backbone

    def init_metrics(self) -> None:
        """Create the metrics of evaluation; a task calls this in its ``__init__``, after ``build``."""
        self.part_metrics: Any = nn.ModuleDict()  # headline metric of each part of a test set that has several parts
        self.val_metrics = self.metrics().clone(prefix="val/")
        self.test_metrics = self.metrics().clone(prefix="test/")

    @abstractmethod
    def build(self) -> None:
        """Build a new ``self.backbone``, and a head inside or beside it."""

    @abstractmethod
    def heads(self) -> dict[str, nn.Module]:
        """Modules that train in full and are counted apart, by name inside this module (``backbone.head``)."""

    def features(self, inputs: Any) -> Any:
        """Features of the backbone, (B, N, C) or (B, C, H, W). A method can override this."""
        return self.backbone.forward_features(inputs)

    @abstractmethod
    def predict_from(self, features: Any) -> Any:
        """Outputs of the head for features."""

    def resize_head(self, width: int, batch_norm: bool = False) -> None:
        """Build a new head for features (B, width), with a BatchNorm without weights before it if ``batch_norm``.

        Raises:
            TypeError: If the head of this task cannot change its width.
        """
        raise TypeError(f"the head of {type(self).__name__} cannot change its width to {width}")

    def read_pyramid(self, widths: list[int]) -> None:
        """Build a new head for maps of strides 4, 8, 16 and 32, with ``widths`` channels, that a method computes.

        Raises:
            TypeError: If the head of this task reads no maps.
        """
        raise TypeError(f"the head of {type(self).__name__} reads no maps")

    def augment(self, batch: Batch) -> Batch:
        """Augment a training batch on its device, for example by mixup."""
        return batch

    @abstractmethod
    def losses(self, outputs: Any, targets: Any) -> dict[str, Tensor]:
        """Named terms of the training loss, scalars. Their sum is minimised, and each is logged."""

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """Metrics of one evaluation, including the headline."""

    @abstractmethod
    def update(self, metrics: MetricCollection, outputs: Any, batch: Batch) -> None:
        """Add the outputs of a batch to metrics."""

    def infer(self, batch: Batch) -> Any:
        """Outputs for a batch without its targets, by one or several passes of the model."""
        return self(batch.inputs)

    def passes(self, batch: Batch) -> int:
        """Number of passes of the model over each sample in ``infer``, such as over the views of a clip."""
        return 1

    def amount(self, batch: Batch) -> int | Tensor:
        """Number of samples of a batch, or of their parts by which speed is counted; a tensor if a device knows it."""
        return batch.size

    def logits(self, outputs: Any) -> Tensor:
        """Logits (B, K, ...) of K classes among outputs, for methods that compare two passes."""
        return outputs

    def predictions(self, outputs: Any) -> Any:
        """Predictions for the prediction writer, such as class probabilities."""
        return outputs

    @abstractmethod
    def example_batch(self) -> Batch:
        """A batch of one sample on this module's device, for counting FLOPs and for checks."""

    def example_outputs(self) -> Any:
        """Outputs of the whole model for ``example_batch``."""
        return self(self.example_batch().inputs)

    def identity(self) -> dict[str, Any]:
        """Plain data that must be equal for a checkpoint and its data, such as the names of the classes."""
        return {}

    def adopt(self, identity: dict[str, Any]) -> None:
        """Use the identity of a checkpoint.

        Raises:
            ValueError: If it differs from the identity of this module's data.
        """

    def export(self, backbone: nn.Module, folder: Path) -> None:
        """Write a plain backbone, with a head that lies inside it, into a folder, in the form of its library.

        Raises:
            TypeError: If this task has no such form.
        """
        raise TypeError(f"{type(self).__name__} has no form of its library for a plain model")

    def finish_merged(self, backbone: nn.Module) -> None:
        """Change the head of a merged backbone in place, so that its outputs are those of this task."""

    def loss_key(self) -> str:
        """Settings that change the loss; part of the key of a score cache."""
        return ""

    def forward(self, inputs: Any) -> Any:
        """Outputs of the model for inputs with B rows."""
        with self.mixed_dtypes():
            return self.predict_from(self.features(inputs))

    def mixed_dtypes(self) -> AbstractContextManager[Any]:
        """Autocast for ``bf16-true`` and ``16-true``, because trained tensors are fp32 and frozen tensors are not."""
        if self.dtype in (torch.bfloat16, torch.float16):
            return torch.autocast(self.device.type, self.dtype)
        return nullcontext()  # not autocast(enabled=False), which would disable the autocast of bf16-mixed

    @property
    def head_names(self) -> list[str]:
        """Names of the heads inside the backbone, without the prefix ``backbone.``."""
        return [name.removeprefix("backbone.") for name in self.heads() if name.startswith("backbone.")]

    @property
    def head_prefixes(self) -> tuple[str, ...]:
        """Prefixes of the names of parameters and buffers of the heads, such as ``backbone.head.``."""
        return tuple(f"{head}." for head in self.heads())

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Terms of the loss of a batch. A method that runs the model more than once overrides this."""
        batch = self.augment(batch)
        return self.losses(self(batch.inputs), batch.targets)

    def loss(self, batch: Batch) -> Tensor:
        """Loss of a batch, a scalar."""
        return total(self.terms(batch))

    def evaluate(self, batch: Batch) -> Any:
        """Outputs for a batch of a validation or test set."""
        return self.infer(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        loss = total(terms := self.terms(batch))
        if len(terms) > 1:
            self.log_dict({f"train/{name}": term.detach() for name, term in terms.items()})
        # a GPU waits for a number of the progress bar, even if there is no bar
        self.log("train/loss", loss.detach(), prog_bar=self.trainer.progress_bar_callback is not None)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.update(self.val_metrics, self.evaluate(batch), batch)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        outputs = self.evaluate(batch)
        self.update(self.test_metrics, outputs, batch)
        if self.part_metrics:
            self.update([*self.part_metrics.values()][dataloader_idx], outputs, batch)
        return {"outputs": outputs}  # for callbacks

    def predict_step(self, batch: Batch, batch_idx: int) -> Any:
        return self.predictions(self.infer(batch))

    def setup(self, stage: str) -> None:
        name, parts = self.headline.name, getattr(datamodule_of(self.trainer), "test_names", [])
        self.part_metrics = nn.ModuleDict({part: MetricCollection({name: self.metrics()[name]}) for part in parts})

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.val_metrics.compute(), prog_bar=True, sync_dist=True)
        self.val_metrics.reset()

    def on_test_epoch_end(self) -> None:
        self.log_dict(self.test_metrics.compute(), sync_dist=True)
        self.test_metrics.reset()
        scores = {name: float(part.compute()[self.headline.name]) for name, part in self.part_metrics.items()}
        if scores:
            scores |= datamodule_of(self.trainer).summary(scores)
            self.log_dict({f"test/{name}": score for name, score in scores.items()}, sync_dist=True)

    def on_train_epoch_start(self) -> None:
        seed_epoch(self.current_epoch, self.global_rank)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["identity"] = self.identity()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.adopt(checkpoint.get("identity") or {})


def total(terms: dict[str, Tensor]) -> Tensor:
    """Sum of the terms of a loss, a scalar."""
    values = list(terms.values())
    return values[0] if len(values) == 1 else torch.stack(values).sum()
