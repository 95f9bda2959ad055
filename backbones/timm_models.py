"""timm models with pretrained weights, or a clear error if the weights are missing."""

import difflib
import math
import pickle
import zipfile
from inspect import signature
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.data import resolve_input_data_config
from timm.layers import AttentionPool2d, AttentionPoolLatent, RotAttentionPool2d
from timm.models import get_pretrained_cfg, load_state_dict
from timm.models._hub import load_model_config_from_path
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import nn

from backbones.inject import Backbone
from backbones.shared import read_shared
from backbones.timm_inputs import check_first_layer

CorruptFile = (EOFError, SafetensorError, pickle.UnpicklingError)
LoadError = (RuntimeError, OSError, KeyError, ValueError, AttributeError, *CorruptFile)
ATTENTION_POOLS = (AttentionPool2d, AttentionPoolLatent, RotAttentionPool2d)


def build_backbone(name: str, pretrained: bool | str, args: dict[str, Any]) -> Backbone:
    """Create a timm model with its own classifier. Its weights are random only with ``pretrained=False``.

    Args:
        name: Full timm tag (``vit_base_patch16_224.augreg_in21k``), ``hf-hub:org/model``, or
            ``local-dir:PATH`` for a folder with ``config.json`` and ``model.safetensors``.
        pretrained: ``True`` for the weights of the tag, ``False`` for random weights, or the path of a weight file:
            safetensors, npz in the layout of Google's ViT releases, or a torch file (read weights-only).
        args: Further arguments of ``timm.create_model``.

    Raises:
        ValueError: If timm has no model of this name, the tag is missing or the file does not fit the model.
        TypeError: If the model does not take one of ``args``.
        FileNotFoundError: If there are no weights, or no network.
    """
    check_name(name, pretrained)
    if name.startswith("local-dir:") and not Path(name.removeprefix("local-dir:"), "config.json").is_file():
        raise FileNotFoundError(f"backbone={name!r}: no such folder, or no config.json in it. {remedy(name)}")
    if torch.get_default_device().type == "meta":  # its tensors have no values
        pretrained = False
    elif pretrained is False:  # not shared, because each run draws its own weights
        return create(name, args, pretrained=False)
    # reading weights must not advance the RNG, otherwise a shared backbone would give other random heads
    with torch.random.fork_rng(devices=[]):
        key = repr((name, pretrained, sorted(args.items())))
        return read_shared(key, lambda: read_backbone(name, pretrained, dict(args)))


def read_backbone(name: str, pretrained: bool | str, args: dict[str, Any]) -> Backbone:
    """Create a timm model with the weights of its tag or of a file; see ``build_backbone``."""
    if pretrained is False:
        return create(name, args, pretrained=False)
    if pretrained is True:
        try:
            backbone = create(name, args, pretrained=True)
        except LoadError as error:
            raise FileNotFoundError(
                f"backbone={name!r}: its pretrained weights could not be loaded ({first_line(error)}). "
                f"Nothing was trained. {remedy(name)}"
            ) from error
        check_first_layer(backbone, name)
        return backbone
    path = Path(pretrained)
    if not path.is_file():
        raise FileNotFoundError(f"pretrained={pretrained!r}: no such file. {remedy(name)}")
    overlay: dict[str, Any] = {"file": str(path), "source": ""}  # otherwise timm reads the weights of a local-dir
    if path.suffix == ".npz":
        if not zipfile.is_zipfile(path):
            raise ValueError(f"pretrained={pretrained!r} ({path.stat().st_size} bytes) is no readable weight file")
        overlay["custom_load"] = True
    else:
        overlay["num_classes"] = args["num_classes"] = count_classes(name, path)
    try:
        # with the num_classes of the file, because only then timm loads strictly
        backbone = create(name, args, pretrained=True, pretrained_cfg_overlay=overlay)
    except LoadError as error:
        raise ValueError(f"pretrained={pretrained!r} does not fit backbone={name!r}: {first_lines(error)}") from error
    check_first_layer(backbone, name)
    return backbone


def create(name: str, args: dict[str, Any], **how: Any) -> Backbone:
    """Call ``timm.create_model``; its error for an unknown option names the options.

    Raises:
        TypeError: If the model has no such option, or not for this value.
    """
    try:
        return timm.create_model(name, **how, **args)
    except (TypeError, AssertionError, ZeroDivisionError) as error:
        hint = "; it takes the size of the images, --data.image_size" if "argument 'img_size'" in str(error) else ""
        raise TypeError(f"backbone={name!r} with backbone_args={args}: {first_line(error)}{hint}") from error


def check_name(name: str, pretrained: bool | str) -> None:
    """Refuse an unknown timm name, and a name without a tag, whose weights change between releases of timm.

    Raises:
        ValueError: With the nearest names or the known tags.
    """
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
        raise ValueError(f"backbone={name!r} names no weights (timm's default changes with releases); expected {known}")


def count_classes(name: str, path: Path) -> int:
    """Number of classes of the classifier in a weight file; 0 if the file has no classifier.

    Raises:
        ValueError: If the file is not readable.
    """
    architecture = name
    try:
        state = load_state_dict(str(path), weights_only=True)
        if name.startswith("local-dir:"):
            architecture = load_model_config_from_path(name.removeprefix("local-dir:"))[1]
    except LoadError as error:
        raise ValueError(
            f"pretrained={str(path)!r} ({path.stat().st_size} bytes) is no readable weight file: {first_line(error)}"
        ) from error
    config = get_pretrained_cfg(architecture) if ":" not in architecture else None
    classifier = config.classifier if config is not None else "head"
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    rows = [state[f"{n}.weight"].shape[0] for n in names if f"{n}.weight" in state]
    return rows[0] if rows else 0


