"""Labels and classes."""

import pytest

from datamodules.loading import BalancedSampler
from tests.support.pictures import Listed, pictures


@pytest.mark.parametrize("label", [-1, 3, 77])
def test_label_outside_the_classes(label: int) -> None:
    samples = pictures()
    samples.labels[[2, 5]] = label
    with pytest.raises(ValueError, match=rf"val: image 2 has label {label}, outside 0 to 2 \(2 such samples\)"):
        Listed().dataset("val", samples)


def test_class_without_training_images(capsys: pytest.CaptureFixture[str]) -> None:
    Listed(num_classes=5, batch_size=2).dataset("train", pictures())
    assert "2 of 5 classes have no training image" in capsys.readouterr().out


def test_balanced_draws_need_images_of_each_class() -> None:
    with pytest.raises(ValueError, match=r"data\.sampling=balanced: 2 of 5 classes have no training image, first"):
        Listed(num_classes=5, batch_size=2, sampling="balanced").dataset("train", pictures())
    module = Listed({"train": pictures(6)}, batch_size=2, sampling="balanced")
    module.splits["train"] = module.dataset("train", module.samples("train"))
    assert isinstance(module.train_dataloader().sampler, BalancedSampler)
    assert module.varies() == []  # draws leave the items as they are, so that features can be cached


def test_lists_are_the_splits() -> None:
    module = Listed({"train": pictures(6), "test": pictures(4)})
    assert module.published_sizes == {"train": None, "test": None}
    assert len(module.samples_of("test")) == 4
