"""Training step, memory and merged inference of every method, in one interleaved run.

    python benchmarks/step_time.py --methods ssf,bitfit,full --json rows.json
    python benchmarks/step_time.py --methods lora,lora+velora --options '{"lora_targets": ["fc2"]}'
    python benchmarks/step_time.py --backbone vit_base_patch16_224 --batch-size 128 --precision bf16-mixed --peft

All variants live in one process and take turns, in another order every round. On a CPU the clock is the process's CPU
time on one thread, on a GPU the events of the device. What is printed are medians of ratios to the floor of the same
round. The floor is what no method that trains near the input can undercut: a forward pass and the gradients of all
activations, with the class token as the only trained tensor, or without one, the first vector of the backbone.
``--backbone`` takes every name of timm, and builds it with random weights.

``roof_pct`` is the time that the FLOPs of a step would take at the rate of one large matrix product, measured before,
in percent of the time of the step. FLOPs are counted while a step runs, backward pass included.
"""

import argparse
import json
import statistics
import sys
import time
from inspect import signature
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from backbones.inject import Backbone
from callbacks.measures import SavedBytes, flop_counter, peak_bytes
from lightning_modules.batch import Batch
from lightning_modules.classification import Classification
from methods import METHODS, PEFTMethod, compose


class Floor(PEFTMethod):
    """A backbone through which gradients must pass while almost nothing trains."""

    def trainable_names(self) -> list[str]:
        vectors = [name for name, p in self.backbone.named_parameters() if name == "cls_token" or p.dim() == 1]
        return ["cls_token"] if "cls_token" in vectors else vectors[:1]


class HFPEFT(PEFTMethod):
    """HF PEFT's own LoRA on the fused qkv, for comparison."""

    mergeable = False

    def adapt(self, backbone: Backbone) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        inject_adapter_in_model(LoraConfig(r=8, lora_alpha=8, target_modules=["qkv"]), backbone)


