"""Child-Tuning."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from tests.conftest import random_tiny
from tests.support import made_up

COUNTS = {"vit_small_patch16_224": 6_388_301}  # from the 70th percentile of 21 294 336 on
IDENTITY: dict[str, Any] | None = {}
scores = made_up.ascending


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.3])
def test_the_quantile_is_numpys(fraction: float, build: Any) -> None:
    model = build("child_tuning", child_fraction=fraction)
    generator = torch.Generator().manual_seed(1)
    made = {"a": torch.rand(40, 3, generator=generator), "b": torch.rand(17, generator=generator).round(decimals=1)}
    cut = np.percentile(np.concatenate([t.numpy().ravel() for t in made.values()]), 100 * (1 - fraction))
    for name, indices in model.select(made).items():
        assert indices.tolist() == np.flatnonzero(made[name].numpy().ravel() >= cut).tolist()


def test_equal_information_is_refused(build: Any) -> None:
    with pytest.raises(ValueError, match=r"child_fraction=0\.3"):
        build("child_tuning").select({"a": torch.zeros(10)})


def test_unchosen_entries_stay(build: Any, data: Any, trainer: Any) -> None:
    """Bit for bit under weight decay, which moves all of them in the authors' code."""
    model = build("child_tuning", weight_decay=0.5, optimizer="adamw", lr=0.1)
    before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    trainer().fit(model, datamodule=data())
    merged, moved = model.merge(), 0
    for name, old in before.items():
        if not name.startswith("head"):
            rest = torch.ones(old.numel(), dtype=torch.bool)
            rest[model.chosen().get(name, torch.tensor([])).long()] = False
            new = merged.get_parameter(name).flatten()
            assert torch.equal(new[rest], old.flatten()[rest]), name
            moved += int((new != old.flatten()).sum())
    chosen = sum(map(len, model.chosen().values()))
    assert moved == pytest.approx(chosen, rel=0.01)
    assert not {"cls_token", "pos_embed", "patch_embed.proj.weight"} & set(model.chosen())


def test_dropped_gradients_keep_their_mean(build: Any) -> None:
    model = build("child_tuning", child_variant="F", child_fraction=0.3)
    model.configure_model()
    assert sum(model.parameter_counts().values()) == sum(p.numel() for p in model.backbone.parameters())
    bias = model.backbone.get_parameter("blocks.0.norm1.bias")
    total, draws = torch.zeros_like(bias), 2000
    for step in range(draws):
        type(model).global_step = step
        bias.grad = torch.ones_like(bias)
        model.on_before_optimizer_step(None)
        assert all(value in (0.0, pytest.approx(1 / 0.3)) for value in bias.grad.tolist())
        total += bias.grad
    torch.testing.assert_close(total / draws, torch.ones_like(bias), atol=0.2, rtol=0)


def test_dropping_does_not_depend_on_the_past(build: Any, data: Any, trainer: Any, tmp_path: Path) -> None:
    """F resumes bit for bit."""

    def fit(folder: str, ckpt_path: Path | None = None) -> dict[str, Tensor]:
        keep = ModelCheckpoint(tmp_path / folder, filename="{epoch}", save_top_k=-1)
        run = trainer(max_epochs=2, limit_train_batches=2, enable_checkpointing=True, callbacks=[keep])
        run.fit(build("child_tuning", child_variant="F"), datamodule=data(), ckpt_path=ckpt_path)
        state: dict[str, Tensor] = torch.load(tmp_path / folder / "epoch=1.ckpt", weights_only=True)["state_dict"]
        return state

    whole = fit("whole")
    torch.manual_seed(99)
    resumed = fit("resumed", tmp_path / "whole" / "epoch=0.ckpt")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_bad_options_are_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=f"child_fraction={fraction}: expected"):
        random_tiny("child_tuning", child_fraction=fraction)
