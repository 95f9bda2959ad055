"""Result of a run: a JSON file, a table and a picture."""

import csv
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from callbacks.cost import Cost
from callbacks.scoring.score_before_fit import ScoreBeforeFit
from checkpoints.atomic import write_atomically
from lightning_modules import TASKS
from lightning_modules.adapted import AdaptedTask
from lightning_modules.run import callbacks_of, datamodule_of
from lightning_modules.seed import run_seed
from lightning_modules.task import Headline

prints_table: ContextVar[bool] = ContextVar("prints_table", default=True)


@contextmanager
def without_table() -> Iterator[None]:
    """Let no run inside this context print its table, for a command that prints one table of all runs."""
    before = prints_table.set(False)
    try:
        yield
    finally:
        prints_table.reset(before)


class Result(Callback):
    """Writes the final metrics and costs to ``result.json``, prints them as a table, and draws ``curves.png``.

    Args:
        cost: Callback with the costs of the run.
        test_follows: Whether a test follows the fit in the same command; then the table is printed after the test.
        options: Options of the run that are written beside its results.
    """

    def __init__(self, cost: Cost, test_follows: bool = False, options: dict[str, Any] | None = None) -> None:
        self.cost, self.test_follows, self.options = cost, test_follows, options or {}
        self.values: dict[str, Any] = {}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        checkpoint = trainer.checkpoint_callback
        best = getattr(checkpoint, "best_model_score", None)
        self.values = self.describe(trainer, cast(AdaptedTask, pl_module)) | {
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            "checkpoint": getattr(checkpoint, "best_model_path", ""),
            "selection": getattr(datamodule_of(trainer), "kept_epoch", ""),
        }
        if best is not None:
            self.values[f"best/{checkpoint.monitor}"] = float(best)  # type: ignore[union-attr]
        self.write(trainer, fitted=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.values = self.values or self.describe(trainer, cast(AdaptedTask, pl_module))
        data = datamodule_of(trainer)
        counts = f"{getattr(data, 'unit', None)}s"
        if counts in self.values:  # after a fit, whose data had no test split yet
            self.values[counts] = data.description()[counts]
        self.write(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":  # False for the validations inside a fit
            self.on_test_end(trainer, pl_module)

    def describe(self, trainer: Trainer, pl_module: AdaptedTask) -> dict[str, Any]:
        data = datamodule_of(trainer)
        about = data.description() if hasattr(data, "description") else {"data": type(data).__name__}
        return (
            pl_module.description()
            | about
            | self.options
            | ({"ckpt_path": str(trainer.ckpt_path)} if trainer.ckpt_path else {})
            | {
                "task": task_name(type(pl_module)),
                "metric": pl_module.headline._asdict(),
                **{option: getattr(data, attribute, None) for option, attribute in pl_module.links.items()},
                "class": type(pl_module).__name__,
                "pretrained": getattr(pl_module, "pretrained", None),
                "seed": run_seed(),
                "world_size": trainer.world_size,
                "precision": str(trainer.precision),
                "versions": {name: version(name) for name in ("torch", "lightning", "timm")},
                "code": revision(),
            }
        )

    def write(self, trainer: Trainer, fitted: bool = False) -> None:
        self.values |= self.cost.values
        for callback in callbacks_of(trainer):
            self.values |= callback.metrics if isinstance(callback, ScoreBeforeFit) else {}
        self.values |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        folder = Path(str(trainer.log_dir or trainer.default_root_dir))
        if not trainer.is_global_zero:
            return
        if fitted and self.values["steps"] and (folder / "metrics.csv").exists():
            draw_curves(folder / "metrics.csv", folder / "curves.png", Headline(**self.values["metric"]))
        text = json.dumps(self.values, indent=2)  # the last file, because it marks a run that has finished
        write_atomically(folder / "result.json", lambda path: path.write_text(text), lambda: len(text))
        if (fitted and self.test_follows) or not prints_table.get():
            return
        kept = f", {self.values['selection']}" if self.values.get("selection") else ""
        table = Table(title=f"{self.values['class']} in {folder}{kept}", title_justify="left")
        table.add_column("metric")
        table.add_column("value", justify="right")
        for name, value in self.values.items():
            if "/" in name and isinstance(value, (int, float)):
                shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
                table.add_row(name, f"{shown} ({value / 1024:,.1f} KB)" if name.endswith("_bytes") else shown)
        Console().print(table)


def task_name(model: type) -> str:
    """Name of the task in the composition of a model; for other models the name of their class."""
    return next((c.__name__ for c in model.__mro__ if c in TASKS.values()), model.__name__)


def revision() -> str | None:
    """Commit of this code, followed by ``-dirty`` if tracked files have changed; None if git gives no answer.

    It raises no error without git, without a repository or in a repository of another user, because a run must not fail
    for them.
    """
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def draw_curves(metrics: Path, picture: Path, headline: Headline) -> None:
    """Plot losses, the headline metric and the learning rate of a ``metrics.csv`` over steps."""
    from matplotlib.figure import Figure

    with metrics.open() as file:
        rows = list(csv.DictReader(file))
    panels = {"loss": ("train/loss", "val/loss"), headline.label: (f"val/{headline.name}",), "learning rate": ()}
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    axes = figure.subplots(1, len(panels))
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for name in names or [key for key in rows[0] if key.startswith("lr-")][:1]:
            scale = headline.scale if title == headline.label else 1.0
            points = [(int(row["step"]), scale * float(row[name])) for row in rows if row.get(name)]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, marker=".")
        axis.set(title=title, xlabel="step")
        if axis.lines:
            axis.legend()
    write_atomically(picture, lambda path: figure.savefig(path, format="png", dpi=120))