def remedy(name: str) -> str:
    """Instruction for missing weights: which file to download and which option to set."""
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
    """Input format of a backbone: ``input_size`` (C, H, W), ``mean``, ``std``, ``interpolation``, ``crop_pct``."""
    channels = getattr(backbone, "in_chans", 3)
    config = getattr(backbone, "pretrained_cfg", None)
    if not config:  # a model that was built from a class, not by name
        size = getattr(getattr(backbone, "patch_embed", None), "img_size", None) or (224, 224)
        half = (0.5,) * channels
        return {"input_size": (channels, *size), "mean": half, "std": half, "interpolation": "bicubic", "crop_pct": 1.0}
    # the mean over the channels, as timm computes it, but timm warns at every call
    known = {key: config[key] for key in ("mean", "std") if config.get(key)}
    averages = {key: (sum(v) / len(v),) for key, v in known.items() if len(v) not in (1, channels)}
    found = dict(resolve_input_data_config(backbone, args=averages))
    if isinstance(backbone, VisionTransformerSAM):  # timm keeps 1024 pixels here, for every img_size
        embedding: Any = backbone.patch_embed
        found["input_size"] = (channels, *embedding.img_size)
    return found


def reset_head(backbone: Backbone, num_classes: int, init: str) -> None:
    """Replace the classifier of a timm model by a fresh one with ``num_classes`` outputs.

    Args:
        backbone: timm model.
        num_classes: Number of outputs.
        init: Initial weights. ``trunc_normal``: std 0.02, bias 0, as in timm's ViT, SSF and NOAH. ``adaptformer``: std
            0.01, bias 0, as in AdaptFormer and DyT. ``linear``: torch's default, as in PETL-ViT. ``zero``: zero.
            ``vpt``: Kaiming normal over the outputs, bias log(0.01 / 0.99), as in VPT's code.

    Raises:
        ValueError: If the model has no classifier that can be replaced.
    """
    if not hasattr(backbone, "reset_classifier"):
        raise ValueError(
            f"{type(backbone).__name__} has no classifier that can be replaced: use a timm model for classification, "
            "without features_only"
        )
    # otherwise RepViT would lose its second head, which the plain model has
    distilled = "distillation" in signature(backbone.reset_classifier).parameters
    backbone.reset_classifier(num_classes, **({"distillation": backbone.head.distillation} if distilled else {}))
    for layer in classifier_layers(backbone).values():
        init_head(layer, init)


def init_head(head: Any, init: str) -> None:
    """Draw the weights of a classifier layer; see ``reset_head``. A norm keeps the weights of its construction."""
    if not isinstance(head, (nn.Linear, nn.Conv2d)):
        return
    if init in ("trunc_normal", "adaptformer"):
        nn.init.trunc_normal_(head.weight, std=0.02 if init == "trunc_normal" else 0.01)
    elif init == "zero":
        nn.init.zeros_(head.weight)
    elif init == "vpt":
        nn.init.kaiming_normal_(head.weight, mode="fan_out")
    if init != "linear" and head.bias is not None:
        nn.init.constant_(head.bias, math.log(0.01 / 0.99) if init == "vpt" else 0.0)


def classifier_layers(backbone: Backbone) -> dict[str, Any]:
    """Layers with weights that ``reset_classifier`` makes, by module name; none with 0 classes.

    There are several if a model is distilled, has a classifier for each stage, or a BatchNorm before the linear layer.
    """
    found = backbone.get_classifier()
    outputs = [*(found if isinstance(found, (tuple, list)) else [found]), getattr(backbone, "aux_head", None)]
    modules = dict(backbone.named_modules())
    tops = []
    for name, module in modules.items():
        if any(module is output for output in outputs):
            parent = name.rpartition(".")[0]
            tops.append(parent if only_norms_beside(modules[parent], module) else name)
    return {name: module for name, module in modules.items() if module._parameters and inside(name, tops)}


def only_norms_beside(parent: nn.Module, layer: nn.Module) -> bool:
    """Whether a module is a sequence of BatchNorms and one classifier layer, which timm replaces as a whole."""
    others = [m for m in parent.children() if m is not layer and any(True for _ in m.parameters())]
    return isinstance(parent, nn.Sequential) and all(isinstance(other, nn.BatchNorm1d) for other in others)


def inside(name: str, tops: list[str]) -> bool:
    """Whether a module is one of ``tops`` or lies inside one."""
    return any(f"{name}.".startswith(f"{top}.") for top in tops)


def head_modules(backbone: Backbone) -> dict[str, Any]:
    """Layers that train as the head, by module name: attention pooling with its pretrained weights, and the classifier.

    They are the modules that hold parameters themselves, so that each layer has its own entry.
    """
    tops = [name for name, module in backbone.named_modules() if isinstance(module, ATTENTION_POOLS)]
    pools = {name: m for name, m in backbone.named_modules() if m._parameters and inside(name, tops)}
    return pools | classifier_layers(backbone)


def bias_arguments(name: str, args: dict[str, Any], backbone: nn.Module) -> dict[str, bool]:
    """Argument of ``timm.create_model``, such as ``qkv_bias``, for the biases that a backbone has beyond the plain one.

    Args:
        name: Name of the plain model in timm.
        args: Further arguments of the plain model.
        backbone: The backbone with additional biases.

    Returns:
        The argument that gives a model with exactly the tensors of ``backbone``; empty if there is none.
    """
    keys = backbone.state_dict().keys()
    for argument in signature(type(backbone).__init__).parameters:
        if not argument.endswith("bias"):
            continue
        with torch.random.fork_rng(devices=[]):
            other = create(name, args | {argument: True, "num_classes": backbone.num_classes}, pretrained=False)
        if other.state_dict().keys() == keys:
            return {argument: True}
    return {}
