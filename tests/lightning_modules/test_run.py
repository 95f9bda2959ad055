"""Parts of a trainer."""

from collections.abc import Callable

from lightning import Callback, Trainer

from callbacks.cost import Cost
from datamodules import ImageDataset
from lightning_modules.run import callbacks_of, datamodule_of, writes_files
from methods import PEFTMethod


def test_parts_of_a_run(
    build: Callable[..., PEFTMethod], data: Callable[..., ImageDataset], trainer: Callable[..., Trainer]
) -> None:
    module, cost = data(), Cost()
    run = trainer(callbacks=[cost], max_steps=1)
    assert datamodule_of(run) is None
    run.fit(build("linear_probe"), datamodule=module)
    assert datamodule_of(run) is module
    assert cost in callbacks_of(run)
    assert writes_files(run)
    assert not writes_files(trainer(fast_dev_run=True))
    assert all(isinstance(callback, Callback) for callback in callbacks_of(run))
