"""What it costs to choose weights and channels from data, and to train the choice.

    python benchmarks/scoring.py --parts spt,sweep,gps_memory,gps_step,sct --json rows.json

``spt``         time and peak memory of SPT's scoring pass against a plain forward and backward of the same batches
``sweep``       SPT's 79 budgets at once against 79 calls of topk, on ViT-Ti, and its CPU seconds on ViT-B
``gps_memory``  bytes of gradients and of Adam's state for every weight that GPS selects, and peak memory of a step
``gps_step``    training step of GPS relative to the floor of ``step_time.py``
``sct``         bytes that SCT's scoring pass holds, however many images pass

Images and weights are noise. Times are medians of ratios: variants live in one process and take turns. Peak memory is
what torch holds at once, beside models and batches.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from step_time import Floor, Variant, clock, interleave
from torch import Tensor

from callbacks.measures import peak_bytes
from lightning_modules.batch import Batch
from lightning_modules.classification import Classification
from methods import METHODS, compose
from methods.layers.spt_budget import STEPS, sweep

Row = dict[str, Any]
BATCHES = 4  # of one scoring pass


def model_of(method: str, backbone: str, device: str, **options: Any) -> Any:
    """A method on a backbone with random weights."""
    torch.manual_seed(0)
    cls = compose(METHODS[method], task=Classification)
    return cls(backbone=backbone, pretrained=False, num_classes=100, **options).to(device).eval()


def batches_of(model: Any, args: argparse.Namespace, size: int) -> list[Batch]:
    """Noise, two images of every class that occurs."""
    shape = (size, *model.input_config["input_size"])
    labels = torch.arange(size, device=args.device) // 2 % 100
    return [Batch.of(torch.randn(shape, device=args.device), labels) for _ in range(BATCHES)]


def score(model: Any, batches: list[Batch]) -> Any:
    """The pass of ``ScoreBeforeFit``, without Lightning."""
    with model.build_scorer() as scorer:
        for batch in batches:
            scorer.observe(batch.targets)
            loss = model.score_loss(batch)
            if loss is not None:
                loss.backward()
    return scorer


def train(model: Any, batches: list[Batch]) -> None:
    """Forward and backward as any training does, gradients of a batch dropped before the next."""
    for batch in batches:
        model.loss(batch).backward()
        model.zero_grad()


def forward(model: Any, batches: list[Batch]) -> None:
    with torch.no_grad():
        for batch in batches:
            model.features(batch.inputs)


def only(model: Any, names: list[str]) -> Any:
    """The model with gradients for the named parameters of its backbone alone."""
    for name, parameter in model.backbone.named_parameters():
        parameter.requires_grad_(name in names)
    return model


def with_model(args: argparse.Namespace, backbone: str, batch_size: int) -> argparse.Namespace:
    """Options with a backbone, if ``--backbone`` names no other one, and a batch size."""
    return argparse.Namespace(**vars(args) | {"backbone": args.backbone or backbone, "batch_size": batch_size})


# parts


def spt(args: argparse.Namespace) -> Row:
    backbone = args.backbone or "vit_small_patch16_224"
    model, plain = model_of("spt", backbone, args.device), model_of("spt", backbone, args.device)
    only(plain, plain.score_targets())
    batches = batches_of(model, args, 8)
    works = {"plain": lambda: train(plain, batches), "score": lambda: score(model, batches)}
    ratio = interleave(works, "plain", args.rounds, 1, args.device)["score"]
    held = sum(4 * plain.backbone.get_parameter(name).numel() for name in plain.score_targets())
    peaks = {what: peak_bytes(work, args.device) for what, work in works.items()}
    return {
        "backbone": backbone,
        "batches": f"{BATCHES} x 8",
        "time_over_plain_backward": round(ratio, 3),
        "peak_bytes_plain_backward": peaks["plain"],
        "peak_bytes_scoring": peaks["score"],
        "accumulator_bytes": held,
        "peak_over_plain_plus_accumulator": round(peaks["score"] / (peaks["plain"] + held), 5),
    }


def sweep_of(backbone: str) -> tuple[Any, list[Tensor]]:
    """SPT's pool on a backbone, and made up scores of it, whose scales differ from tensor to tensor."""
    parts = model_of("spt", backbone, "cpu").pool()
    return parts, [torch.rand(part.size) ** 4 * float(torch.rand(1)) for part in parts]


