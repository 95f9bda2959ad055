"""Training step of methods under a detector, against a frozen backbone, in one interleaved run.

    python benchmarks/detection.py --json rows.json
    python benchmarks/detection.py --methods lora,dyt --head faster_rcnn --backbone vit_tiny_patch16_224

All variants live in one process and take turns, in another order every round; see ``step_time.py``. The floor is a step
through a backbone in which almost nothing trains: a forward pass, the gradients of all activations, and a neck and a
head that train in full, as they do under every method. HST has an own pyramid in the place of the neck's first part.
Batches of three sizes take turns. What is printed are medians of ratios to the floor of the same round.
"""

import argparse
import json
import statistics
import sys
from inspect import signature
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from benchmarks.step_time import Floor, Variant, ratios, timed
from lightning_modules.batch import Batch
from lightning_modules.detection import Detection
from methods import METHODS, PEFTMethod, compose

CLASSES = 80
OBJECTS = 8  # of an image
OPTIONS = {"hst_dims": [32, 64, 128, 192]}  # half of the paper's, as ViT-S has half the width of ViT-B


class DetectionVariant(Variant):
    """One model for detection with an optimizer."""

    def __init__(self, name: str, method: type[PEFTMethod], args: argparse.Namespace, **given: Any) -> None:
        torch.manual_seed(0)
        self.name = name
        cls = compose(method, task=Detection)
        known = {option for c in cls.__mro__ for option in signature(c.__init__).parameters}  # type: ignore[misc]
        options = {option: value for option, value in given.items() if option in known}
        own = {"backbone": args.backbone, "backbone_args": {"dynamic_img_size": True}, "pretrained": False}
        own |= {"num_classes": CLASSES, "head": args.head, "head_channels": args.channels, "box_channels": 256}
        own |= {"proposals": 100, "regions": 64, "anchor_sizes": [16, 32, 64, 96, 128]}
        self.model: Any = cls(**own | options).to(args.device)
        self.model.configure_model()
        self.model.to(args.device).train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.counts = self.model.parameter_counts()
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        self.autocast = False


def batch_of(count: int, size: tuple[int, int], masks: bool, device: str) -> Batch:
    """Noise (B, 3, H, W) with objects at random places."""
    height, width = size
    targets = []
    for _ in range(count):
        corner = torch.rand(OBJECTS, 2, device=device) * torch.tensor([width / 2, height / 2], device=device)
        boxes = torch.cat([corner, corner + torch.tensor([width / 3, height / 3], device=device)], dim=1)
        labels = torch.randint(1, CLASSES + 1, (OBJECTS,), device=device)
        target: dict[str, Any] = {"boxes": boxes, "labels": labels, "size": size, "original": size}
        if masks:
            target["masks"] = torch.randint(2, (OBJECTS, *size), dtype=torch.uint8, device=device)
        targets.append(target)
    return Batch(torch.randn(count, 3, *size, device=device), targets, torch.ones(count, dtype=torch.bool))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="lora,ssf,hst", help="names separated by commas")
    parser.add_argument(
        "--options", type=json.loads, default=OPTIONS, help="options of the methods that know them, in JSON"
    )
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--size", type=int, default=160, help="short side of the images in pixels, a multiple of 32")
    parser.add_argument("--head", default="mask_rcnn", choices=["faster_rcnn", "mask_rcnn", "cascade_mask_rcnn"])
    parser.add_argument("--channels", type=int, default=64, help="channels of neck and head")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=3, help="steps before the clock runs")
    parser.add_argument("--json", type=Path, help="file for the rows")
    args = parser.parse_args()
    names = args.methods.split(",")
    unknown = set(names) - set(METHODS)
    if unknown:
        parser.error(f"unknown methods {', '.join(sorted(unknown))}; known: {', '.join(METHODS)}")
    torch.set_num_threads(1)

    variants = [DetectionVariant("floor", Floor, args)]
    variants += [DetectionVariant(name, METHODS[name], args, **args.options) for name in names]
    sizes = [(args.size, args.size), (args.size, args.size + 32), (args.size + 64, args.size)]
    batches = [batch_of(args.batch_size, size, "mask" in args.head, args.device) for size in sizes]
    turns = {variant.name: cycle(batches) for variant in variants}  # equal for all variants of a round
    works = {v.name: (lambda v=v: v.step(next(turns[v.name]))) for v in variants}
    times = timed(works, args.rounds, args.warmup, args.device)
    steps = ratios(times, "floor")
    saved = {variant.name: variant.saved_bytes(batches[0]) for variant in variants}
    rows = [
        {
            "method": variant.name,
            "step_ms": round(1e3 * statistics.median(times[variant.name]), 1),
            "step_over_floor": round(steps[variant.name], 3),
            "saved_over_floor": round(saved[variant.name] / saved["floor"], 3),
            **{f"{part}_params": count for part, count in variant.counts.items()},
        }
        for variant in variants
    ]
    shown = ", ".join(f"{height} x {width}" for height, width in sizes)
    print(
        f"{args.backbone}, {args.head} of {args.channels} channels, images of {shown}, "
        f"batch {args.batch_size}, {args.device}, {args.rounds} rounds, torch {torch.__version__}"
    )
    print(" ".join(f"{key:>16}" for key in rows[0]))
    for row in rows:
        print(" ".join(f"{value:>16}" for value in row.values()))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
