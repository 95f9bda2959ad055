"""Backbones: any timm model with weights that are really there, or a clear refusal."""

import difflib
import math
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors import SafetensorError
from timm.data import resolve_input_data_config
from timm.models import get_pretrained_cfg, load_state_dict
from torch import nn

from backbones.inject import Backbone

CorruptFile = (EOFError, SafetensorError, pickle.UnpicklingError)
LoadError = (RuntimeError, OSError, KeyError, ValueError, AttributeError, *CorruptFile)
shared: dict[str, Backbone] | None = None  # the backbone that was read last, while runs share it


@contextmanager
def shared_backbone() -> Iterator[None]:
    """Inside, a backbone is read once for all runs of the process that name it one after the other."""
    global shared
    shared = {}
    try:
        yield
    finally:
        shared = None


def build_backbone(name: str, pretrained: bool | str, args: dict[str, Any]) -> Backbone:
    """Create a timm model with its own classifier, randomly initialised only where that was asked for.

    Args:
        name: Full timm tag (``vit_base_patch16_224.augreg_in21k``), ``hf-hub:org/model``, or
            ``local-dir:PATH`` for a folder with ``config.json`` and ``model.safetensors``.
        pretrained: ``True`` for the weights that the tag names, ``False`` for random ones, or the path of a weight
            file: safetensors, npz in the layout of Google's ViT releases, or a torch file (read weights-only).
        args: Further arguments of ``timm.create_model``.

    Raises:
        ValueError: If timm does not know the name, the tag is missing or the file does not fit the model.
        FileNotFoundError: If the weights are not to be had.
    """
    check_name(name, pretrained)
    if name.startswith("local-dir:") and not Path(name.removeprefix("local-dir:"), "config.json").is_file():
        raise FileNotFoundError(f"backbone={name!r}: no such folder, or no config.json in it. {remedy(name)}")
    if pretrained is False:
        return create(name, args, pretrained=False)
    # weights that are read are none of the seed's draws, nor must it count for those whether they were read before
    with torch.random.fork_rng(devices=[]):
        if shared is None:
            return read_backbone(name, pretrained, args)
        key = repr((name, pretrained, sorted(args.items())))
        if key not in shared:
            shared.clear()
            shared[key] = read_backbone(name, pretrained, dict(args))
        return deepcopy(shared[key])


def read_backbone(name: str, pretrained: str | Literal[True], args: dict[str, Any]) -> Backbone:
    """A timm model with the weights that its tag or ``pretrained`` names; see ``build_backbone``."""
    if pretrained is True:
        try:
            return create(name, args, pretrained=True)
        except LoadError as error:
            raise FileNotFoundError(
                f"backbone={name!r}: its pretrained weights could not be loaded ({first_line(error)}). "
                f"Nothing was trained. {remedy(name)}"
            ) from error
    path = Path(pretrained)
    if not path.is_file():
        raise FileNotFoundError(f"pretrained={pretrained!r}: no such file. {remedy(name)}")
    overlay: dict[str, Any] = {"file": str(path)}
    if path.suffix == ".npz":
        if not zipfile.is_zipfile(path):
            raise ValueError(f"pretrained={pretrained!r} ({path.stat().st_size} bytes) is no readable weight file")
        overlay["custom_load"] = True
    else:
        overlay["num_classes"] = args["num_classes"] = count_classes(name, path)
    try:
        # num_classes equals the file's own: only then does timm load strictly
        return create(name, args, pretrained=True, pretrained_cfg_overlay=overlay)
    except LoadError as error:
        raise ValueError(f"pretrained={pretrained!r} does not fit backbone={name!r}: {first_lines(error)}") from error


def create(name: str, args: dict[str, Any], **how: Any) -> Backbone:
    """``timm.create_model``, which names the options where one of them is not the model's."""
    try:
        return timm.create_model(name, **how, **args)
    except TypeError as error:
        raise TypeError(f"backbone={name!r} with backbone_args={args}: {first_line(error)}") from error


