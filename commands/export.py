"""Write a trained LoRA or DoRA in the format of HF peft."""

import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal


def export(ckpt_path: Path, output: Path, format: Literal["peft"] = "peft") -> None:
    """Write an adapter folder that ``peft.PeftModel`` loads onto the plain timm model.

    Args:
        ckpt_path: Checkpoint file or adapter folder of a run.
        output: New folder for ``adapter_model.safetensors`` and ``adapter_config.json``.
        format: Whose format.
    """
    # imported here: the overview of train.py names this command without loading torch
    import torch

    import lightning_modules  # noqa: F401 (the classes that a checkpoint names)
    from callbacks.peft_file import read_peft, write_peft
    from methods import PEFTMethod

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"output={str(output)!r} exists and is not empty; nothing was written")
    model: Any = PEFTMethod.from_delta(ckpt_path)
    with torch.no_grad():
        layers = low_rank_layers(model)
    delta = {name.removeprefix("backbone."): tensor for name, tensor in model.delta_state_dict().items()}
    saved = {name: tensor for name, tensor in delta.items() if name.rpartition(".")[0] in model.head_names}
    others = [name for name in delta if name not in saved and name.rpartition(".lora.")[0] not in layers]
    if others:
        raise ValueError(
            f"ckpt_path={str(ckpt_path)!r} has trained {', '.join(sorted(others)[:3])}, which the peft format has no "
            "place for; `python train.py merge` writes a plain model"
        )

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder, torch.inference_mode():
        write_peft(Path(folder), layers, saved)
        written_layers, written_head = read_peft(Path(folder))
        written = model.merge()
        for name, layer in written_layers.items():
            written.get_submodule(name).weight.copy_(layer.fold(model.backbone.get_submodule(name).weight))
        for name, tensor in written_head.items():
            written.get_parameter(name).copy_(tensor)
        images = torch.rand(4, *model.input_config["input_size"]) * 2 - 1
        difference = float((written(images) - model(images)).abs().max())
        if difference > 1e-3:
            raise ValueError(f"the exported adapter differs by {difference:.1e} in its logits; nothing was written")
        output.mkdir(exist_ok=True)
        for file in Path(folder).iterdir():
            shutil.move(file, output / file.name)

    print(f"largest difference of a logit, exported against trained: {difference:.1e}")
    print(f"wrote {output / 'adapter_model.safetensors'} and adapter_config.json")
    arguments = {"pretrained": bool(model.pretrained), "num_classes": model.num_classes} | model.backbone_args
    if isinstance(model.pretrained, str):
        arguments["pretrained_cfg_overlay"] = {"file": model.pretrained}
    options = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    print(f"base = timm.create_model({model.backbone_name!r}, {options})")
    print(f"model = peft.PeftModel.from_pretrained(base, {str(output)!r})")


def low_rank_layers(model: Any) -> dict[str, Any]:
    """The updates of a LoRA or DoRA, each as one pair of A and B for the whole layer.

    Raises:
        ValueError: If the method is another one.
    """
    from callbacks.peft_file import LowRankLayer
    from methods.dora import Decomposed, DoRALinear
    from methods.low_rank import LoRALinear, LowRank

    updated = [(n, m) for n, m in model.backbone.named_modules() if "lora" in m._modules]
    known = all(type(m) in (LoRALinear, DoRALinear) and type(m.lora) in (LowRank, Decomposed) for _, m in updated)
    if not (updated and known):
        raise ValueError(
            f"the method of this checkpoint is {model.method_name()}, and the peft format is for LoRA and DoRA on "
            "plain weights; `python train.py merge` writes a plain model"
        )
    layers = {}
    for name, linear in updated:
        lora, blocks = linear.lora, len(linear.lora.rows)
        # updates of q and v alone are one of rank 2 r, whose B is zero where an output does not see an A
        B = lora.B.new_zeros(linear.out_features, lora.A.shape[0])
        for (first, last), part, b in zip(lora.rows, B.chunk(blocks, dim=1), lora.B.chunk(blocks), strict=True):
            part[first:last] = b
        magnitude = None
        if isinstance(lora, Decomposed):
            magnitude = linear.weight.norm(dim=1)  # rows without an update keep their norm
            for (first, last), values in zip(lora.rows, lora.magnitude.chunk(blocks), strict=True):
                magnitude[first:last] = values
        layers[name] = LowRankLayer(lora.A, B, lora.scale, magnitude)
    return layers