class Variant:
    """One model with an optimizer."""

    def __init__(
        self, name: str, method: type[PEFTMethod], args: argparse.Namespace, *more: type[PEFTMethod], **given: Any
    ) -> None:
        torch.manual_seed(0)
        self.name = name
        cls = compose(method, *more, task=Classification)
        known = {option for c in cls.__mro__ for option in signature(c.__init__).parameters}  # type: ignore[misc]
        options = {option: value for option, value in given.items() if option in known}
        with torch.device(args.device):  # random weights of a large backbone take seconds on a CPU
            self.model: Any = cls(backbone=args.backbone, pretrained=False, num_classes=100, **options)
        self.model.to(args.device)
        if getattr(self.model, "scorer", None) is not None:
            self.select(args.batch_size)
        self.model.configure_model()
        self.model.to(args.device).train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        self.autocast = args.device == "cuda" and args.precision == "bf16-mixed"

    def select(self, batch_size: int) -> None:
        """Let a method that chooses from data choose from one batch of noise, two images a class."""
        images = torch.randn(batch_size, *self.model.input_config["input_size"], device=self.model.device)
        labels = torch.arange(batch_size, device=self.model.device) // 2 % 100
        with self.model.eval().build_scorer() as scorer:
            scorer.observe(labels)
            loss = self.model.score_loss(Batch.of(images, labels)) if scorer.needs_data else None
            if loss is not None:
                scorer.backward(loss)
        self.model.selection = self.model.select(scorer.sums)

    def forward(self, batch: Batch) -> Tensor:
        with torch.autocast(batch.inputs.device.type, torch.bfloat16, enabled=self.autocast):
            return self.model.loss(batch)

    def step(self, batch: Batch) -> None:
        self.model.on_train_batch_start(batch, 0)
        self.forward(batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.on_train_batch_end(None, batch, 0)

    def saved_bytes(self, batch: Batch) -> int:
        with SavedBytes(self.model) as saved:
            loss = self.forward(batch)
        del loss
        return saved.bytes

    def flops(self, batch: Batch) -> int:
        """FLOPs of one step."""
        with flop_counter() as counter:
            self.step(batch)
        return counter.get_total_flops()


def clock(work: Any, device: str) -> float:
    """Seconds of one call: of this process on a CPU, between events on a GPU."""
    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def timed(works: dict[str, Any], rounds: int, warmup: int, device: str) -> dict[str, list[float]]:
    """Seconds of each work in each round, in which the works take turns."""
    names = list(works)
    for _ in range(warmup):
        for work in works.values():
            work()
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in Random(turn).sample(names, len(names)):  # not a rotation: each leaves its data in the cache
            times[name].append(clock(works[name], device))
        print(f"\r{turn + 1}/{rounds}", end="", file=sys.stderr, flush=True)
    print("\r      \r", end="", file=sys.stderr)
    return times


def ratios(times: dict[str, list[float]], base: str) -> dict[str, float]:
    """Median over rounds of each work's time relative to that of ``base`` in the same round."""
    pairs = {name: zip(values, times[base], strict=True) for name, values in times.items()}
    return {name: statistics.median(own / other for own, other in both) for name, both in pairs.items()}


def interleave(works: dict[str, Any], base: str, rounds: int, warmup: int, device: str) -> dict[str, float]:
    """Median over rounds of each work's time relative to that of ``base``; the works take turns."""
    return ratios(timed(works, rounds, warmup, device), base)


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """FLOPs per second of a large matrix product."""
    size = 512 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = timed({"product": lambda: a @ b}, rounds=10, warmup=3, device=device)["product"]
    return 2 * size**3 / statistics.median(seconds)


def merged_ratios(variants: list[Variant], images: Tensor, args: argparse.Namespace) -> dict[str, float | None]:
    """Time of each merged model relative to the plain backbone, forward only."""
    plain = variants[0].model.build() or variants[0].model.backbone
    models: dict[str, nn.Module] = {"plain": plain.to(args.device).eval()}
    for variant in variants[1:]:
        if variant.model.mergeable:
            models[variant.name] = variant.model.merge()

    def work(model: nn.Module) -> Any:
        def run() -> None:
            with (
                torch.inference_mode(),
                torch.autocast(images.device.type, torch.bfloat16, enabled=variants[0].autocast),
            ):
                model(images)

        return run

    found = interleave({n: work(m) for n, m in models.items()}, "plain", args.rounds, args.warmup, args.device)
    return {variant.name: found.get(variant.name) for variant in variants}


def width(column: str) -> int:
    """Characters of a column of the printed table."""
    return max(len(column), 16 if column == "method" else 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = ",".join(name for name, method in METHODS.items() if method.standalone)
    parser.add_argument("--methods", default=every, help="names separated by commas, lora+velora for a stack")
    parser.add_argument("--options", type=json.loads, default={}, help="options of the methods that know them, in JSON")
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"], help="on a GPU")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, help="steps before the clock runs; 2 on a CPU, 20 on a GPU")
    parser.add_argument("--peft", action="store_true", help="add HF PEFT's LoRA of rank 8")
    parser.add_argument("--json", type=Path, help="file for the rows")
    args = parser.parse_args()
    names = args.methods.split(",")
    unknown = {part for name in names for part in name.split("+")} - set(METHODS)
    if unknown:
        parser.error(f"unknown methods {', '.join(sorted(unknown))}; known: {', '.join(METHODS)}")
    args.warmup = args.warmup or (2 if args.device == "cpu" else 20)
    torch.set_num_threads(1)

    variants = [Variant("floor", Floor, args)]
    for name in names:
        first, *more = (METHODS[part] for part in name.split("+"))
        variants.append(Variant(name, first, args, *more, **args.options))
    if args.peft:
        variants.append(Variant("hf_peft", HFPEFT, args))
    if "full" not in names:
        variants.append(Variant("full", METHODS["full"], args))
    size = variants[0].model.input_config["input_size"]
    images = torch.randn(args.batch_size, *size, device=args.device)
    batch = Batch.of(images, torch.randint(100, (args.batch_size,), device=args.device))

    works = {variant.name: (lambda variant=variant: variant.step(batch)) for variant in variants}
    times = timed(works, args.rounds, args.warmup, args.device)
    steps, medians = ratios(times, "floor"), {name: statistics.median(values) for name, values in times.items()}
    # after the steps, because the first one of an optimizer also makes its state
    saved = {variant.name: variant.saved_bytes(batch) for variant in variants}
    peaks = {name: peak_bytes(work, args.device) for name, work in works.items()}
    rate = matmul_rate(args.device, torch.bfloat16 if variants[0].autocast else torch.float32)
    roofs = {variant.name: variant.flops(batch) / rate for variant in variants}
    merged = merged_ratios(variants, images, args)
    rows = [
        {
            "method": variant.name,
            "step_ms": round(1e3 * medians[variant.name], 2),
            "images_per_s": round(args.batch_size / medians[variant.name], 1),
            "roof_pct": round(100 * roofs[variant.name] / medians[variant.name], 1),
            "peak_mib": round(peaks[variant.name] / 2**20, 1),
            "step_over_floor": round(steps[variant.name], 3),
            "saved_bytes_over_floor": round(saved[variant.name] / saved["floor"], 3),
            "saved_mib": round(saved[variant.name] / 2**20, 1),
            "merged_over_plain": merged[variant.name] and round(merged[variant.name] or 0, 3),
            "trainable_params": variant.parameters,
        }
        for variant in variants
    ]
    print(
        f"{args.backbone}, batch {args.batch_size}, {args.device}, {args.precision}, {args.rounds} rounds, torch "
        f"{torch.__version__}; matrix product at {rate / 1e12:.3g} TFLOP/s"
    )
    print(" ".join(f"{key:>{width(key)}}" for key in rows[0]))
    for row in rows:
        print(" ".join(f"{value if value is not None else '-':>{width(key)}}" for key, value in row.items()))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
