"""Write micro-VTAB as the folders and lists of VTAB-1k, from shipped and from drawn images."""

import io
import tempfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from datamodules.micro.shapes import SIZE, SPLITS, draw
from datamodules.vtab import MicroVTAB

ASSETS = Path(__file__).resolve().parents[2] / "assets"


def build(output: Path) -> None:
    """Write the folder of every dataset, with its images and four lists; all of them or nothing.

    Args:
        output: New folder of the suite.

    Raises:
        FileExistsError: If the folder exists.
    """
    if output.exists():
        raise FileExistsError(f"output={str(output)!r} exists; remove it, or name another folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
        root = Path(temporary) / output.name
        for task in MicroVTAB.tasks:
            lines = {}
            for split in SPLITS:
                count = {"train800": 800, "val200": 200}.get(split, MicroVTAB.test_sizes[task])
                drawn = task in MicroVTAB.groups["structured"]
                samples = (draw(task, split, i) for i in range(count)) if drawn else shipped(f"{task}_1k", split, count)
                lines[split] = dump(root / task, split, samples)
            for name, text in (lines | {"train800val200": lines["train800"] + lines["val200"]}).items():
                (root / task / f"{name}.txt").write_text("".join(text))
            print(f"{task}: {', '.join(f'{split} {len(text)}' for split, text in lines.items())}")
        root.rename(output)


def dump(folder: Path, split: str, samples: Iterable[tuple[Image.Image, int]]) -> list[str]:
    """Write the images of a split as PNG, which loses nothing (VTAB-1k's own are JPEG).

    Args:
        folder: Folder of the dataset.
        split: Name of the list.
        samples: Images and their labels.

    Returns:
        Lines ``path label`` of the list.
    """
    (folder / "images" / split).mkdir(parents=True)
    lines = []
    for index, (image, label) in enumerate(samples):
        path = f"images/{split}/{index:06d}.png"
        image.save(folder / path)
        lines.append(f"{path} {label}\n")
    return lines


def shipped(name: str, split: str, count: int) -> Iterable[tuple[Image.Image, int]]:
    """First images of a shipped split and their labels, in the size and mode of the drawn ones."""
    from pyarrow import parquet

    for row in parquet.read_table(ASSETS / name / f"{split}.parquet").slice(0, count).to_pylist():
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        yield image.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB"), row["label"]
