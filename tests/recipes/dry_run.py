"""All that a fit decides before its first step, without images and weights."""

import hashlib
import inspect
import json
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from timm import get_pretrained_cfg
from timm.data import resolve_data_config
from torch import Tensor
from torchvision.transforms.v2.functional import _geometry

import datamodules
from datamodules.clips import ClipSample
from datamodules.objects import Objects
from datamodules.samples import ImageSample
from datamodules.videos import Video
from lightning_modules import TASKS
from lightning_modules.optim.optimized import Optimized
from methods import METHODS, compose
from methods.core.selective import Selective
from tests.conftest import BACKBONE
from tests.support.facts import FACTS

Options = dict[str, Any]
STAND_IN: Options = {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 12, "num_heads": 12}
"""A narrow ViT whose parameters have the names of ViT-B."""
STAND_IN_OF_SAM: Options = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2, "window_size": 2}
STAND_IN_OF_SAM |= {"neck_chans": 32}
SCHEDULE = inspect.signature(Optimized.__init__).parameters


def of_group(group: str, options: Options) -> Options:
    """Options of ``model`` or ``data`` by their bare names."""
    return {key.removeprefix(f"{group}."): value for key, value in options.items() if key.startswith(f"{group}.")}


# data


def data_of(name: str, options: Options, **more: Any) -> Any:
    """Datamodule of a class, configured for the backbone of the options."""
    data = getattr(datamodules, name)(**of_group("data", options) | more)
    data.configure(resolve_data_config(pretrained_cfg=get_pretrained_cfg(options["model.backbone"]).to_dict()))
    return data


