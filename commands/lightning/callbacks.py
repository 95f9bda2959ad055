"""Callbacks that every run of a subcommand has."""

from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import Callback, LightningDataModule
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint

from callbacks.best_checkpoint import BestCheckpoint
from callbacks.channels_last import ChannelsLast
from callbacks.checkpoint_activations import CheckpointActivations
from callbacks.class_report import ClassReport
from callbacks.clip_picture import ClipPicture
from callbacks.compiled import Compiled
from callbacks.cost import Cost
from callbacks.delta_export import DeltaExport
from callbacks.explanations import Explanations
from callbacks.finite_loss import StopOnNonFiniteLoss
from callbacks.mask_picture import MaskPicture
from callbacks.mask_predictions import MaskPredictions
from callbacks.matmul_precision import MatmulPrecision
from callbacks.model_card import ModelCard
from callbacks.object_picture import ObjectPicture
from callbacks.object_predictions import ObjectPredictions
from callbacks.predictions import Predictions
from callbacks.result import Result
from callbacks.scoring.score_before_fit import ScoreBeforeFit
from callbacks.second_interrupt import SecondInterrupt
from callbacks.text_samples import TextSamples
from commands.lightning.options import HEADLINE
from lightning_modules import Task
from lightning_modules.adapted import AdaptedTask

COMPUTING = ("compile", "checkpoint_activations", "matmul_precision", "channels_last")
"""Options about how a run computes, which do not change what it computes."""


def run_callbacks(
    options: Namespace, subcommand: str, model: AdaptedTask, data: LightningDataModule, resume: bool
) -> list[Callback]:
    """Build the callbacks of a run.

    Args:
        options: Parsed options of the subcommand.
        subcommand: Such as ``fit``.
        model: The model.
        data: The datamodule.
        resume: Whether the run goes on from a checkpoint.
    """
    folder = Path(options.trainer.default_root_dir) / "checkpoints"
    # apart from the best epoch's callback, whose save_last saves only when the monitored metric improves
    last = ModelCheckpoint(folder, "last", enable_version_counter=False)
    cost = Cost()
    computing = {name: options[name] for name in COMPUTING if name in options}
    result = Result(cost, bool(options.get("test_after_fit")), computing)
    if subcommand == "score":
        return [SecondInterrupt(), ScoreBeforeFit(**options.score.as_dict()), result, last]
    if subcommand == "predict" and getattr(model, "targets", "") == "tokens":
        raise ValueError(
            f"predict: {type(model).__name__} gives the probabilities of all tokens, which no table holds: "
            "run test, which writes perplexity and loss"
        )
    writers: list[Callback] = [MaskPredictions(), MaskPicture()]
    if getattr(model, "targets", "") == "objects":
        writers = [ObjectPredictions(), ObjectPicture()]
    elif not getattr(model, "dense", False):
        writers = [Predictions(options.get("top_k", 1), options.get("embeddings"))]
    if model.unit == "clip":
        writers.append(ClipPicture())
    if subcommand == "fit" and getattr(model, "targets", "") == "tokens":
        writers.append(TextSamples(options.prompts))
    elif options.get("prompts") is not None:
        raise ValueError(
            f"prompts: {type(model).__name__} writes no text; leave it out, or pass --task language_modeling"
        )
    if options.get("explain") is not None:
        writers.append(Explanations(options.explain))
    if options.get("class_report"):
        report = ClassReport()
        report.check(model)  # here, because nothing is read yet
        if subcommand == "fit" and not options.test_after_fit:
            raise ValueError("class_report=true: it is about a test; pass --test_after_fit true too")
        writers.append(report)
    # the card needs the result, and the result the costs
    ends = [cost, DeltaExport(), result, ModelCard()]
    # behind ScoreBeforeFit, because scores are of plain fp32 products
    watching = [*computing_callbacks(computing, model), SecondInterrupt(), StopOnNonFiniteLoss()]
    found = [*watching, *ends, *writers]
    if subcommand != "fit":
        return [*found, last]
    best = BestCheckpoint(**checkpoint_options(options.checkpoint, model, data, folder))
    rates = [] if options.trainer.logger is False else [LearningRateMonitor()]
    return [ScoreBeforeFit(**options.score.as_dict(), resume=resume), *found, *rates, best, last]


def computing_callbacks(options: dict[str, Any], model: AdaptedTask) -> list[Callback]:
    """Build the callbacks about how a run computes.

    Args:
        options: Those of ``COMPUTING`` that the subcommand has.
        model: The model, which can refuse an option.

    Raises:
        ValueError: If an option is not possible with the model.
    """
    compiled, channels = Compiled(options.get("compile")), ChannelsLast(options.get("channels_last", False))
    activations = CheckpointActivations(options.get("checkpoint_activations", False))
    for callback in (compiled, channels, activations):
        callback.check(model)  # here, because nothing is read yet
    return [MatmulPrecision(options.get("matmul_precision", "highest")), channels, activations, compiled]


def checkpoint_options(options: Namespace, task: Task, data: LightningDataModule, folder: Path) -> dict[str, Any]:
    """Arguments of the callback that keeps the best epoch.

    Args:
        options: Options ``checkpoint.*``.
        task: The model, whose headline metric ``monitor: headline`` stands for.
        data: The datamodule. Without validation data nothing can be monitored, and the last epoch counts.
        folder: Folder of the checkpoints.
    """
    found: dict[str, Any] = options.as_dict() | {"dirpath": folder}
    if found["monitor"] == HEADLINE:
        found["monitor"] = f"val/{task.headline.name}"
    if found["mode"] == HEADLINE:
        found["mode"] = task.headline.mode
    if getattr(data, "validates", True) is False:
        found["monitor"] = None
    return found
