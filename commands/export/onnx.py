"""ONNX files of trained models, compared with the model before they get their name."""

import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from checkpoints.atomic import write_atomically
from datamodules.image_module import ImageModule

MOST_BYTES = 2_000_000_000  # of a protobuf file


class Images(nn.Module):
    """A trained model as a function of normalised images (B, C, H, W).

    Args:
        model: The trained model.
        backbone: Its merged backbone, or None for the model as it was trained.
    """

    def __init__(self, model: Any, backbone: nn.Module | None) -> None:
        super().__init__()
        self.model, self.backbone = model, backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images) if self.backbone is None else self.model.outputs_with(self.backbone, images)


def export_onnx(
    model: Any, output: Path, merged: bool | None, quantize: Literal["int8"] | None, data: ImageModule | None
) -> None:
    """Write a trained model as an ONNX file with any batch size.

    Args:
        model: The trained model.
        output: New file.
        merged: Whether the delta is merged into the weights before; None to do so if the method merges.
        quantize: ``int8`` for weights of linear layers in 8 bits, None for fp32.
        data: Data whose test images show what the 8 bits cost.

    Raises:
        ValueError: If a package is missing, or the written model has other outputs.
        TypeError: If ``merged`` is asked of a method that does not merge, or the model finds objects.
    """
    if model.targets == "objects":
        raise TypeError(
            f"{type(model).__name__} finds another number of objects in each image, which no ONNX file of this export "
            "holds: `python train.py merge` writes its backbone and its head"
        )
    check_packages()
    merged = model.mergeable if merged is None else merged
    network = Images(model, model.merge() if merged else None).eval()
    model.fix_shapes()
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    if size > MOST_BYTES:
        raise ValueError(f"the model has {size:,} bytes, and an ONNX file holds at most {MOST_BYTES:,}")
    if data is not None:
        data.follow(model)

    def write(path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder, "fp32.onnx")
            save(network, plain, model.input_config["input_size"], facts(model, merged, data))
            print(f"largest difference of a logit, ONNX against trained: {check(network, plain, model):.1e}")
            if quantize is not None:
                to_int8(plain, path)
                compare(model, plain, path, data)
            else:
                path.write_bytes(plain.read_bytes())

    write_atomically(output, write)
    print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB), {'merged' if merged else 'not merged'}")
    shape = ", ".join(map(str, model.input_config["input_size"]))
    print(f"input: images (batch, {shape}), normalised by the mean and std in the metadata of the file; output: logits")


def check_packages() -> None:
    """Refuse to go on without the packages of the extra ``onnx``.

    Raises:
        ValueError: With the command that installs them.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f'format=onnx needs {error.name}: pip install -e ".[onnx]"') from error


def facts(model: Any, merged: bool, data: ImageModule | None) -> dict[str, str]:
    """Metadata of the file, as text: how to prepare images, and the names of the outputs."""
    config = model.input_config
    mean, std = config["mean"], config["std"]
    if data is not None:
        mean, std = ([value / 255 for value in values.flatten().tolist()] for values in normalization(data))
    names = model.identity().get("class_names") or []
    plain = {"mean": list(mean), "std": list(std), "class_names": names}
    texts = {"method": model.method_name(), "backbone": str(model.description()["backbone"]), "merged": str(merged)}
    return texts | {name: json.dumps(value) for name, value in plain.items()}


def normalization(data: ImageModule) -> tuple[Tensor, Tensor]:
    """Mean and std (C, 1, 1) of the pixels of a datamodule, from 0 to 255."""
    return data.normalize.mean, data.normalize.std


def save(network: nn.Module, path: Path, size: tuple[int, int, int], metadata: dict[str, str]) -> None:
    """Write a network as ONNX, in fp32 and for any batch size.

    Args:
        network: Function of images (B, C, H, W).
        path: File to write.
        size: Size (C, H, W) of an image.
        metadata: Texts by name for the file.
    """
    import onnx

    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns about its own code
        try:
            program: Any = torch.onnx.export(
                network,
                (torch.zeros(2, *size),),  # two images, because torch takes the size 1 for a constant
                dynamo=True,
                dynamic_shapes={"images": {0: batch}},
                input_names=["images"],
                output_names=["logits"],
                verbose=False,
            )
        except Exception as error:  # torch has many kinds, each with pages of text around its reason
            reason = str(error.__cause__ or error).partition("\n")[0]
            raise ValueError(
                f"torch cannot write {metadata.get('method')} as ONNX ({reason}); nothing was written"
            ) from error
    proto = program.model_proto
    for name, text in metadata.items():
        proto.metadata_props.add(key=name, value=text)
    onnx.save(proto, str(path))


def session(path: Path) -> Any:
    """onnxruntime session of a file, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(session: Any, images: Tensor) -> Tensor:
    """Outputs of a session for images (B, C, H, W)."""
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def random_images(model: Any, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, *model.input_config["input_size"], generator=generator) * 2 - 1


def check(network: nn.Module, path: Path, model: Any) -> float:
    """Largest difference of a logit between a written and the trained model, over two batch sizes.

    Raises:
        ValueError: If the outputs differ.
    """
    written, largest, difference = session(path), 1.0, 0.0
    for count in (1, 3):
        images = random_images(model, count)
        with torch.no_grad():
            expected = model(images)
        found = run(written, images)
        if found.shape != expected.shape:
            raise ValueError(f"the ONNX model gives {tuple(found.shape)} for {count} images; nothing was written")
        largest = max(largest, float(expected.abs().max()))
        difference = max(difference, float((found - expected).abs().max()))
    if not difference <= 1e-3 * largest:
        raise ValueError(f"the ONNX model differs by {difference:.1e} in its logits; nothing was written")
    return difference


def to_int8(plain: Path, path: Path) -> None:
    """Write a copy of an ONNX model whose linear layers have weights in 8 bits, with a scale for each output.

    Their inputs are rounded to 8 bits while the model runs, so that no calibration images are needed.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    types = ["MatMul", "Gemm"]  # not Conv, because onnxruntime's integer convolutions are slower than those in fp32
    logging.disable(logging.WARNING)  # advice about convolutions, which stay as they are
    try:
        options = {"op_types_to_quantize": types, "per_channel": True, "weight_type": QuantType.QInt8}
        quantize_dynamic(str(plain), str(path), **options)
    finally:
        logging.disable(logging.NOTSET)


def compare(model: Any, plain: Path, path: Path, data: ImageModule | None) -> None:
    """Print what the 8 bits cost: the headline metric of both files on test images, or the difference of logits."""
    first, second = session(plain), session(path)
    if data is None:
        images = random_images(model, 8)
        difference = float((run(first, images) - run(second, images)).abs().max())
        print(f"largest difference of a logit, int8 against fp32: {difference:.1e} (--data shows the accuracy)")
        return
    samples = data.samples("test")
    if samples is None:
        raise ValueError("the data have no test split, on which int8 and fp32 are compared; leave --data out")
    split = data.dataset("test", samples)
    metrics = {"fp32": (first, model.metrics()), "int8": (second, model.metrics())}
    for batch in data.loader(split, data.eval_batch_size):
        batch = data.on_device(batch)
        for network, metric in metrics.values():
            model.update(metric, run(network, batch.inputs), batch)
    headline = model.headline
    scores = {name: headline.scale * float(metric.compute()[headline.name]) for name, (_, metric) in metrics.items()}
    print(f"{headline.label} of {len(split)} test images: " + ", ".join(f"{n} {v:.2f}" for n, v in scores.items()))
