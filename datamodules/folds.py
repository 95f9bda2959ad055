"""Folds of a cross validation."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_modules.class_losses import class_counts

if TYPE_CHECKING:
    import datasets  # imported by its users, because the import takes a second that `--help` can do without

SEED = 0  # of the cut, which is the same for every run


def check_fold(folds: int | None, fold: int | None) -> None:
    """Refuse a number of folds without a fold, and a fold that there is not.

    Raises:
        ValueError: With both numbers.
    """
    if folds is None and fold is None:
        return
    if folds is None or fold is None or folds < 2 or not 0 <= fold < folds:
        raise ValueError(
            f"folds={folds}, fold={fold}: expected at least 2 folds, and a fold from 0 to one less than their number"
        )


def fold_numbers(labels: Tensor, folds: int, names: list[str]) -> Tensor:
    """Number of the fold of each sample (N,): equal shares of each class, and folds of equal size but for one sample.

    Args:
        labels: Class of each sample (N,).
        folds: Number of folds.
        names: Names of the classes.

    Raises:
        ValueError: If a class has fewer samples than there are folds, because a fold would be without it.
    """
    counts = class_counts(labels[labels >= 0], len(names), names, f"data.folds={folds}")
    fewest, place = counts.min(0)
    if fewest < folds:
        raise ValueError(
            f"data.folds={folds}: class {names[place]!r} has {fewest} images, so that a fold has none of it; give at "
            f"most {fewest} folds, or more images"
        )
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SEED))
    order = order[labels[order].argsort(stable=True)]  # class by class
    numbers = torch.empty_like(order)
    numbers[order] = torch.arange(len(order)) % folds
    return numbers


def cut(table: "datasets.Dataset", label_column: str, folds: int, fold: int) -> "dict[str, datasets.Dataset]":
    """Cut a table of images with labels into the fold that is tested, ``test``, and the other ones, ``train``.

    Raises:
        ValueError: If a class has fewer images than there are folds.
    """
    labels = torch.tensor([-1 if label is None else label for label in table[label_column]])  # as ``Rows`` has them
    numbers = fold_numbers(labels, folds, list(table.features[label_column].names))
    parts = {"train": numbers.ne(fold), "test": numbers.eq(fold)}
    return {name: table.select(part.nonzero().flatten().tolist()) for name, part in parts.items()}
