"""Dataset of cached features, without a model."""

from typing import Any

import torch

from callbacks.features.dataset import FrozenFeatures
from lightning_modules.batch import Features
from tests.support.pictures import Listed, pictures


def cached(widen: bool = False) -> tuple[Listed, FrozenFeatures]:
    module: Any = Listed(batch_size=4, drop_last=False, num_workers=2)
    plain = module.dataset("train", pictures(6))
    module.splits["train"] = plain
    features = FrozenFeatures(plain, module.collate, widen)
    features.tensors = (torch.arange(12.0).view(6, 2).bfloat16(), torch.arange(6.0))
    module.replace("train", features)
    return module, features


def test_batches_are_rows_with_their_targets() -> None:
    module, features = cached()
    loader = module.train_dataloader()
    assert loader.num_workers == 0
    batches = list(loader)
    assert [batch.size for batch in batches] == [4, 2]
    for batch in batches:
        assert isinstance(batch.inputs, Features)
        values, rows = batch.inputs.tensors
        assert torch.equal(batch.targets, rows.long() % 3)
        assert torch.equal(values, features.tensors[0][rows.long()])
        assert module.on_after_batch_transfer(batch, 0) is batch, "features are normalised"


def test_rounded_features_become_fp32_again() -> None:
    for widen, dtype in {False: torch.bfloat16, True: torch.float32}.items():
        _, features = cached(widen)
        padded = (*features[0], False)
        batch = features.gather([(*features[5], True), padded])
        values, _ = batch.inputs.tensors
        assert values.dtype is dtype
        assert values.tolist() == [[10.0, 11.0], [0.0, 1.0]]
        assert batch.targets.tolist() == [2, 0]
        assert batch.valid.tolist() == [True, False]
