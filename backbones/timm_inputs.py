"""Sizes and channels that a timm model takes, checked before any image is read."""

import inspect
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
)

from backbones.evaluating import evaluating
from backbones.inject import Backbone

UNKNOWN = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException)
REFUSED = (AssertionError, RuntimeError, ValueError, IndexError, TypeError, ZeroDivisionError)


def check_input_size(
    backbone: Backbone, size: tuple[int, int, int], usual: tuple[int, int, int], several: bool = False
) -> None:
    """Refuse images that a network cannot take, by a forward pass without data and without arithmetic.

    Args:
        backbone: timm model.
        size: Channels, height and width of the images in pixels, (C, H, W).
        usual: Those for which the model was built.
        several: Whether images have several sizes, of which this is one.

    Raises:
        ValueError: If the forward pass fails, with its reason and the options of this model.
    """
    if size == usual:
        return
    dtype = next(backbone.parameters()).dtype
    try:
        with (
            evaluating(backbone),
            torch.random.fork_rng(devices=[]),
            torch.no_grad(),
            FakeTensorMode(allow_non_fake_inputs=True),
        ):
            backbone(torch.zeros(1, *size, dtype=dtype))
    except UNKNOWN:
        return  # the pass depends on values, so that only a real batch can tell
    except REFUSED as error:
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise ValueError(
            f"images of {shown(size)}: {type(backbone).__name__} expects {shown(usual)} ({reason}). "
            f"{remedy(backbone, size, several)}"
        ) from error


def shown(size: tuple[int, int, int]) -> str:
    """Size (C, H, W) for a message."""
    channels, height, width = size
    return f"{channels} x {height} x {width} (channels, height, width)"


def remedy(backbone: Backbone, size: tuple[int, int, int], several: bool) -> str:
    """Options that make images and network fit."""
    known = inspect.signature(type(backbone).__init__).parameters
    height, width = size[1:]
    ways = [] if several else ["leave out --data.image_size"]
    if "img_size" in known and not several:
        ways.append(f"pass --model.backbone_args '{{img_size: [{height}, {width}]}}' alone")
    if "dynamic_img_size" in known:
        ways.append("add --model.backbone_args.dynamic_img_size true")
    if "strict_img_size" in known and several:
        ways.append("add --model.backbone_args.strict_img_size false")
    if not ways:
        return "Use a network for images of any size, such as a ViT, a Swin, a ConvNeXt or a ResNet"
    return f"Either {', or '.join(ways)}" if len(ways) > 1 or not several else ways[0].capitalize()


def check_first_layer(backbone: Backbone, name: str) -> None:
    """Refuse pretrained weights whose first layer timm cannot convert to another number of channels.

    timm leaves such a layer random, and a frozen random layer makes features worthless.

    Raises:
        ValueError: With the number of channels.
    """
    config: dict[str, Any] = getattr(backbone, "pretrained_cfg", None) or {}
    channels, trained = getattr(backbone, "in_chans", 3), (config.get("input_size") or (3,))[0]
    first = config.get("first_conv") or ()
    for layer in map(backbone.get_submodule, [first] if isinstance(first, str) else first):
        convertible = isinstance(layer, nn.Conv2d) and (channels == 1 or layer.in_channels == channels)
        if channels != trained and not convertible:
            raise ValueError(
                f"backbone={name!r} with in_chans={channels}: timm cannot convert its pretrained first layer, a "
                f"{type(layer).__name__} of {trained} channels. Leave out in_chans, or pass --model.pretrained false"
            )
