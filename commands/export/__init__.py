"""Write a trained model as ONNX, a LoRA or DoRA for HF peft, or a low-bit adapter in the bits that it trained with."""

import tempfile
from pathlib import Path
from typing import Any, Literal

import datamodules  # noqa: F401  (so that --data finds the classes by their names)
from datamodules.image_module import ImageModule


def export(
    ckpt_path: Path,
    output: Path,
    format: Literal["peft", "packed", "raw", "onnx"] = "peft",
    merged: bool | None = None,
    quantize: Literal["int8"] | None = None,
    data: ImageModule | None = None,
) -> None:
    """Write what was trained in another format.

    Args:
        ckpt_path: Checkpoint file or adapter folder of a run.
        output: New folder for ``adapter_model.safetensors`` and ``adapter_config.json`` of peft, or new packed file.
        format: ``peft``: a folder that ``peft.PeftModel`` loads onto the plain timm model; ``packed``: one file of a
            low-bit adapter with its settings; ``raw``: that file without settings, in the bytes of the authors' code;
            ``onnx``: one file of the whole model for onnxruntime, for any batch size.
        merged: Of ``onnx``: whether the method is merged into the weights; by default if it can be. ``false`` keeps
            the layers of the method.
        quantize: Of ``onnx``: ``int8`` stores the weights of linear layers in 8 bits, for a file of about a quarter.
        data: Of ``onnx``: the data of the run, as a fit would get them (``--data ImageDataset --data.root DIR``). Their
            mean and std go into the file, and with ``quantize`` the accuracies of int8 and fp32 on their test images
            are printed.
    """
    # imported late, so that --help is fast
    from methods import PEFTMethod

    unused = {"merged": merged, "quantize": quantize, "data": data} if format != "onnx" else {}
    given = [name for name, value in unused.items() if value is not None]
    if given:
        raise ValueError(f"{given[0]} is an option of format=onnx, and format={format!r} has no use for it")
    if output.exists() and (format != "peft" or not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"output={str(output)!r} exists and is not empty; nothing was written")
    model: Any = PEFTMethod.from_delta(ckpt_path)
    if model.unit != "image":
        raise ValueError(
            f"format={format!r} is for models of single images, and this one reads {model.unit}s: use merge"
        )
    if format == "onnx":
        from commands.export.onnx import export_onnx

        export_onnx(model, output, merged, quantize, data)
        return
    model.before_merge(model.backbone)  # parts that only training needs
    delta = {name.removeprefix("backbone."): tensor for name, tensor in model.delta_state_dict().items()}
    if format == "peft":
        export_peft(model, delta, ckpt_path, output)
    else:
        export_packed(model, delta, ckpt_path, output, format)


def export_peft(model: Any, delta: dict[str, Any], ckpt_path: Path, output: Path) -> None:
    import torch

    from checkpoints.atomic import tensor_bytes, writing

    with torch.no_grad():
        layers = low_rank_layers(model)
    saved = {name: tensor for name, tensor in delta.items() if name.rpartition(".")[0] in model.head_names}
    others = [name for name in delta if name not in saved and name.rpartition(".lora.")[0] not in layers]
    if others:
        raise ValueError(
            f"ckpt_path={str(ckpt_path)!r} has trained {', '.join(sorted(others)[:3])}, which the peft format has no "
            "place for; `python train.py merge` writes a plain model"
        )

    with writing(output, needed=lambda: tensor_bytes(delta.values())), torch.inference_mode():
        difference = write_checked(model, layers, saved, output)
    print(f"largest difference of a logit, exported against trained: {difference:.1e}")
    print(f"wrote {output / 'adapter_model.safetensors'} and adapter_config.json")
    arguments = {"pretrained": bool(model.pretrained), "num_classes": model.num_classes} | model.backbone_args
    if isinstance(model.pretrained, str):
        arguments["pretrained_cfg_overlay"] = {"file": model.pretrained}
    options = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    print(f"base = timm.create_model({model.backbone_name!r}, {options})")
    print(f"model = peft.PeftModel.from_pretrained(base, {str(output)!r})")


def write_checked(model: Any, layers: dict[str, Any], saved: dict[str, Any], output: Path) -> float:
    """Write a peft adapter into a new folder, after a check of what was written.

    Args:
        model: The trained model.
        layers: Its updates by the names of the layers.
        saved: Tensors that trained in full.
        output: New folder.

    Returns:
        Largest difference of a logit between the written and the trained model.

    Raises:
        ValueError: If the outputs differ.
    """
    import torch

    from checkpoints.atomic import move_files
    from checkpoints.peft import read_peft, write_peft

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        write_peft(Path(folder), layers, saved)
        written_layers, written_head = read_peft(Path(folder))
        written = model.merge()
        for name, layer in written_layers.items():
            written.get_submodule(name).weight.copy_(layer.merge_into(model.backbone.get_submodule(name).weight))
        for name, tensor in written_head.items():
            written.get_parameter(name).copy_(tensor)
        images = torch.rand(4, *model.input_config["input_size"]) * 2 - 1
        difference = float((written(images) - model(images)).abs().max())
        if difference > 1e-3:
            raise ValueError(f"the exported adapter differs by {difference:.1e} in its logits; nothing was written")
        move_files(Path(folder), output)
    return difference


