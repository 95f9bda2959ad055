"""Write micro-clips as folders of frames, with the list files of both labels."""

import tempfile
from pathlib import Path

from PIL import Image

from datamodules.micro.clips import COUNTS, MOTIONS, draw, item_names


def build(output: Path) -> None:
    """Write all clips; the whole folder or nothing.

    The folder has the form of ``VideoList``: the lists of garments are in ``items``, those of motions in ``motions``.

    Args:
        output: New folder.

    Raises:
        FileExistsError: If the folder exists.
    """
    if output.exists():
        raise FileExistsError(f"output={str(output)!r} exists; remove it, or name another folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
        root = Path(temporary) / output.name
        for kind, names in {"items": item_names(), "motions": MOTIONS}.items():
            (root / kind).mkdir(parents=True)
            (root / kind / "classes.txt").write_text("\n".join(names) + "\n")
        for split, count in COUNTS.items():
            lines: dict[str, list[str]] = {"items": [], "motions": []}
            for index in range(count):
                clip, path = draw(split, index), f"clips/{split}/{index:06d}"
                (root / path).mkdir(parents=True)
                for number, frame in enumerate(clip.frames):
                    Image.fromarray(frame).save(root / path / f"{number}.png")
                lines["items"].append(f"{path} {clip.item}\n")
                lines["motions"].append(f"{path} {clip.motion}\n")
            for kind, rows in lines.items():
                (root / kind / f"{split}.txt").write_text("".join(rows))
            print(f"{split}: {count} clips")
        root.rename(output)
