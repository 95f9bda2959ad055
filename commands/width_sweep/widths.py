"""Models of other widths."""

from pathlib import Path
from typing import Any


def check_widths(fit_config: Path, widths: list[int], head_dim: int) -> None:
    """Refuse widths that heads do not fill, and a backbone whose width they are not.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If the models of two widths are the same, or differ in depth.
    """
    import timm
    import torch
    import yaml

    if not fit_config.is_file():
        raise FileNotFoundError(f"fit_config={str(fit_config)!r}: no such file")
    for width in widths:
        if head_dim < 1 or width % head_dim:
            raise ValueError(f"width {width}: expected multiples of the heads' size, --head_dim {head_dim}")
    options = ((yaml.safe_load(fit_config.read_text()) or {}).get("model") or {}).get("init_args") or {}
    if options.get("pretrained", True) is not False:
        raise ValueError(
            f"fit_config={str(fit_config)!r}: a sweep over widths trains from random weights, pretrained: false"
        )
    backbone, shapes = options.get("backbone", "vit_base_patch16_224"), []
    for width in (widths[0], widths[-1]):
        args = (options.get("backbone_args") or {}) | arguments(width, head_dim)
        try:
            with torch.device("meta"):
                model = timm.create_model(backbone, **args)
        except (TypeError, RuntimeError) as error:
            raise ValueError(
                f"fit_config={str(fit_config)!r}: {backbone} has no width to sweep ({error}); expected a backbone that "
                "takes embed_dim and num_heads, such as a ViT"
            ) from error
        shapes.append({name: parameter.shape for name, parameter in model.named_parameters()})
    if shapes[0] == shapes[1] or shapes[0].keys() != shapes[1].keys():
        raise ValueError(
            f"fit_config={str(fit_config)!r}: widths {widths[0]} and {widths[-1]} give {backbone} no other width"
        )


def arguments(width: int, head_dim: int) -> dict[str, int]:
    """Arguments of timm for a width."""
    return {"embed_dim": width, "num_heads": width // head_dim}


def with_width_scaling(fit_config: Path) -> str:
    """Class path of the model of a configuration, stacked on width scaling."""
    from pydoc import locate

    import yaml

    from methods import METHODS, compose

    cls: Any = locate(yaml.safe_load(fit_config.read_text())["model"]["class_path"])
    *stack, task = cls.__bases__
    return f"methods.{compose(*stack, METHODS['width_scaling'], task=task).__name__}"
