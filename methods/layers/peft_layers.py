"""Layers of the package peft of Hugging Face inside the layers of a backbone, whose weights keep their names."""

from copy import copy
from typing import Any

from torch import Tensor, nn

from backbones.inject import Backbone, check_free, modules_with


def import_peft() -> Any:
    """The package peft, an optional extra.

    Raises:
        ValueError: If it is not installed, with the command that installs it.
    """
    try:
        import peft
    except ImportError as error:
        raise ValueError("hf_peft needs the package peft: pip install peft (or `.[peft]` of this project)") from error
    return peft


def inject(backbone: Backbone, config: Any) -> list[str]:
    """Let the package adapt layers of a backbone, and return their names.

    Args:
        backbone: The backbone, changed in place.
        config: Config of the package.

    Raises:
        ValueError: If the package refuses the options or a layer.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    flags = {parameter: parameter.requires_grad for parameter in backbone.parameters()}
    # not by `inject_adapter_in_model`, which refuses types whose layers share tensors; the layers keep these too
    tuner = import_peft().PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    try:
        tuner(backbone, config, adapter_name="default")
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"peft_config: the package peft cannot adapt {type(backbone).__name__}: {reason} (change these options, or "
            "name other layers in target_modules)"
        ) from error
    del backbone.peft_config  # the package leaves it there
    layers: dict[str, Any] = {n: module for n, module in backbone.named_modules() if isinstance(module, BaseTunerLayer)}
    for parameter, flag in flags.items():  # the package freezes tensors of other methods too
        parameter.requires_grad_(flag)
    save_drawn_tensors(list(layers.values()))
    for name, layer in layers.items():
        move_inside(backbone, name, layer)
    return list(layers)


def save_drawn_tensors(layers: list[Any]) -> None:
    """Register frozen tensors of the package's layers, such as random indices, as buffers, once for all layers."""
    from peft.tuners._buffer_dict import BufferDict

    shared: set[nn.Module] = set()
    for layer in layers:
        for name, value in list(vars(layer).items()):
            tensors = list(value.values()) if isinstance(value, dict) and not name.startswith("_") else []
            if tensors and all(isinstance(tensor, Tensor) for tensor in tensors):
                delattr(layer, name)
                setattr(layer, name, BufferDict(value, persistent=True))
        for name, child in list(layer.named_children()):
            if child in shared:  # no child of this layer too, otherwise a file would hold it once for each layer
                delattr(layer, name)
                layer.__dict__[name] = child
            elif name != "base_layer":
                shared.add(child)


def move_inside(backbone: Backbone, name: str, layer: Any) -> None:
    """Make a layer of the package a child of the plain layer that it has replaced.

    The plain layer comes back to its place, and its forward pass is that of the new child ``hf_peft``. The child reads
    the weights from a twin of the plain layer, which is no module of the backbone and so has no names there.

    Args:
        backbone: The backbone, changed in place.
        name: Name of the layer.
        layer: Layer of the package.
    """
    plain = layer._modules.pop("base_layer")
    check_free(plain, "hf_peft")
    twin = copy(plain)
    nn.Module.__init__(twin)  # without hooks, otherwise those of the plain layer would run twice
    twin._parameters, twin._buffers = plain._parameters, plain._buffers  # the same dictionaries: one set of tensors
    layer.__dict__["base_layer"] = twin
    backbone.set_submodule(name, plain)
    plain.hf_peft = layer.float()
    plain.forward = layer.forward


def merge_layers(backbone: Backbone) -> None:
    """Merge all layers of the package into the plain weights, and remove them."""
    for module in list(modules_with(backbone, "hf_peft")):
        layer = module._modules.pop("hf_peft")
        del module.forward
        layer.merge()
