"""What cached images cost beside the training step.

    python benchmarks/data_handling.py --json rows.json

An epoch of the training loader over images that lie decoded in memory, with all that is done to a batch on the device,
against as many training steps. The clock is that of ``benchmarks/step_time.py``; medians of rounds that take turns.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch
from lightning.fabric.utilities import move_data_to_device

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.step_time import Variant, clock
from datamodules.image_dataset import ImageDataset
from lightning_modules.batch import Batch
from methods import METHODS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    alone = [name for name, method in METHODS.items() if method.standalone]
    parser.add_argument("--method", choices=alone, default="ssf", metavar="METHOD")
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    parser.add_argument("--data", default="assets/fashion_mnist_1k", help="whose first test images are used")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"], help="on a GPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the rows")
    args = parser.parse_args()
    torch.set_num_threads(1)

    variant = Variant(args.method, METHODS[args.method], args)
    data = ImageDataset(args.data, batch_size=args.batch_size, cache="ram")
    data.configure(variant.model.input_config)
    samples = data.samples("test")
    assert samples is not None, "the data have no test split"
    data.splits["train"] = data.dataset("train", samples.keep(list(range(args.images))))
    loader = data.train_dataloader()

    def prepared(batch: Batch) -> Batch:
        return data.on_after_batch_transfer(move_data_to_device(batch, args.device), 0)

    def epoch() -> None:
        for batch in loader:
            prepared(batch)

    batch = prepared(next(iter(loader)))
    for _ in range(2):
        variant.step(batch)
    rounds = [(clock(epoch, args.device), clock(lambda: variant.step(batch), args.device)) for _ in range(args.rounds)]
    handling, step = (statistics.median(times) for times in zip(*rounds, strict=True))
    row = {
        "images": args.images,
        "handling_s": round(handling, 3),
        "training_s": round(step * len(loader), 3),
        "handling_over_training": round(handling / (step * len(loader)), 4),
    }
    print(f"{args.method}, {args.backbone}, batch {args.batch_size}, {args.device}, {args.rounds} rounds, "
          f"torch {torch.__version__}")  # fmt: skip
    for key, value in row.items():
        print(f"{key:>24} {value}")
    if args.json:
        args.json.write_text(json.dumps([row], indent=2))


if __name__ == "__main__":
    main()