def sweeps(args: argparse.Namespace) -> Row:
    parts, scores = sweep_of("vit_tiny_patch16_224")

    def calls_of_topk() -> None:
        everything = torch.cat(scores)
        for step in range(1, STEPS + 1):
            everything.topk(round(0.02e6 * step))

    ours = [clock(lambda: sweep(parts, scores), "cpu") for _ in range(args.rounds)]
    theirs = clock(calls_of_topk, "cpu")
    large, large_scores = sweep_of("vit_base_patch16_224")
    seconds = sorted(clock(lambda: sweep(large, large_scores), "cpu") for _ in range(3))[1]
    small = sorted(ours)[len(ours) // 2]
    return {
        "scores_vit_tiny": sum(part.size for part in parts),
        "seconds_vit_tiny": round(small, 3),
        "seconds_79_topk_vit_tiny": round(theirs, 3),
        "79_topk_over_ours": round(theirs / small, 1),
        "scores_vit_base": sum(part.size for part in large),
        "seconds_vit_base": round(seconds, 3),
    }


def gps_memory(args: argparse.Namespace) -> Row:
    args = with_model(args, "vit_base_patch16_224", 2)
    floor, variant = Variant("floor", Floor, args), Variant("gps", METHODS["gps"], args)
    batch = batches_of(variant.model, args, args.batch_size)[0]
    entries = [m.values for m in variant.model.modules() if type(m).__name__ == "Entries"]
    peaks = {v.name: peak_bytes(partial(v.step, batch), args.device) for v in (floor, variant)}
    optimizer = torch.optim.Adam(entries, lr=1e-3, foreach=False)
    variant.model.loss(batch).backward()
    optimizer.step()
    selected = sum(values.numel() for values in entries)
    state = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor) and t.numel() > 1]
    held = sum(t.numel() * t.element_size() for t in [*state, *(values.grad for values in entries)])
    frozen = {n: p for n, p in variant.model.backbone.named_parameters() if n in variant.model.selection}
    return {
        "backbone": args.backbone,
        "k": variant.model.gps_k,
        "selected_weights": selected,
        "bytes_of_gradient_and_adam_per_selected_weight": round(held / selected, 2),
        "dense_gradients_left": sum(p.grad is not None for p in frozen.values()),
        "largest_layer_bytes": max(4 * p.numel() for p in frozen.values()),
        "dense_gradient_and_adam_bytes": sum(12 * p.numel() for p in frozen.values()),
        "peak_bytes_step": peaks["gps"],
        "peak_bytes_step_floor": peaks["floor"],
    }


def gps_step(args: argparse.Namespace) -> Row:
    args = with_model(args, "vit_tiny_patch16_224", 16)
    variants = {name: Variant(name, method, args) for name, method in {"floor": Floor, "gps": METHODS["gps"]}.items()}
    batch = batches_of(variants["gps"].model, args, 16)[0]
    works = {name: (lambda variant=variant: variant.step(batch)) for name, variant in variants.items()}
    ratio = interleave(works, "floor", args.rounds, 2 if args.device == "cpu" else 20, args.device)["gps"]
    return {"backbone": args.backbone, "batch_size": 16, "step_over_floor": round(ratio, 3)}


def sct(args: argparse.Namespace) -> Row:
    backbone = args.backbone or "vit_small_patch16_224"
    model = model_of("sct", backbone, args.device)
    batches = batches_of(model, args, 8)
    held = {n: sum(4 * t.numel() for t in score(model, batches[:n]).sums.values()) for n in (1, BATCHES)}
    blocks, tokens, channels = len(model.backbone.blocks), model.backbone.pos_embed.shape[1], model.backbone.embed_dim
    return {
        "backbone": backbone,
        "bytes_held_after_1_batch": held[1],
        f"bytes_held_after_{BATCHES}_batches": held[BATCHES],
        "bytes_of_class_by_channel": 4 * (blocks * 100 * channels + 100),
        "bytes_of_the_features_themselves": 4 * blocks * tokens * channels * 8 * BATCHES,
        "peak_bytes_scoring": peak_bytes(lambda: score(model, batches), args.device),
        "peak_bytes_plain_forward": peak_bytes(lambda: forward(model, batches), args.device),
    }


PARTS = {"spt": spt, "sweep": sweeps, "gps_memory": gps_memory, "gps_step": gps_step, "sct": sct}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="names separated by commas")
    parser.add_argument("--backbone", help="for all parts but sweep; by default each part has its own")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="file for the rows")
    args = parser.parse_args()
    unknown = set(args.parts.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    torch.set_num_threads(1)
    args.precision = "32-true"
    rows = []
    for part in args.parts.split(","):
        rows.append({"part": part, "device": args.device, "torch": torch.__version__} | PARTS[part](args))
        print(part)
        for key, value in list(rows[-1].items())[3:]:
            print(f"  {key:<48} {value:,}" if isinstance(value, int) else f"  {key:<48} {value}")
        if args.json:
            args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
