"""Costs of each method: its sizes on any backbone, counted on torch's meta device, and its work in a step."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from backbones.shared import shared_backbone
from backbones.timm_models import check_name
from callbacks.measures import SavedBytes, forward_gflops
from commands.methods.cell import select
from lightning_modules.batch import Batch
from lightning_modules.classification import Classification
from methods import METHODS, PEFTMethod, compose


class Costs(NamedTuple):
    """Costs of a method on a backbone.

    Args:
        method: Number of trained parameters without the head.
        head: Number of trained parameters of the head.
        storage: Bytes of an adapter, in packed form if the method has a packed file.
        tensors: Names and sizes of the trained tensors without the head.
        reason: Reason why the costs are not known; otherwise empty.
    """

    method: int = 0
    head: int = 0
    storage: int = 0
    tensors: tuple[tuple[str, int], ...] = ()
    reason: str = ""


def costs(backbone: str, num_classes: int) -> Iterator[tuple[str, Costs]]:
    """Costs of all methods, with the name of each.

    Args:
        backbone: Full timm tag.
        num_classes: Outputs of the classifier.

    Raises:
        ValueError: If timm has no such model.
    """
    check_name(backbone, pretrained=False)
    with shared_backbone(), torch.device("meta"):
        for name, method in METHODS.items():
            yield name, costs_of(method, backbone, num_classes)


def costs_of(method: type[PEFTMethod], backbone: str, num_classes: int) -> Costs:
    """Costs of one method; the default device must be the meta device."""
    try:
        model = compose(method, task=Classification)(backbone=backbone, pretrained=False, num_classes=num_classes)
        model.configure_model()
    except ValueError as error:
        return Costs(reason=str(error) if method.standalone else "stacks on another")
    if not model.adapted:
        return Costs(reason="chosen from data")
    counts = model.parameter_counts()
    trained = ((name.removeprefix("backbone."), p.numel()) for name, p in model.named_parameters() if p.requires_grad)
    heads = tuple(prefix.removeprefix("backbone.") for prefix in model.head_prefixes)
    tensors = tuple((name, size) for name, size in trained if not name.startswith(heads))
    return Costs(counts["method"], counts["head"], model.storage_bytes(), tensors)


class Work(NamedTuple):
    """Measures of one training step.

    Args:
        gflops: GFLOP of the forward pass of one image, multiply-adds counted as two; None if it depends on the image.
        saved: Bytes that autograd keeps between the forward and the backward pass of the batch.
    """

    gflops: float | None
    saved: int


def work(names: str, backbone: str, batch: Batch, **options: Any) -> Work:
    """Measure a step of a method. A method that chooses from data chooses from the batch.

    Args:
        names: Name of a method, or of several joined by ``+``.
        backbone: Full timm tag, or ``local-dir:PATH``.
        batch: Images and their classes.
        options: Options of the method; the others have their defaults.

    Raises:
        ValueError: If the method refuses the backbone or an option.
    """
    cls: Any = compose(*(METHODS[name] for name in names.split("+")), task=Classification)
    model = cls(backbone=backbone, num_classes=int(batch.targets.max()) + 1, **options)
    model.adapt_before_data()
    select(model, batch)
    gflops = None if model.input_dependent else forward_gflops(model)
    model.train()
    with SavedBytes(model) as saved:
        model.loss(batch)
    return Work(gflops, saved.bytes)
