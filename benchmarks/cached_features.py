"""Training over features of a frozen backbone that are computed once, and many settings at once.

    python benchmarks/cached_features.py --json rows.json

All variants live in one process and take turns, in another order every round; the clock is that of
``benchmarks/step_time.py``. What is printed are medians of ratios of the same round, on random weights and images:

- an epoch of LAST on the images, and one of SSF, over an epoch of LAST on cached features;
- the extraction of the features of the linear probe, over an epoch on them;
- an epoch of K solo runs of LAST on the images, over one of K members at once, with and without cached features.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from benchmarks.step_time import interleave
from lightning_modules.batch import Batch, Features
from lightning_modules.classification import Classification
from methods import METHODS, compose
from methods.core.parallel_settings import ParallelSettings


class Run:
    """A model with its optimizer, and what one epoch of it is."""

    def __init__(self, model: Any, device: str) -> None:
        self.model = model.to(device).train()
        self.members = model.each() if isinstance(model, ParallelSettings) else [model]
        trained = [p for member in self.members for p in member.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def epoch(self, batches: list[Batch]) -> None:
        for batch in batches:
            self.model.loss(batch).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    @torch.no_grad()
    def features(self, batches: list[Batch]) -> list[Batch]:
        """All batches as a cache holds them."""
        return [batch._replace(inputs=Features(self.members[0].frozen_features(batch.inputs))) for batch in batches]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rank", type=int, default=8, help="of LAST's attention")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the rows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    def build(method: str, **options: Any) -> Any:
        task = compose(METHODS[method], task=Classification)
        return task(backbone=args.backbone, pretrained=False, num_classes=100, **options)

    def run(model: Any) -> Run:
        if not isinstance(model, ParallelSettings):
            model.configure_model()
        return Run(model, args.device)

    last, ssf, probe = run(build("last", last_rank=args.rank)), run(build("ssf")), run(build("linear_probe"))
    together = run(ParallelSettings(build("last", last_rank=args.rank), {"seed": list(range(args.members))}))
    count, size = args.images // args.batch_size, last.model.input_config["input_size"]
    images = [torch.randn(args.batch_size, *size, device=args.device) for _ in range(count)]
    batches = [Batch.of(x, torch.randint(100, (len(x),), device=args.device)) for x in images]
    cached, pooled = last.features(batches), probe.features(batches)

    def ratios(base: str, **works: Any) -> dict[str, float]:
        return interleave(works, base, args.rounds, warmup=1, device=args.device)

    found = ratios(
        "cached", cached=lambda: last.epoch(cached), images=lambda: last.epoch(batches), ssf=lambda: ssf.epoch(batches)
    )
    # an epoch on pooled features is too short for the clock: a hundred of them
    heads = ratios(
        "epochs",
        epochs=lambda: probe.epoch(pooled * 100),
        extraction=lambda: probe.features(batches),
    )
    solo = ratios("cached", cached=lambda: together.epoch(cached), images=lambda: together.epoch(batches),
                  solo=lambda: last.epoch(batches))  # fmt: skip
    rows = [
        {"what": "LAST on images / cached", "times": round(found["images"], 2), "goal": 5},
        {"what": "SSF / LAST cached", "times": round(found["ssf"], 2), "goal": 6},
        {"what": "linear probe: extraction / epoch", "times": round(100 * heads["extraction"], 1), "goal": 100},
        {
            "what": f"{args.members} solo runs / members on images",
            "times": round(args.members * solo["solo"] / solo["images"], 2),
            "goal": 2,
        },
        {
            "what": f"{args.members} solo runs / members cached",
            "times": round(args.members * solo["solo"], 2),
            "goal": 2,
        },
    ]
    print(f"{args.backbone}, {args.images} images in batches of {args.batch_size}, LAST of rank {args.rank}, "
          f"{args.device}, {args.rounds} rounds, torch {torch.__version__}")  # fmt: skip
    for row in rows:
        print(f"{row['what']:>40} {row['times']:>8} (goal {row['goal']})")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
