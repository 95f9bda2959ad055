"""Fine-tune, test and merge methods on shipped data and print one table."""

import json
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

CONFIG = "configs/demo/fashion_mnist_1k.yaml"


def demo(
    methods: str = "linear_probe,ssf,full", fit_config: Path = Path(CONFIG), run_root: Path = Path("runs/demo")
) -> None:
    """Run every method through ``train.py fit``, test its best checkpoint, merge it and compare.

    Args:
        methods: Names separated by commas, or ``all``.
        fit_config: Configuration of everything but the method; a ``METHOD.yaml`` beside it wins over it.
        run_root: Folder of the run folders.
    """
    from rich.console import Console
    from rich.table import Table

    from commands.lightning.names import nearest
    from methods import METHODS

    every = [name for name, method in METHODS.items() if method.standalone]
    names = every if methods == "all" else methods.split(",")
    for name in names:
        for part in name.split("+"):
            nearest(part, METHODS, "method")
    console, start = Console(width=130), time.perf_counter()
    table = Table(title=f"{fit_config.stem}, backbone {config_value(fit_config, 'backbone')}", title_justify="left")
    table.add_column("method")
    for column in ("top-1 before", "after", "trained", "no head", "adapter kB", "images/s", "merged vs not"):
        table.add_column(column, justify="right")
    folders = []
    for name in names:
        console.rule(name)
        row, folder = run(name, fit_config, run_root)
        table.add_row(name, *row)
        folders.append(folder)
    console.print(table)
    console.print("Small offline demo on its own splits; not to be set beside VTAB-1k numbers.")
    console.print(
        f"{time.perf_counter() - start:.0f} s. Each run left config.yaml, metrics.csv, result.json, curves.png,"
    )
    console.print("checkpoints/ and adapter/ in its folder:")
    for folder in folders:
        console.print(f"  {folder}")


def run(name: str, config: Path, run_root: Path) -> tuple[list[str], Path]:
    """Columns of one method's row, and its run folder."""
    import torch

    from commands.lightning.cli import GraftCLI

    options = ["--method", name, "--config", str(config), "--run_root", str(run_root)]
    own = config.parent / f"{name}.yaml"
    if own.exists():
        options += ["--config", str(own)]
    with redirect_stdout(StringIO()):  # its table would only say what the last table says
        before = GraftCLI.run(["test", *options]).trainer.callback_metrics["test/acc1"]
    cli = GraftCLI.run(["fit", *options, "--test_after_fit", "true"])
    folder = Path(str(cli.trainer.default_root_dir))
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    adapter = sum(file.stat().st_size for file in (folder / "adapter").iterdir()) / 1e3

    model, difference = cli.model.eval(), "-"
    if model.mergeable:
        data = cli.datamodule
        images = data.on_device(data.collate([data.splits["test"][i] for i in range(64)])).inputs
        with torch.inference_mode():
            difference = f"{float((model.merge()(images) - model(images)).abs().max()):.0e}"
    return [
        f"{100 * float(before):.1f}",
        f"{100 * result['test/acc1']:.1f}",
        f"{result['cost/trainable_params']:,}",
        f"{result['cost/trainable_params_no_head']:,}",
        f"{adapter:,.0f}",
        f"{result['cost/images_per_s']:,.0f}",
        difference,
    ], folder


def config_value(config: Path, key: str) -> str:
    """A model option of a config file, for the title."""
    import yaml

    return str(yaml.safe_load(config.read_text())["model"]["init_args"].get(key))
