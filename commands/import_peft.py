"""Turn a LoRA or DoRA of HF peft into an adapter folder of this project."""

from pathlib import Path
from typing import Any


def import_peft(
    adapter: Path,
    backbone: str,
    output: Path,
    pretrained: bool | str = True,
    backbone_args: dict[str, Any] | None = None,
    class_names: list[str] | None = None,
) -> None:
    """Write an adapter folder that ``train.py test``, ``predict``, ``merge`` and ``export`` read.

    Updates of a fused qkv stay fused, also where half of their entries are zeros.

    Args:
        adapter: Folder with ``adapter_model.safetensors`` and ``adapter_config.json`` of peft.
        backbone: Full timm tag of the model that the adapter was trained on.
        output: New folder.
        pretrained: ``true`` for the weights of the tag, or the path of a weight file.
        backbone_args: Further arguments of ``timm.create_model``.
        class_names: Names of the classes, in the order of the classifier's outputs.
    """
    # imported late, so that --help is fast

    from backbones.timm_models import build_backbone, head_modules
    from checkpoints.delta import check_delta, write_adapter
    from checkpoints.peft import most_common, read_peft
    from lightning_modules.classification import Classification
    from methods import METHODS, compose
    from methods.layers.low_rank_targets import find_targets

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"output={str(output)!r} exists and is not empty; nothing was written")
    layers, saved = read_peft(adapter)
    plain = build_backbone(backbone, pretrained, dict(backbone_args or {}))
    heads = tuple(head_modules(plain))
    # an adapter without a classifier goes with the backbone's own
    head = saved or {n: p for n, p in plain.named_parameters() if n.rpartition(".")[0] in heads}
    if not head:
        raise ValueError(f"neither {adapter} nor backbone={backbone!r} has a classifier; save it with modules_to_save")
    num_classes = next(iter(head.values())).shape[0]
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(f"class_names has {len(class_names)} entries, and the classifier {num_classes} outputs")

    ranks = {name: layer.A.shape[0] for name, layer in layers.items()}
    rank, scale = most_common(ranks), most_common({name: layer.scale for name, layer in layers.items()})
    ends = sorted({name.rpartition(".")[2] for name in layers})
    targets = ends if find_targets(plain, ends, heads).keys() == layers.keys() else list(layers)
    model: Any = compose(
        METHODS["dora" if any(layer.magnitude is not None for layer in layers.values()) else "lora"],
        task=Classification,
    )(
        backbone=backbone,
        pretrained=pretrained,
        backbone_args=backbone_args,
        num_classes=num_classes,
        lora_targets=targets,
        lora_rank=rank,
        lora_alpha=scale,
        lora_ranks={name: value for name, value in ranks.items() if value != rank} or None,
    )
    model.configure_model()
    values = {f"backbone.{name}": tensor for name, tensor in head.items()}
    for name, layer in layers.items():
        values[f"backbone.{name}.lora.A"] = layer.A
        values[f"backbone.{name}.lora.B"] = layer.B * (layer.scale / scale)  # one factor for all layers in this project
        if layer.magnitude is not None:
            values[f"backbone.{name}.lora.magnitude"] = layer.magnitude
    check_delta(model.delta_state_dict(), values)
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict() | values}
    model.adopt({"class_names": class_names})
    model.on_save_checkpoint(checkpoint)
    write_adapter(output, checkpoint)
    print(f"wrote {output / 'adapter_model.safetensors'} and adapter_config.json")
    print(f"python train.py test --ckpt_path {output} --data ...")