def export_packed(model: Any, delta: dict[str, Any], ckpt_path: Path, output: Path, format: str) -> None:
    import torch

    from checkpoints import packed
    from checkpoints.atomic import write_atomically, writing
    from methods.bi_adapter import SETTINGS, BiAdapter
    from methods.layers import low_bit

    if not isinstance(model, BiAdapter):
        raise ValueError(
            f"format={format!r} is for low-bit adapters, and the method of this checkpoint is {model.method_name()}; "
            "its adapter folder is the smallest file of it"
        )
    tensors, records = model.stored(), model.records()
    known = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    others = [name for name, tensor in delta.items() if tensor.untyped_storage().data_ptr() not in known]
    if others:
        raise ValueError(
            f"ckpt_path={str(ckpt_path)!r} has trained {', '.join(sorted(others)[:3])}, which format={format!r} has no "
            "place for"
        )
    payload = low_bit.write_payload(tensors, records, model.bi_codebook)
    settings: dict[str, Any] = {key: getattr(model, option) for key, option in SETTINGS.items()}
    backbone = {name: getattr(model, name) for name in ("pretrained", "backbone_args", "class_names")}
    header = model.description() | settings | backbone
    data = payload if format == "raw" else packed.add_header(payload, header, records)

    def write(path: Path) -> None:
        path.write_bytes(data)
        written = low_bit.read_payload(packed.split_header(path.read_bytes())[1], records, model.bi_codebook)
        for record in records:
            expected = tensors[record.name].detach()
            if record.bits < 32:
                expected = low_bit.effective(expected, record.bits, model.bi_codebook)
            if not torch.allclose(written[record.name], expected, rtol=0, atol=1e-6):
                raise ValueError(f"{record.name} cannot be read back as it was; nothing was written")

    with writing(output):
        write_atomically(output, write, lambda: len(data))
    kb = f"{len(payload) / 1024:,.1f} KB"
    print(f"wrote {output}: {len(payload):,} bytes of weights ({kb}), {len(data) - len(payload):,} of a header")
    options = "" if format == "packed" else f" --backbone {model.backbone_name}"
    options += "" if format == "packed" else "".join(f" --{SETTINGS[key]} {settings[key]}" for key in SETTINGS)
    print("to test, predict or merge, make it an adapter folder:")
    print(f"python train.py import_packed --packed {output} --output ADAPTER{options}")


def low_rank_layers(model: Any) -> dict[str, Any]:
    """The updates of a LoRA or DoRA, each as one pair of A and B for the whole layer.

    Raises:
        ValueError: If the method is another one.
    """
    from backbones.anatomy import separate_bias
    from checkpoints.peft import LowRankLayer
    from methods.dora import Decomposed, DoRALinear
    from methods.layers.low_rank import LowRank
    from methods.layers.low_rank_layers import LoRALinear

    updated = [(n, m) for n, m in model.backbone.named_modules() if "lora" in m._modules]
    known = all(type(m) in (LoRALinear, DoRALinear) and type(m.lora) in (LowRank, Decomposed) for _, m in updated)
    if not (updated and known):
        raise ValueError(
            f"the method of this checkpoint is {model.method_name()}, and the peft format is for LoRA and DoRA on "
            "plain linear layers; `python train.py merge` writes a plain model"
        )
    bare = [name for name, _ in updated if separate_bias(model.backbone, name) is not None]
    if bare:
        raise ValueError(
            f"{bare[0]}: timm reads the weight of this layer without calling it, so that an update of peft would have "
            "no effect; `python train.py merge` writes a plain model"
        )
    layers = {}
    for name, linear in updated:
        lora, blocks = linear.lora, len(linear.lora.rows)
        # updates of q and v alone are one of rank 2 r, whose B is zero where an output does not see an A
        A, parts = lora.factors()
        B = parts.new_zeros(linear.out_features, len(A))
        for (first, last), part, b in zip(lora.rows, B.chunk(blocks, dim=1), parts.chunk(blocks), strict=True):
            part[first:last] = b
        magnitude = None
        if isinstance(lora, Decomposed):
            magnitude = linear.weight.norm(dim=1)  # rows without an update keep their norm
            for (first, last), values in zip(lora.rows, lora.magnitude.chunk(blocks), strict=True):
                magnitude[first:last] = values
        layers[name] = LowRankLayer(A, B, lora.scale, magnitude)
    return layers