def check_name(name: str, pretrained: bool | str) -> None:
    """Refuse an unknown timm name, naming its neighbours, and a bare name whose weights may change."""
    if ":" in name:
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=5)
        raise ValueError(f"backbone={name!r}: timm has no such model. Nearest: {', '.join(near) or 'none'}")
    tags = [model.partition(".")[2] for model in timm.list_pretrained(architecture)]
    if tag and tag not in tags:
        raise ValueError(f"backbone={name!r}: no weights with this tag. Known: {', '.join(tags) or 'none'}")
    if pretrained is True and not tag:
        known = f"one of: {', '.join(f'{architecture}.{tag}' for tag in tags)}" if tags else "pretrained: PATH"
        raise ValueError(f"backbone={name!r} names no weights (timm's default moves between releases); say {known}")


def count_classes(name: str, path: Path) -> int:
    """Rows of the classifier that a weight file holds, 0 where it holds none."""
    try:
        state = load_state_dict(str(path), weights_only=True)
    except LoadError as error:
        raise ValueError(
            f"pretrained={str(path)!r} ({path.stat().st_size} bytes) is no readable weight file: {first_line(error)}"
        ) from error
    config = get_pretrained_cfg(name) if ":" not in name else None
    classifier = config.classifier if config is not None else "head"
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    rows = [state[f"{n}.weight"].shape[0] for n in names if f"{n}.weight" in state]
    return rows[0] if rows else 0


def remedy(name: str) -> str:
    """What to download and where to put it when the weights of a tag cannot be had."""
    config = None if ":" in name else get_pretrained_cfg(name)
    if config is None:
        return "Put its config.json and model.safetensors into a folder and pass --model.backbone local-dir:PATH"
    source = f"model.safetensors of huggingface.co/{config.hf_hub_id}{name}" if config.hf_hub_id else config.url
    if config.hf_hub_id and not config.hf_hub_id.endswith("/"):
        source = f"model.safetensors of huggingface.co/{config.hf_hub_id}"
    return f"Download {source} on a machine with a network and pass --model.pretrained PATH/model.safetensors"


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def first_lines(error: BaseException, lines: int = 5) -> str:
    shown = [line.strip()[:300] for line in (str(error) or type(error).__name__).strip().splitlines()]
    return " | ".join(shown[:lines]) + (f" | and {len(shown) - lines} more lines" if len(shown) > lines else "")


def input_config(backbone: Backbone) -> dict[str, Any]:
    """How a backbone wants its images: ``input_size`` (C, H, W), ``mean``, ``std``, ``interpolation``, ``crop_pct``."""
    if not getattr(backbone, "pretrained_cfg", None):  # built from a class, not by name
        size = getattr(getattr(backbone, "patch_embed", None), "img_size", (224, 224))
        half = (0.5, 0.5, 0.5)
        return {"input_size": (3, *size), "mean": half, "std": half, "interpolation": "bicubic", "crop_pct": 1.0}
    return dict(resolve_input_data_config(backbone))


def reset_head(backbone: Backbone, num_classes: int, init: str) -> None:
    """Give a timm model a fresh classifier of ``num_classes`` outputs.

    Args:
        backbone: timm model.
        num_classes: Number of outputs.
        init: ``trunc_normal`` (std 0.02, bias 0, as timm's ViT and SSF), ``linear`` (torch's default, as NOAH and
            its family), ``zero`` or ``vpt`` (Kaiming normal over the outputs, bias log(0.01 / 0.99), as VPT's code).
    """
    backbone.reset_classifier(num_classes)
    for head in head_modules(backbone).values():
        init_head(head, init)


def init_head(head: Any, init: str) -> None:
    """Draw the weights of a classifier layer; see ``reset_head``."""
    if init == "trunc_normal":
        nn.init.trunc_normal_(head.weight, std=0.02)
    elif init == "zero":
        nn.init.zeros_(head.weight)
    elif init == "vpt":
        nn.init.kaiming_normal_(head.weight, mode="fan_out")
    if init != "linear" and head.bias is not None:
        nn.init.constant_(head.bias, math.log(0.01 / 0.99) if init == "vpt" else 0.0)


def head_modules(backbone: Backbone) -> dict[str, Any]:
    """The classifier layers of a timm model by module name (two for a distilled model, none with 0 classes)."""
    classifier = backbone.get_classifier()
    heads = classifier if isinstance(classifier, tuple) else (classifier,)
    layers = [layer for layer in heads if isinstance(layer, (nn.Linear, nn.Conv2d))]
    return {name: module for name, module in backbone.named_modules() if any(module is layer for layer in layers)}
