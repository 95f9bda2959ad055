"""Early stopping by the headline metric."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from lightning import Trainer

from callbacks.headline_stopping import HeadlineStopping
from datamodules import ImageDataset
from lightning_modules import TASKS
from methods import PEFTMethod


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_metric_and_direction(task: str) -> None:
    headline = TASKS[task].headline
    callback, trainer, model = HeadlineStopping(min_delta=0.1), SimpleNamespace(datamodule=None), SimpleNamespace()
    model.headline = headline
    trainer.check_val_every_n_epoch = trainer.val_check_interval = 1
    callback.setup(trainer, model, "fit")  # type: ignore[arg-type]
    assert (callback.monitor, callback.mode) == (f"val/{headline.name}", headline.mode)
    assert callback.min_delta == (0.1 if headline.higher_is_better else -0.1)


def test_a_fit(
    build: Callable[..., PEFTMethod], data: Callable[..., ImageDataset], trainer: Callable[..., Trainer]
) -> None:
    """A learning rate near 0 changes nothing: the fit ends after the first epoch and one more."""
    run = trainer(max_epochs=9, callbacks=[HeadlineStopping(patience=1)])
    run.fit(build("linear_probe", lr=1e-12), datamodule=data())
    assert run.current_epoch == 2
    with pytest.raises(ValueError, match="early stopping needs val/acc1, and these data have no validation split"):
        trainer(callbacks=[HeadlineStopping()]).fit(build("linear_probe"), datamodule=data(val_split="none"))
