"""Video classification: training steps against a frozen backbone, and DyT's inference against the plain model.

    python benchmarks/video.py --json rows.json
    python benchmarks/video.py --methods lora,dyt --frames 16 --pooling mean

All variants live in one process and take turns, in another order every round; see ``step_time.py``. A step is one of
clips whose frames are rows of a batch of images. The floor is a step through a backbone in which almost nothing trains,
under a pooling and a classifier that train in full, as they do under every method.

The second table times an evaluation. As in ``inference.py``, the kept share of DyT is forced by the biases of its
dispatchers, because random weights have learned none, and ``gflops`` of a clip is counted from what ran.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.inference import Variant as Form
from benchmarks.inference import force
from benchmarks.step_time import Floor, Variant, interleave, ratios, timed
from callbacks.measures import flop_counter
from lightning_modules.batch import Batch
from lightning_modules.video_classification import VideoClassification
from methods import METHODS, PEFTMethod, compose


def build(method: type[PEFTMethod], args: argparse.Namespace, **options: Any) -> Any:
    """An adapted model with random weights on its device."""
    torch.manual_seed(0)
    own = {"backbone": args.backbone, "pretrained": False, "num_classes": 174}
    model = compose(method, task=VideoClassification)(frames=args.frames, pooling=args.pooling, **own, **options)
    model.configure_model()
    return model.to(args.device)


class VideoVariant(Variant):
    """One model for clips with an optimizer."""

    def __init__(self, name: str, method: type[PEFTMethod], args: argparse.Namespace, **options: Any) -> None:
        self.name = name
        self.model = build(method, args, **options).train()
        self.counts = self.model.parameter_counts()
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-4, fused=True)
        self.autocast = False


def steps(args: argparse.Namespace, clips: Batch) -> list[dict[str, Any]]:
    """Rows of the table of training steps."""
    variants = [VideoVariant("floor", Floor, args)]
    variants += [VideoVariant(name, METHODS[name], args) for name in args.methods.split(",")]
    works = {variant.name: (lambda variant=variant: variant.step(clips)) for variant in variants}
    times = timed(works, args.rounds, args.warmup, args.device)
    over, saved = ratios(times, "floor"), {variant.name: variant.saved_bytes(clips) for variant in variants}
    return [
        {
            "method": variant.name,
            "step_ms": round(1e3 * statistics.median(times[variant.name]), 1),
            "step_over_floor": round(over[variant.name], 3),
            "saved_over_floor": round(saved[variant.name] / saved["floor"], 3),
            **{f"{part}_params": count for part, count in variant.counts.items()},
        }
        for variant in variants
    ]


def evaluations(args: argparse.Namespace, frames: Tensor) -> list[dict[str, Any]]:
    """Rows of the table of evaluations."""
    forms = [Form(build(METHODS["linear_probe"], args).eval(), None, "plain", False)]
    for share in args.shares:
        model = build(METHODS["dyt"], args, dyt_dim=args.dim).eval()
        for op in model.dispatches.values():
            nn.init.trunc_normal_(op.adapter.up.weight, std=0.02)  # a trained adapter is not zero
        kept = force(model, share, frames, False)
        assert abs(kept - share) < 0.01, f"kept {kept:.3f} and not {share}"
        forms += [Form(model, share, form, False) for form in ("masked", "skipping, last block whole")]
    works = {form.name: (lambda form=form: form(frames)) for form in forms}
    over = interleave(works, "plain", args.rounds, args.warmup, args.device)
    rows = []
    for form in forms:
        with flop_counter() as counter:
            form(frames)
        gflops = counter.get_total_flops() * args.frames / len(frames) / 1e9
        rows.append({"form": form.name, "time_over_plain": round(over[form.name], 3), "gflops": round(gflops, 2)})
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table."""
    print(" ".join(f"{key:>{40 if key == 'form' else 16}}" for key in rows[0]))
    for row in rows:
        print(" ".join(f"{value:>{40 if key == 'form' else 16}}" for key, value in row.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="linear_probe,lora,adaptformer,dyt,full", help="names separated by commas")
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--frames", type=int, default=8, help="frames of a clip")
    parser.add_argument("--clips", type=int, default=1, help="clips of a batch")
    parser.add_argument("--pooling", default="attentive", choices=["attentive", "mean"])
    parser.add_argument("--dim", type=int, default=64, help="width of DyT's adapters in the second table")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.5], help="shares of kept tokens")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=1, help="passes before the clock runs")
    parser.add_argument("--json", type=Path, help="file for the rows")
    args = parser.parse_args()
    unknown = set(args.methods.split(",")) - set(METHODS)
    if unknown:
        parser.error(f"unknown methods {', '.join(sorted(unknown))}; known: {', '.join(METHODS)}")
    torch.set_num_threads(1)
    frames = torch.randn(args.clips * args.frames, 3, 224, 224, device=args.device)
    clips = Batch.of(frames, torch.randint(174, (args.clips,), device=args.device))
    tables = {"steps": steps(args, clips), "evaluations": evaluations(args, frames)}
    print(
        f"{args.backbone}, {args.clips} clips of {args.frames} frames, pooling {args.pooling}, {args.device}, "
        f"{args.rounds} rounds, torch {torch.__version__}"
    )
    for rows in tables.values():
        show(rows)
    if args.json:
        args.json.write_text(json.dumps(tables, indent=2))


if __name__ == "__main__":
    main()
