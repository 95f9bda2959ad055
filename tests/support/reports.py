"""Made-up run folders, and the report on them."""

import csv
import json
from pathlib import Path
from typing import Any

import yaml

from datamodules.vtab import GROUPS
from train import main

TASKS = [task for group in GROUPS.values() for task in group]


def make(
    root: Path, method: str, task: str, seed: int, accuracy: float | None, options: Any = None, **result: Any
) -> Path:
    """A run folder as ``fit`` leaves it; of one that was not tested if there is no accuracy."""
    folder = root / method / task / str(seed)
    while folder.exists():
        folder = folder.with_name(f"{folder.name}-2")
    folder.mkdir(parents=True)
    values = {"method": method, "dataset": "VTAB", "data": "vtab-1k", "data_task": task, "seed": seed}
    values |= {"backbone": "vit", "pretrained": True, "source": "dump", "split": "final", "selection": "last epoch"}
    values |= {"resize": "direct", "interpolation": "bicubic", "normalization": "model", "images": {"train": 1000}}
    values |= {"cost/trainable_params": 1000, "cost/storage_bytes": 4000, "cost/images_per_s": 50.0} | result
    if accuracy is not None:
        values["test/acc1"] = accuracy / 100
    values = {name: value for name, value in values.items() if value is not None}
    (folder / "result.json").write_text(json.dumps(values))
    config = {"seed_everything": seed, "model": {"init_args": {"lr": 0.1}}, "trainer": {"max_epochs": 100}}
    config["model"]["init_args"] |= options or {}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def written(root: Path, *more: Path) -> str:
    main(["report", str(root), *map(str, more), "--output", str(root / "out")])
    return (root / "out/report.md").read_text()


def rows(root: Path, name: str = "leaderboard") -> dict[str, dict[str, str]]:
    with (root / f"out/{name}.csv").open() as file:
        return {f"{row['method']} {row.get('protocol', row.get('seed'))}": row for row in csv.DictReader(file)}