def steps_per_epoch(data: Any) -> int:
    """Optimizer steps of an epoch on one device, by the published number of training images."""
    images = data.published_sizes[data.list_of("train")]
    return int(images // data.batch_size if data.drop_last else -(-images // data.batch_size))


def masks_are_made(data: Any) -> None:
    """Fails if an image of 500 x 375 pixels and its mask have no way to the size of the backbone."""
    image, mask = Image.new("RGB", (500, 375)), Image.new("L", (500, 375), 140)  # a class of all data
    for pixels, labels in (data.train_item(ImageSample(image, mask)), data.score_item(ImageSample(image, mask))):
        assert (pixels.shape, labels.shape) == ((3, *data.size), data.size)
    pixels, labels = data.item(ImageSample(image, mask))
    assert (min(pixels.shape[1:]), labels.shape) == (min(data.size), (375, 500))


def objects_are_made(data: Any) -> None:
    """Fails if an image of 500 x 375 pixels with an object does not get the sizes of training and of an evaluation."""
    square = [[100, 100, 200, 100, 200, 200, 100, 200]]
    one = torch.ones(1, dtype=torch.long)
    objects = Objects(torch.tensor([[100.0, 100, 200, 200]]), one, one == 0, 1e4 * one.float(), [square])
    sample = ImageSample(Image.new("RGB", (500, 375)), objects)
    for seed in range(2):
        torch.manual_seed(seed)
        pixels, target = data.train_item(sample)
        assert min(pixels.shape[1:]) in data.short_sides
        assert len(target["boxes"]) == len(target["masks"]) == 1
    pixels, target = data.item(sample)
    assert (min(pixels.shape[1:]), target["masks"].shape) == (max(data.short_sides), (1, 375, 500))


def clips_are_made(data: Any) -> None:
    """Fails if the frames of a short and of a long video have no way to the size of the backbone."""
    for length in (3, 200):
        sample = ClipSample(GreyVideo(length), 0)
        train, item, test = (make(sample)[0] for make in (data.train_item, data.item, data.test_item))
        assert train.shape == item.shape == (data.frames, 3, *data.size)
        assert test.shape == (data.frames * data.test_views * data.test_crops, 3, *data.size)


class GreyVideo(Video):
    """Grey frames of 340 x 256 pixels.

    Args:
        length: Number of frames.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def read(self, indices: list[int]) -> Tensor:
        assert max(indices) < self.length
        return torch.full((len(indices), 3, 256, 340), 128, dtype=torch.uint8)

    def content(self) -> bytes:
        return b""


def image_steps(data: Any, train: bool, draws: int) -> list[list[Any]]:
    """Resizings and crops of an image of 500 x 375 pixels; what differs between draws is ``random``."""
    runs: list[list[list[Any]]] = []
    resize, crop, interpolate = Image.Image.resize, Image.Image.crop, _geometry.interpolate

    def resized(image: Image.Image, size: Any, resample: Any = None, *args: Any, **options: Any) -> Image.Image:
        runs[-1].append(["resize", list(size), Image.Resampling(resample).name.lower()])
        return resize(image, size, resample, *args, **options)

    def cropped(image: Image.Image, box: Any) -> Image.Image:
        runs[-1].append(["crop", list(box)])
        return crop(image, box)

    def interpolated(pixels: Tensor, size: Any, mode: str, antialias: bool, **options: Any) -> Tensor:
        runs[-1].append(["resize", list(size)[::-1], mode if antialias else f"{mode} without antialiasing"])
        return interpolate(pixels, size=size, mode=mode, antialias=antialias, **options)

    for seed in range(draws):
        runs.append([])
        torch.manual_seed(seed)
        sample = ImageSample(Image.new("RGB", (500, 375)), 0)
        with (
            patch.object(Image.Image, "resize", resized),
            patch.object(Image.Image, "crop", cropped),
            patch.object(_geometry, "interpolate", interpolated),
        ):
            pixels, _ = data.train_item(sample) if train else data.item(sample)
        assert pixels.shape == (3, *data.size)
    return [of_draws(*step) for step in zip(*runs, strict=True)]


def of_draws(*draws: list[Any]) -> list[Any]:
    """One step of the same kind in all draws: its name, its size or box, and its filters."""
    (kind,), places = {step[0] for step in draws}, [step[1] for step in draws]
    place = places[0] if all(other == places[0] for other in places) else "random"
    return [kind, place, *([sorted({step[2] for step in draws})] if kind == "resize" else [])]


# model


def shapes(options: Options) -> str:
    """Options of a recipe that change the shapes of the model, as JSON.

    No number such as a scale or a rate changes a shape, so models that differ in them alone are built once.
    """
    own = of_group("model", options).items()
    kept = {key: value for key, value in own if key == "decayed" or not (key in SCHEDULE or isinstance(value, float))}
    return json.dumps(kept, sort_keys=True)


@cache
def adapted(method: str, shapes: str, narrow: bool, task: str = "classification") -> Any:
    """Adapted model.

    Args:
        method: Names of the methods.
        shapes: Options as JSON.
        narrow: Whether the backbone is ``STAND_IN``, whose scores are made up. Otherwise it has the shapes of the
            recipe's backbone and no values, and a method that chooses from data gets ``choice``.
        task: Name of the task.
    """
    options = json.loads(shapes) | {"pretrained": False}
    if narrow:
        sam = {"backbone": "samvit_base_patch16", "backbone_args": STAND_IN_OF_SAM, "decoder_weights": False}
        plain = {"backbone": BACKBONE, "backbone_args": STAND_IN}
        options |= sam if task == "binary_segmentation" else plain
        options |= {"head_channels": 8, "box_channels": 8} if task == "detection" else {}
    if method == "sidetune":
        options["sidetune_pretrained"] = False  # because its weights would be downloaded
    with torch.device("cpu" if narrow else "meta"):
        model: Any = compose(*(METHODS[name] for name in method.split("+")), task=TASKS[task])(**options)
        if not narrow:
            with torch.device("cpu"):
                model.selection = choice(model, method)
        elif isinstance(model, Selective) and model.scorer is not None:
            model.selection = model.select(FACTS[method].scores(model))
        model.configure_model()
    return model


def choice(model: Any, method: str) -> dict[str, Tensor] | None:
    """Made-up choice from data: the first k entries of each row for GPS; for SPT, parts of each kind."""
    if method == "gps":
        shapes = {name: model.backbone.get_parameter(name).flatten(1).shape for name in model.score_targets()}
        first = torch.arange(model.gps_k)
        return {
            name: (columns * torch.arange(rows)[:, None] + first).flatten() for name, (rows, columns) in shapes.items()
        }
    if method != "spt":
        return None
    found: dict[str, Tensor] = {}
    for block in [f"blocks.{number}" for number in range(len(model.backbone.blocks))]:
        found |= {f"structured/{block}.attn.{part}": torch.tensor([model.spt_rank]) for part in ("q", "v")}
        found |= {f"whole/{block}.norm1.bias": torch.empty(0), f"entries/{block}.attn.proj.weight": torch.arange(100)}
    return found


def decayed(model: Any) -> dict[str, Any]:
    """Number, entries and hash of the names of the parameters with weight decay."""
    groups = [group["params"] for group in model.param_groups() if group["weight_decay"]]
    with_decay = {id(parameter) for group in groups for parameter in group}
    found = {name: p.numel() for name, p in model.named_parameters() if id(p) in with_decay}
    digest = hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()
    return {"names": len(found), "entries": sum(found.values()), "hash": digest[:12]}


def rates(options: Options, steps: int) -> dict[int, float]:
    """Learning rate at steps 0 and 1, the end of the warm-up, the middle and the last step, of so many in an epoch."""
    own = {key: value for key, value in of_group("model", options).items() if key in SCHEDULE}
    module: Any = Optimized(**own)
    epochs, total = options["trainer.max_epochs"], options.get("trainer.max_steps")
    total = total or steps * epochs
    module._trainer = SimpleNamespace(max_epochs=epochs, estimated_stepping_batches=total)
    factor, per_step = module.lr_factor(), module.lr_interval == "step"
    asked = (0, 1, module.warmup_steps or round(module.warmup_epochs * steps), total // 2, total - 1)
    return {step: module.lr * factor(step if per_step else step // steps) for step in asked}
