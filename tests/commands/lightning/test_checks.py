"""Seeds, accelerators and devices that no run can have."""

from typing import Any

import pytest
import torch
from jsonargparse import Namespace

from commands.lightning.checks import check_options


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("seed_everything", -3, "seed_everything=-3: expected a number from 0 to 4294967295"),
        ("seed_everything", 2**32, "expected a number from 0"),
        ("trainer.devices", "0", "trainer.devices=0: a run needs a device"),
        ("trainer.devices", [], "a run needs a device"),
        ("trainer.devices", "cpu,cuda:0", "trainer.devices=cpu,cuda:0 names cpu, cuda:0; expected a number"),
        ("trainer.devices", [0, "cuda:1"], "names cuda:1; expected a number"),
        ("trainer.devices", "1000000", "trainer.devices=1000000: expected at most 1,024 devices"),
        ("trainer.strategy", "ddp_spawn", "trainer.strategy=ddp_spawn: no process of a run can be copied"),
        ("trainer.accumulate_grad_batches", 0, "trainer.accumulate_grad_batches=0: expected a number above 0"),
        ("trainer.check_val_every_n_epoch", 0, "trainer.check_val_every_n_epoch=0: expected a number above 0"),
        ("trainer.val_check_interval", 0.0, "trainer.val_check_interval=0: expected a number above 0"),
        ("trainer.max_epochs", 0, "trainer.max_epochs=0: expected a number above 0"),
        ("trainer.limit_train_batches", 0.0, "trainer.limit_train_batches=0: expected a number above 0"),
        ("trainer.accelerator", "cpu,gpu", "trainer.accelerator=cpu,gpu: expected one kind of device"),
        ("trainer.accelerator", "gpu", "torch finds no GPU here; expected cpu or auto"),
        ("trainer.accelerator", "cuda", "torch finds no CUDA device here"),
    ],
)
def test_refused(option: str, value: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    options = Namespace()
    options[option] = value
    with pytest.raises(ValueError, match=message):
        check_options(options, "fit")


def test_interpreters_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._dynamo.is_dynamo_supported", lambda: False)
    check_options(Namespace(compile=None), "fit")
    with pytest.raises(
        ValueError, match=r"compile=default: torch \S+ has no torch\.compile for Python 3\.\S+; leave it"
    ):
        check_options(Namespace(compile="default"), "fit")


@pytest.mark.parametrize("devices", ["auto", -1, "-1", 2, "2", "0,1", "[0, 1]", "[0]", [0], None])
@pytest.mark.parametrize("seed", [True, False, 0, 7])
def test_accepted(devices: Any, seed: Any) -> None:
    trainer = Namespace(devices=devices, accelerator="auto")
    check_options(Namespace(seed_everything=seed, trainer=trainer), "fit")


def test_an_evaluation_without_training() -> None:
    check_options(Namespace(trainer=Namespace(max_epochs=0, limit_train_batches=0)), "test")
