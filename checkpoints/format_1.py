"""Translation of checkpoints of format 1, written before November 2026, to format 2."""

from typing import Any

# old options of width scaling, which was part of every task, with their new names and the defaults of format 1
WIDTH_OPTIONS = {
    "parameterization": ("width_parameterization", "none"),
    "base_width": ("width_base", None),
    "alignment": ("width_alignment", "full"),
    "readout_alignment": ("width_readout_alignment", 0.5),
    "lr_constants": ("width_lr_constants", None),
    "layer_types": ("width_layer_types", None),
    "eps_per_layer": ("width_eps_per_layer", False),
    "independent_weight_decay": ("width_independent_weight_decay", False),
}
TASK = "Classification"  # the only task of format 1


def to_format_2(checkpoint: dict[str, Any]) -> None:
    """Translate a checkpoint in place.

    Format 2 has ``identity`` in the place of ``class_names``, and its class paths begin with ``methods``. Width scaling
    is a method, and the average of trained weights is a callback.
    """
    checkpoint["identity"] = {"class_names": checkpoint.pop("class_names", None) or []}
    checkpoint["peft"] = peft = checkpoint["peft"] | {"format": 2}
    options = dict(checkpoint["hyper_parameters"])
    decay = options.pop("ema_decay", None)
    if decay is not None:
        checkpoint["ema_decay"] = decay
    module, _, name = options.get("_class_path", "").rpartition(".")
    widths = {old: options.pop(old, default) for old, (_, default) in WIDTH_OPTIONS.items()}
    if widths["parameterization"] != "none":
        options |= {WIDTH_OPTIONS[old][0]: value for old, value in widths.items()}
        name = f"{name.removesuffix(TASK)}WidthScaling{TASK}"
        peft["method"] = f"{peft['method']}+WidthScaling"
    if module in ("lightning_modules", "methods"):
        options["_class_path"] = f"methods.{name}"
    checkpoint["hyper_parameters"] = options
