"""Fine-tune, test and merge methods on shipped data and print one table."""

import time
from pathlib import Path
from typing import Any

CONFIG = "configs/demo/fashion_mnist_1k.yaml"
INPUTS = 16  # random inputs on which a merged model is compared


def demo(
    methods: str = "linear_probe,ssf,full",
    task: str = "classification",
    fit_config: Path = Path(CONFIG),
    run_root: Path = Path("runs/demo"),
) -> None:
    """Run every method through ``train.py fit``, test its best checkpoint, merge it and compare.

    Args:
        methods: Names separated by commas, or ``all``.
        task: Name of the task.
        fit_config: Configuration of everything but the method; a ``METHOD.yaml`` beside it wins over it.
        run_root: Folder of the run folders.
    """
    from rich.console import Console
    from rich.table import Table

    from commands.lightning.names import nearest
    from lightning_modules import TASKS
    from methods import METHODS

    nearest(task, TASKS, "task")
    every = [name for name, method in METHODS.items() if method.standalone]
    names = every if methods == "all" else methods.split(",")
    for name in names:
        for part in name.split("+"):
            nearest(part, METHODS, "method")
    console, start = Console(width=130), time.perf_counter()
    rows = {}
    for name in names:
        console.rule(name)
        rows[name] = run(name, task, fit_config, run_root)
    table = Table(title=f"{fit_config.stem}, backbone {config_value(fit_config, 'backbone')}", title_justify="left")
    table.add_column("method")
    for column in next(iter(rows.values()))[0]:
        table.add_column(column, justify="right")
    for name, (row, _) in rows.items():
        table.add_row(name, *row.values())
    console.print(table)
    console.print("Small offline demo on its own splits; not comparable with published numbers.")
    console.print(
        f"{time.perf_counter() - start:.0f} s. Each run left config.yaml, metrics.csv, result.json, curves.png,"
    )
    console.print("checkpoints/ and adapter/ in its folder:")
    for _, folder in rows.values():
        console.print(f"  {folder}")


def run(name: str, task: str, config: Path, run_root: Path) -> tuple[dict[str, str], Path]:
    """Test, fit, test and merge a method.

    Args:
        name: Name of the method, or of several joined by ``+``.
        task: Name of the task.
        config: Configuration of everything else.
        run_root: Folder of all run folders.

    Returns:
        The row of the table, text by column, and the run folder of the fit.
    """
    from callbacks.result import without_table
    from commands.lightning.folders import run_folder
    from commands.lightning.runs import quiet_lightning, run_once
    from commands.report.runs import metric_of
    from methods import PEFTMethod

    options = ["--method", name, "--task", task, "--config", str(config)]
    own = config.parent / f"{name}.yaml"
    if own.exists():
        options += ["--config", str(own)]
    root = run_folder(run_root / name)  # a new folder each time, because a demo shows the numbers of the present code
    with without_table(), quiet_lightning():
        before = run_once(["test", *options], root / "before", log=root / "before.txt", own_process=False)
        after = run_once(["fit", *options, "--test_after_fit=true"], root / "fit", own_process=False)
    folder = Path(after["folder"])
    model: Any = PEFTMethod.from_delta(folder / "adapter")
    unit = model.speed_unit or model.unit
    metric = metric_of(after)
    key, scale = f"test/{metric['name']}", metric["scale"]
    files = [file for file in (folder / "adapter").iterdir() if file.name != "README.md"]  # a text for readers
    adapter = sum(file.stat().st_size for file in files) / 1e3
    return {
        f"{metric['label']} before": f"{scale * before[key]:.1f}",
        "after": f"{scale * after[key]:.1f}",
        "trained": f"{after['cost/trainable_params']:,}",
        **{title: f"{after[f'cost/trainable_params_{part}']:,}" for title, part in parts(model).items()},
        **({"saved MiB": f"{after['cost/saved_mib']:,.1f}"} if model.unit == "text" else {}),
        "adapter kB": f"{adapter:,.0f}",
        f"{unit}s/s": f"{after[f'cost/{unit}s_per_s']:,.0f}",
        "merged vs not": f"{difference(model):.0e}" if model.mergeable else "-",
    }, folder


def parts(model: Any) -> dict[str, str]:
    """Columns of trained parameters: without the head, or of each part if the head lies beside the backbone."""
    return {part: part for part in ("method", "neck", "head")} if model.dense else {"no head": "method"}


def difference(model: Any) -> float:
    """Largest difference of an output between a model and the merged one, on random inputs."""
    import torch

    inputs, draw = model.example_batch().inputs, torch.Generator().manual_seed(0)
    if isinstance(inputs, dict):  # a text; its tokens in other orders
        inputs = {"input_ids": inputs["input_ids"][0, torch.rand(INPUTS // 4, 16, generator=draw).argsort()]}
    else:
        rows, *shape = inputs.shape  # a clip has several rows
        inputs = torch.randn(INPUTS * rows, *shape, generator=draw)
    with torch.inference_mode():
        merged, outputs = model.outputs_with(model.merge(), inputs), model(inputs)
        return float((model.logits(merged) - model.logits(outputs)).abs().max())


def config_value(config: Path, key: str) -> str:
    """A model option of a config file, for the title."""
    import yaml

    return str(yaml.safe_load(config.read_text())["model"]["init_args"].get(key))
