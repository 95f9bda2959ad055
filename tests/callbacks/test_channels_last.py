"""Convolutional networks with the channels as the last dimension in memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from torch import nn

from callbacks.channels_last import ChannelsLast
from datamodules import ImageDataset
from methods import PEFTMethod

Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
MakeTrainer = Callable[..., Trainer]
RESNET: dict[str, Any] = {"channels": (8, 8, 16, 16), "stem_width": 8, "zero_init_last": False}


class Look(Callback):
    """Convolutions whose output has another format than channels last."""

    def __init__(self) -> None:
        self.others: set[str] = set()
        self.calls = 0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        for name, module in pl_module.backbone.named_modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda module, args, output, name=name: self.look(name, module, output))

    def look(self, name: str, module: Any, output: torch.Tensor) -> None:
        self.calls += 1
        if not output.is_contiguous(memory_format=torch.channels_last):
            self.others.add(name)


@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
@pytest.mark.parametrize("method", ["full", "ssf", "lora", "gps"])
def test_a_fit_gives_the_same(method: str, build: Build, data: Data, trainer: MakeTrainer) -> None:
    """To rounding; every convolution of a step has the format, also where a method computes its weight anew."""
    deltas = []
    for active in (False, True):
        model, look = build(method, backbone="resnet10t", backbone_args=RESNET, pretrained=False), Look()
        run = trainer(callbacks=[ChannelsLast(active), look], max_steps=3)
        run.fit(model, datamodule=data())
        deltas.append(model.delta_state_dict())
        assert look.calls
        assert bool(look.others) != active
        assert all(parameter.is_contiguous() for parameter in model.parameters())
        assert not any(module._forward_pre_hooks for module in model.modules())
        run.test(model, datamodule=data(), verbose=False)
    for name, tensor in deltas[0].items():
        torch.testing.assert_close(deltas[1][name], tensor, atol=1e-3, rtol=1e-3)


def test_networks_without_convolutions_are_refused(build: Build, data: Data, trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match=r"channels_last: VisionTransformer has no convolutions behind.*leave it out"):
        trainer(callbacks=[ChannelsLast(True)]).fit(build("ssf"), datamodule=data())
    ChannelsLast().check(build("ssf"))


def test_files_are_the_same(build: Build, data: Data, trainer: MakeTrainer, tmp_path: Any) -> None:
    """A checkpoint of such a run loads into a plain one and the other way round."""
    options = {"backbone": "resnet10t", "backbone_args": RESNET, "pretrained": False}
    first = trainer(callbacks=[ChannelsLast(True)], max_epochs=1, enable_checkpointing=False)
    first.fit(build("full", **options), datamodule=data())
    first.save_checkpoint(tmp_path / "first.ckpt")
    for active in (False, True):
        model = build("full", **options)
        run = trainer(callbacks=[ChannelsLast(active)], max_epochs=2)
        run.fit(model, datamodule=data(), ckpt_path=tmp_path / "first.ckpt", weights_only=True)
        assert run.global_step == 12
