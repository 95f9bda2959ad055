"""Splits, scoring batches and fingerprints."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datamodules.base import DataModule, Split
from datamodules.samples import Samples
from tests.support.pictures import INPUT, Bytes, Listed, pictures


def test_empty_split() -> None:
    with pytest.raises(ValueError, match="the val split is empty"):
        Listed().dataset("val", Bytes([], []))


def test_batch_larger_than_the_train_split() -> None:
    with pytest.raises(ValueError, match="batch_size=7 is larger than the 6 training images"):
        Listed(batch_size=7).dataset("train", pictures())
    Listed(batch_size=7).dataset("test", pictures())  # evaluation keeps a small last batch
    Listed(batch_size=7, drop_last=False).dataset("train", pictures())


def test_batch_size_below_one() -> None:
    with pytest.raises(ValueError, match="batch_size=0: expected at least 1"):
        Listed(batch_size=0)


@pytest.mark.parametrize(
    "option",
    [
        {"eval_batch_size": -3},
        {"num_workers": -1},
        {"random_erasing": 7.0},
        {"max_corrupt": 7.0},
        {"image_size": 0},
    ],
    ids=str,
)
def test_options_out_of_range(option: dict[str, Any]) -> None:
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"{name}={value}: expected"):
        Listed(**option)


def test_test_split_is_missed_before_a_fit_that_it_follows() -> None:
    module = Listed({split: pictures() for split in ("train", "val")}, batch_size=2)
    module.trainer = SimpleNamespace(lightning_module=SimpleNamespace(input_config=INPUT))  # type: ignore[assignment]
    module.will_test()
    with pytest.raises(ValueError, match="the data have no test split, and test_after_fit asks for one"):
        module.setup("fit")


@pytest.mark.parametrize(("stage", "missing"), [("fit", "train"), ("validate", "val"), ("test", "test")])
def test_missing_split(stage: str, missing: str) -> None:
    module = Listed({split: pictures() for split in ("train", "val", "test") if split != missing}, batch_size=2)
    module.trainer = SimpleNamespace(lightning_module=SimpleNamespace(input_config=INPUT))  # type: ignore[assignment]
    with pytest.raises(ValueError, match=f"the data have no {missing} split"):
        module.setup(stage)
    assert module.validates == (missing != "val")


class Numbers(Samples):
    """Samples that are no images: a number, and its square as the target."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[int, int]:
        if self.numbers[index] < 0:
            raise OSError("negative")
        return self.numbers[index], self.target(index)

    def target(self, index: int) -> int:
        return self.numbers[index] ** 2

    def stored(self, index: int) -> bytes:
        return str(self[index]).encode()

    def name(self, index: int) -> str:
        return f"number {index}"

    def keep(self, indices: list[int]) -> "Numbers":
        return Numbers([self.numbers[index] for index in indices])


class Arithmetic(DataModule):
    """A datamodule without images and classes."""

    def __init__(self, numbers: list[int], add: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.numbers, self.add = Numbers(numbers), add
        self.splits["train"] = self.dataset("train", self.numbers)

    def samples(self, split: Split) -> Numbers | None:
        return self.numbers if split == "train" else None

    def item(self, sample: tuple[int, int]) -> tuple[Any, Any]:
        number, square = sample
        return torch.tensor([float(number + self.add)]), square

    def train_item(self, sample: tuple[int, int]) -> tuple[Any, Any]:
        number, square = self.item(sample)
        return number + 0.5, square

    def item_settings(self) -> tuple[int, ...]:
        return (self.add,)


def test_any_samples_make_batches() -> None:
    module = Arithmetic(list(range(6)), batch_size=4, num_workers=0)
    ((inputs, targets, valid),) = module.train_dataloader()
    assert valid.tolist() == [True] * 4
    assert torch.equal(((inputs - 0.5) ** 2).flatten().long(), targets)
    assert module.description()["samples"] == {"train": 6}
    assert not module.validates
    assert module.kept_epoch == "last epoch"
    assert module.varies() == []


def test_scoring_batches_are_made_by_item() -> None:
    module = Arithmetic(list(range(6)), add=100, batch_size=2)
    (inputs, targets, _), _ = module.score_batches(4)
    assert inputs.flatten().tolist() == [100.0, 101.0, 102.0, 103.0], "not those of train_item"
    assert targets.tolist() == [0, 1, 4, 9]
    with pytest.raises(ValueError, match="Arithmetic has no random views of its samples"):
        next(module.score_batches(4, views=2))
    with pytest.raises(ValueError, match="scoring batches of 7 samples: the train split has only 6"):
        next(module.score_batches(7, drop_last=True))
    with pytest.raises(ValueError, match="number 1 cannot be read: negative"):
        next(Arithmetic([3, -1], batch_size=2).score_batches(2))


def test_scoring_batches_of_images_are_test_images_and_views() -> None:
    module: Any = Listed(batch_size=2, augmentation="rrc")
    module.splits["train"] = module.dataset("train", pictures(6))
    test = Listed(batch_size=2).dataset("test", pictures(6))
    (inputs, targets, _), _ = module.score_batches(4)
    assert all(torch.equal(inputs[index], test[index][0]) for index in range(4))
    assert targets.tolist() == [0, 1, 2, 0]
    (views, targets, valid), _ = module.score_batches(4, views=2)
    assert views.shape == (8, 3, 16, 16)
    assert targets.tolist() == [0, 1, 2, 0]
    assert valid.tolist() == [True] * 4
    assert not torch.equal(views[:4], views[4:])


def test_fingerprints_change_with_samples_and_settings() -> None:
    def both(*args: Any) -> tuple[str, str]:
        module = Arithmetic(*args, batch_size=2)
        return module.fingerprint("train"), module.score_fingerprint()

    first = both([1, 2, 3])
    assert both([1, 2, 3]) == first
    for other in (both([1, 2, 4]), both([2, 1, 3])):
        assert other[0] != first[0]
    for other in (both([1, 2, 3, 4]), both([1, 2, 3], 1)):
        assert not set(other) & set(first)


def test_normalisation_and_labels_are_in_the_fingerprints() -> None:
    def both(samples: Bytes, **options: Any) -> tuple[str, str]:
        module: Any = Listed(batch_size=2, **options)
        module.splits["train"] = module.dataset("train", samples)
        return module.fingerprint("train"), module.score_fingerprint()

    first = both(pictures())
    assert both(pictures(), cache="none", augmentation="pad_crop") == first
    relabelled = pictures()
    relabelled.labels[0] = 1
    for other in (both(pictures(), normalization="none"), both(pictures(), resize="direct"), both(relabelled)):
        assert not set(other) & set(first)
