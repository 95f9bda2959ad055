"""Inference of DyT that skips tokens against the plain backbone and against masking, in one interleaved run.

    python benchmarks/inference.py --json rows.json

For each share of kept tokens there are three forms of one model with the same weights: ``masked`` computes every token
and masks, as the published code does; ``skipping`` leaves dropped tokens out, as evaluation does; ``skipping, last
block whole`` does without the shortcut of the last block, whose patch tokens no class-token classifier reads.

Weights are random, so no dispatcher has learned a share. It is forced: one pass over the timed images sets the bias of
each dispatcher, first block to last, to where exactly that share of their patch tokens is kept; different images keep
different numbers. Clock, order and medians are those of ``step_time.py``. ``difference`` is the largest one of logits
to the masked form, ``gflops`` is counted from what ran (two per multiply-add), for one image.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.step_time import interleave
from callbacks.measures import flop_counter
from lightning_modules.classification import Classification
from methods import METHODS, compose

FORMS = {"masked": ("dense", False), "skipping": ("auto", True), "skipping, last block whole": ("auto", False)}


class Variant:
    """One model in one form."""

    def __init__(self, model: Any, share: float | None, form: str, autocast: bool) -> None:
        self.model, self.share, self.form, self.autocast = model, share, form, autocast
        self.name = form if share is None else f"{form}, {share:.0%} kept"

    def __call__(self, images: Tensor) -> Tensor:
        if self.share is not None:
            ops = list(self.model.dispatches.values())
            for op in ops:
                op.skip, last = FORMS[self.form]
            ops[-1].prefix_only = last
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=self.autocast):
            return self.model(images)


def force(model: Any, share: float, images: Tensor, autocast: bool) -> float:
    """Set the dispatchers' biases so that a share of the patch tokens is kept; return what is kept."""

    def decide(op: Any, x: Tensor) -> Tensor:
        logits = op.dispatcher(x[:, op.prefix :].float())
        op.dispatcher.bias.data.sub_(logits.flatten().quantile(1 - share))
        return type(op).decide(op, x)

    ops = list(model.dispatches.values())
    for op in ops:
        op.decide = partial(decide, op)
    Variant(model, share, "skipping, last block whole", autocast)(images)
    for op in ops:
        del op.decide
    with model.masks() as masks:
        Variant(model, share, "skipping, last block whole", autocast)(images)
    return float(torch.stack(masks).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dim", type=int, default=64, help="width of the adapters")
    parser.add_argument("--place", default="mlp", choices=["mlp", "attention", "attention_mlp", "layer"])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.7], help="shares of kept tokens")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"], help="on a GPU")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, help="passes before the clock runs; 2 on a CPU, 20 on a GPU")
    parser.add_argument("--json", type=Path, help="file for the rows")
    args = parser.parse_args()
    args.warmup = args.warmup or (2 if args.device == "cpu" else 20)
    torch.set_num_threads(1)
    autocast = args.device == "cuda" and args.precision == "bf16-mixed"

    def build(method: str, **options: Any) -> Any:
        torch.manual_seed(0)
        task = compose(METHODS[method], task=Classification)
        model = task(backbone=args.backbone, pretrained=False, num_classes=100, **options)
        model.configure_model()
        return model.to(args.device).eval()

    plain = build("linear_probe")
    images = torch.randn(args.batch_size, *plain.input_config["input_size"], device=args.device)
    variants, kept = [Variant(plain, None, "plain", autocast)], {}
    for share in args.shares:
        model = build("dyt", dyt_dim=args.dim, dyt_place=args.place)
        for op in model.dispatches.values():
            nn.init.trunc_normal_(op.adapter.up.weight, std=0.02)  # a trained adapter is not zero
        kept[share] = force(model, share, images, autocast)
        variants += [Variant(model, share, form, autocast) for form in FORMS]

    works = {variant.name: (lambda variant=variant: variant(images)) for variant in variants}
    times = interleave(works, "plain", args.rounds, args.warmup, args.device)
    rows, masked = [], torch.empty(0)
    for variant in variants:
        with flop_counter() as counter:
            logits = variant(images)
        masked = logits if variant.form == "masked" else masked
        rows.append(
            {
                "form": variant.name,
                "kept": None if variant.share is None else round(kept[variant.share], 4),
                "time_over_plain": round(times[variant.name], 3),
                "gflops": round(counter.get_total_flops() / len(images) / 1e9, 3),
                "difference": None if variant.share is None else float(f"{(logits - masked).abs().max():.1e}"),
            }
        )
    print(
        f"{args.backbone}, batch {args.batch_size}, adapters of {args.dim}, {args.place}, {args.device}, "
        f"{args.precision}, {args.rounds} rounds, torch {torch.__version__}"
    )
    print(f"{'form':>40}" + "".join(f"{key:>17}" for key in list(rows[0])[1:]))
    for row in rows:
        form, *values = row.values()
        print(f"{form:>40}" + "".join(f"{value if value is not None else '-':>17}" for value in values))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
