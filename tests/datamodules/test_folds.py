"""Folds of a cross validation."""

from collections.abc import Callable

import pytest
import torch
from lightning import Trainer

from datamodules import ImageDataset
from datamodules.folds import check_fold, fold_numbers
from methods import PEFTMethod


def test_each_fold_has_its_share_of_each_class() -> None:
    labels = torch.tensor([0] * 7 + [1] * 12 + [2] * 5)
    numbers = fold_numbers(labels, 5, ["a", "b", "c"])
    assert numbers.bincount().tolist() == [5, 5, 5, 5, 4]
    for k in range(3):
        counts = numbers[labels == k].bincount(minlength=5)
        assert counts.min() >= 1
        assert counts.max() - counts.min() <= 1
    assert torch.equal(numbers, fold_numbers(labels, 5, ["a", "b", "c"]))


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"data.folds=3: class 'b' has 2 images, .* give at most 2 folds"):
        fold_numbers(torch.tensor([0, 0, 0, 1, 1]), 3, ["a", "b"])
    with pytest.raises(ValueError, match=r"data.folds=2: 1 of 2 classes have no training image, first 'b'"):
        fold_numbers(torch.tensor([0, 0]), 2, ["a", "b"])
    for folds, fold in ((None, 0), (5, None), (5, 5), (1, 0)):
        with pytest.raises(ValueError, match=f"folds={folds}, fold={fold}: expected at least 2 folds"):
            check_fold(folds, fold)


def test_images_of_a_folder(
    data: Callable[..., ImageDataset], build: Callable[..., PEFTMethod], trainer: Callable[..., Trainer]
) -> None:
    """Every training image is tested by one fold; there is no validation split, so that the last epoch counts."""
    tested = []
    for fold in range(4):
        module = data(folds=4, fold=fold)
        train, test = module.samples("train"), module.samples("test")
        assert train is not None
        assert test is not None
        assert (len(train), len(test)) == (18, 6)
        assert test.labels.bincount().tolist() == [2, 2, 2]
        assert module.samples("val") is None
        assert module.kept_epoch == "last epoch"
        names = {test.name(i) for i in range(6)}
        assert not names & {train.name(i) for i in range(18)}
        tested += names
    assert len(set(tested)) == 24
    trainer().test(build("linear_probe"), datamodule=module, verbose=False)
    assert module.description()["fold"] == "3 of 4"
