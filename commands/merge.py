"""Merge a trained method into plain timm weights."""

import json
import tempfile
from pathlib import Path
from typing import Any, Literal


def merge(
    ckpt_path: Path,
    output: Path,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    allow_extra: bool = False,
) -> None:
    """Write a plain timm model with the outputs of the trained method.

    Args:
        ckpt_path: Checkpoint file or adapter folder of a run.
        output: New folder for ``model.safetensors`` and ``config.json`` in timm's layout of the hub, and for a model
            card, ``README.md``, with the results of the run.
        dtype: Type of the stored weights; merging itself is done in float32.
        allow_extra: Whether to write a model that timm alone cannot load, because no weight of the plain model can
            take some of the trained tensors. They stay in the file under their own names.
    """
    # imported late, so that --help is fast
    import torch

    from checkpoints.atomic import tensor_bytes, writing
    from checkpoints.model_card import read_result
    from methods import PEFTMethod

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"output={str(output)!r} exists and is not empty; nothing was written")
    model: Any = PEFTMethod.from_delta(ckpt_path)
    merged: Any = model.merge()

    merged = merged.to(getattr(torch, dtype))
    with writing(output, needed=lambda: tensor_bytes(merged.state_dict().values())):
        extra = write_merged(model, merged, output, read_result(ckpt_path), allow_extra)
    print(f"wrote {output / 'model.safetensors'} ({(output / 'model.safetensors').stat().st_size / 1e6:.1f} MB)")
    if extra:
        print(f"merged except {', '.join(extra)}: no weight of the plain model can take it")
        return
    print(f"timm.create_model('local-dir:{output}', pretrained=True)")
    same_shape = not model.backbone_args and set(merged.state_dict()) == model.plain_keys
    if not same_shape or model.backbone_name.startswith("local-dir:"):
        return  # the name alone does not define its shape
    architecture = merged.pretrained_cfg["architecture"]
    arguments = f"num_classes={merged.num_classes}, checkpoint_path='{output / 'model.safetensors'}'"
    print(f"timm.create_model('{architecture}', {arguments})  # the same by name")


def write_merged(model: Any, merged: Any, output: Path, result: dict[str, Any], allow_extra: bool) -> list[str]:
    """Write a merged model into a new folder, after a check of what was written.

    Args:
        model: The trained model.
        merged: The plain model in the dtype of the file.
        output: New folder.
        result: Results of the run for the model card, if they are known.
        allow_extra: Whether the file may hold tensors that timm alone cannot load.

    Returns:
        Names of such tensors.

    Raises:
        ValueError: If the written model lacks tensors or has other outputs.
    """
    import torch

    from checkpoints.atomic import move_files
    from checkpoints.model_card import write_card

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        model.export(merged, Path(folder))
        config = json.loads((Path(folder) / "config.json").read_text())
        config["pretrained_cfg"]["tag"] = model.method_name().lower()  # not the one of the weights before
        # transformers passes the number of classes itself, and refuses it among the arguments
        if config.get("model_args", {}).get("num_classes") == config["num_classes"]:
            del config["model_args"]["num_classes"]
        (Path(folder) / "config.json").write_text(json.dumps(config, indent=2))
        extra = extra_keys(model, merged, folder)
        if extra and not allow_extra:
            raise ValueError(
                f"{model.method_name()} on {model.backbone_name}: no weight of the plain model can take "
                f"{', '.join(extra)}; nothing was written, because timm could not load it. Test and predict with "
                "--ckpt_path, or pass --allow_extra to write these tensors too"
            )
        if not extra:
            check_outputs(model, folder, exact=next(merged.parameters()).dtype is torch.float32)
        task = next(base.__name__ for base in type(model).__mro__ if base.__module__.startswith("lightning_modules."))
        known = {"task": task, "pretrained": model.pretrained} | model.description() | result
        write_card(Path(folder), known, "timm", load_lines(output), config["pretrained_cfg"].get("license"))
        move_files(Path(folder), output)
    return extra


def load_lines(folder: Path) -> str:
    """Lines of Python that load a merged model, from its folder or from the hub."""
    return f"""import timm
model = timm.create_model("local-dir:{folder.name}", pretrained=True)  # or "hf-hub:USER/NAME"
# the same by transformers
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained("{folder.name}")"""


def check_outputs(model: Any, folder: str, exact: bool) -> None:
    """Compare a written timm model with the trained one.

    Args:
        model: The trained model.
        folder: Folder of the written model.
        exact: Whether the file is in float32; otherwise its rounding is allowed for.

    Raises:
        ValueError: If the outputs differ.
    """
    import timm
    import torch

    written = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    rows, *shape = model.example_batch().inputs.shape  # a clip has several rows
    images = torch.rand(4 * rows, *shape) * 2 - 1
    with torch.inference_mode():
        expected = model.logits(model(images))
        difference = float((model.logits(model.outputs_with(written, images)) - expected).abs().max())
    largest = float(expected.abs().max())
    if not difference <= (1e-4 * max(1.0, largest) if exact else 0.05 * largest):
        raise ValueError(f"the merged model differs by {difference:.1e} in its logits; nothing was written")
    print(f"largest difference of a logit, merged against unmerged: {difference:.1e}")


def extra_keys(model: Any, merged: Any, folder: str) -> list[str]:
    """Tensors of a merged model that the timm model of the written folder lacks."""
    import timm

    keys = set(merged.state_dict())
    if keys == model.plain_keys:
        return []
    return sorted(keys - set(timm.create_model(f"local-dir:{folder}", pretrained=False).state_dict()))
