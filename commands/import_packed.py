"""Turn the packed file of a low-bit adapter into an adapter folder."""

from pathlib import Path
from typing import Any, Literal


def import_packed(
    packed: Path,
    output: Path,
    backbone: str | None = None,
    pretrained: bool | str | None = None,
    backbone_args: dict[str, Any] | None = None,
    bi_form: Literal["adaptformer", "lora"] | None = None,
    bi_bits: int | None = None,
    bi_dim: int | None = None,
    bi_scale: float | None = None,
    bi_head: bool | None = None,
    bi_codebook: Literal["l1_optimal", "official"] | None = None,
    num_classes: int | None = None,
    class_names: list[str] | None = None,
) -> None:
    """Write an adapter folder that ``train.py test``, ``predict`` and ``merge`` read.

    Its matrices are the quantised ones, in fp32 and without a quantiser (``bi_bits: 32``): snapped again they would
    become others, and training cannot go on from them. A file of ``export --format packed`` holds all settings; a
    file without a header, as the authors of the method publish them, needs the options.

    Args:
        packed: The file.
        output: New folder.
        backbone: Full timm tag of the model that the adapter was trained on.
        pretrained: ``true`` for the weights of the tag, or the path of a weight file.
        backbone_args: Further arguments of ``timm.create_model``.
        bi_form: ``adaptformer`` or ``lora``.
        bi_bits: Bits of a weight.
        bi_dim: Width of the bottleneck, or rank.
        bi_scale: Factor of the adapter's output.
        bi_head: Whether the classifier is a 1-bit matrix; not by default.
        bi_codebook: Levels of the quantiser; ``official`` by default in a file without a header.
        num_classes: Outputs of the classifier.
        class_names: Names of the classes, in the order of the classifier's outputs.
    """
    # imported late, so that --help is fast
    import torch

    from checkpoints import packed as packed_file
    from checkpoints.delta import check_backbone, write_adapter
    from lightning_modules.classification import Classification
    from methods import compose
    from methods.bi_adapter import SETTINGS, BiAdapter
    from methods.layers import low_bit

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"output={str(output)!r} exists and is not empty; nothing was written")
    if not packed.is_file():
        raise FileNotFoundError(f"packed={str(packed)!r}: no such file")
    values = (bi_form, bi_bits, bi_dim, bi_scale, bi_head, bi_codebook, num_classes)
    said = {key: value for key, value in zip(SETTINGS, values, strict=True) if value is not None}
    place = {"backbone": backbone, "pretrained": pretrained, "backbone_args": backbone_args, "class_names": class_names}
    place = {key: value for key, value in place.items() if value is not None}
    try:
        header, payload = packed_file.split_header(packed.read_bytes())
        for key in said.keys() & header.keys():
            if header[key] != said[key]:
                raise ValueError(f"{SETTINGS[key]} is {header[key]!r} in its header, and here {said[key]!r}")
        defaults: dict[str, Any] = {"bihead": False, "codebook": "official"}
        settings = (header or defaults) | said | place
        missing = [SETTINGS.get(key, key) for key in ("backbone", *SETTINGS) if key not in settings]
        if missing:
            kind = "its header is not complete" if header else "it has no header"
            raise ValueError(f"{kind}; say {', '.join(f'--{name}' for name in missing)}")
        if settings["bits"] not in low_bit.BITS:
            raise ValueError(f"bi_bits={settings['bits']}: expected 1, 2, 4, 8, or 32 for no quantisation")
        classes = settings.get("class_names") or []
        if classes and len(classes) != settings["num_classes"]:
            raise ValueError(f"{len(classes)} class_names for num_classes={settings['num_classes']}")
        options: dict[str, Any] = {option: settings[key] for key, option in SETTINGS.items()} | {
            "bi_bits": 32,
            "bi_head": False,
        }
        options |= {key: settings.get(key) for key in ("backbone", "pretrained", "backbone_args")}
        model: Any = compose(BiAdapter, task=Classification)(**options)
        model.configure_model()
        records = model.records(settings["bits"], settings["bihead"])
        # the backbone may have moved, but its weights must be equal
        if "fingerprint" in header:
            check_backbone(model.description(), header)
        if header and header.get("records") != packed_file.table(records):
            raise ValueError("its header lists other tensors than an adapter of its settings has")
        tensors = low_bit.read_payload(payload, records, settings["codebook"])
    except (ValueError, TypeError) as error:  # of a header whose values are of another kind
        raise ValueError(f"packed={str(packed)!r} cannot be read: {error}") from error

    with torch.no_grad():
        for name, tensor in model.stored().items():
            tensor.copy_(tensors.get(name, torch.zeros_like(tensor)))  # a 1-bit classifier has no bias
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    model.adopt({"class_names": classes})
    model.on_save_checkpoint(checkpoint)
    write_adapter(output, checkpoint)
    print(f"wrote {output / 'adapter_model.safetensors'} and adapter_config.json")
    print(f"python train.py test --ckpt_path {output} --data ...")
