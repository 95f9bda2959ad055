"""State of a run in a checkpoint, from which a fit goes on: counters, optimizer, schedule, average and callbacks."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor

from checkpoints.structure import Types, check_entries, is_stored, shown

OPTIMIZER: dict[str, Types] = {"state": dict, "param_groups": list}
SCHEDULE: dict[str, Types] = {"last_epoch": int, "lr_lambdas": list}
BEST: dict[str, Types] = {"best_model_path": str, "best_model_score": (Tensor, type(None))}
# stages of one event, in the order in which they are counted
STAGES = ("ready", "started", "processed", "completed")
EPOCHS, BATCHES = "loops/fit_loop/epoch_progress", "loops/fit_loop/epoch_loop.batch_progress"
OPTIMIZED = "loops/fit_loop/epoch_loop.automatic_optimization.optim_progress"
BY_HAND = "loops/fit_loop/epoch_loop.manual_optimization.optim_step_progress"
COUNTERS: dict[str, tuple[str, ...]] = {
    EPOCHS: STAGES,
    BATCHES: STAGES,
    "loops/fit_loop/epoch_loop.val_loop.batch_progress": STAGES,
    "loops/fit_loop/epoch_loop.scheduler_progress": ("ready", "completed"),
    f"{OPTIMIZED}/optimizer/step": ("ready", "completed"),
    f"{OPTIMIZED}/optimizer/zero_grad": ("ready", "started", "completed"),
    BY_HAND: ("ready", "completed"),
}
RESUMED: dict[str, Types] = {
    "epoch": int,
    "global_step": int,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
    "loops/fit_loop": dict,
    OPTIMIZED: dict,
    f"{OPTIMIZED}/optimizer": dict,
}
for _counter, _stages in COUNTERS.items():
    RESUMED[_counter] = dict
    for _span in ("total", "current"):
        RESUMED |= {f"{_counter}/{_span}": dict} | {f"{_counter}/{_span}/{stage}": int for stage in _stages}
RESUMED[f"{BATCHES}/is_last_batch"] = bool


def check_resumable(checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint from which a fit cannot go on.

    Raises:
        ValueError: If the state of the loops, the optimizer, the schedule, the average or the callbacks is missing,
            damaged or contradicts itself.
    """
    try:
        check_entries(checkpoint, RESUMED)
        check_counters(checkpoint)
        check_optimizers(checkpoint)
        check_average(checkpoint)
        check_callbacks(checkpoint["callbacks"])
    except ValueError as error:
        raise ValueError(
            f"no fit can go on from it: {error}. Begin a new fit with its trained values, --model.init_from PATH"
        ) from error


def check_evaluable(checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint with states that Lightning cannot read, which it does for an evaluation too.

    Raises:
        ValueError: If the state of the callbacks or of the loops is damaged; a state that is missing is not needed.
    """
    found = {name: checkpoint[name] for name in ("callbacks", "loops") if name in checkpoint}
    check_entries(found, dict.fromkeys(found, dict))
    check_callbacks(found.get("callbacks", {}))
    if "loops" in found:
        check_entries(found["loops"], {f"{name}_loop": dict for name in ("validate", "test", "predict")}, "loops/")


def check_callbacks(states: Mapping[str, Any]) -> None:
    """Refuse states of callbacks that are damaged.

    Raises:
        ValueError: With the callback.
    """
    for key, state in states.items():
        name = str(key).partition("{")[0]  # without the settings of the callback
        check_entries({name: state}, {name: dict}, "callbacks/")
        if name == "ModelCheckpoint":
            check_entries(state, BEST, f"callbacks/{name}/")


def entry(checkpoint: Mapping[str, Any], path: str) -> Any:
    """Nested entry of a checkpoint, by names that are joined by ``/``."""
    found: Any = checkpoint
    for name in path.split("/"):
        found = found[name]
    return found


def check_counters(checkpoint: Mapping[str, Any]) -> None:
    """Refuse numbers of epochs, batches and steps that no run can have.

    Raises:
        ValueError: With two numbers that contradict each other.
    """
    for name, stages in COUNTERS.items():
        for span in ("total", "current"):
            check_stages(checkpoint, f"{name}/{span}", stages)
    for name in (EPOCHS, BATCHES):
        total, current = (entry(checkpoint, f"{name}/{span}/ready") for span in ("total", "current"))
        if current > total:
            raise ValueError(f"its '{name}/current/ready' is {current}; expected at most the total, {total}")
    steps = sum(entry(checkpoint, f"{name}/total/completed") for name in (f"{OPTIMIZED}/optimizer/step", BY_HAND))
    for name, counted in {"epoch": entry(checkpoint, f"{EPOCHS}/current/completed"), "global_step": steps}.items():
        if checkpoint[name] != counted:
            raise ValueError(f"its {name!r} is {shown(checkpoint[name])}, and its loops count {counted}")
    batches = entry(checkpoint, f"{BATCHES}/total/ready")
    if entry(checkpoint, f"{OPTIMIZED}/optimizer/step/total/completed") > batches:
        raise ValueError(f"it has {steps} steps of the optimizer after {batches} batches")


def check_stages(checkpoint: Mapping[str, Any], place: str, stages: tuple[str, ...]) -> None:
    """Refuse counts of an event whose later stages are more frequent than earlier ones.

    Args:
        checkpoint: The checkpoint.
        place: Place of the counts.
        stages: Stages of the event, in their order.

    Raises:
        ValueError: With the first count that is wrong.
    """
    counts = {stage: entry(checkpoint, f"{place}/{stage}") for stage in stages}
    # Lightning counts an epoch that ends by max_steps, and is resumed, once more or once less in its later stages
    spare = 1 if place.startswith(EPOCHS) else 0
    for before, after in pairwise(stages):
        most = counts[before] + spare
        if not 0 <= counts[after] <= most:
            raise ValueError(f"its '{place}/{after}' is {shown(counts[after])}; expected 0 to {most}")
    if spare and counts["processed"] < counts["ready"] - spare:
        raise ValueError(f"its '{place}/ready' is {shown(counts['ready'])}, but {counts['processed']} were processed")


def check_optimizers(checkpoint: Mapping[str, Any]) -> None:
    """Refuse states of optimizers and schedules that are missing, or of another step than that of the fit.

    The state of each parameter is compared when the optimizer restores it.

    Raises:
        ValueError: With the entry.
    """
    for name, entries in {"optimizer_states": OPTIMIZER, "lr_schedulers": SCHEDULE}.items():
        if not checkpoint[name]:
            raise ValueError(f"its {name!r} is empty")
        for number, state in enumerate(checkpoint[name]):
            check_entries({str(number): state}, {str(number): dict}, f"{name}/")
            check_entries(state, entries, f"{name}/{number}/")
    steps = checkpoint["global_step"]
    for number, state in enumerate(checkpoint["optimizer_states"]):
        if not state["state"] and steps > 0:
            raise ValueError(f"its optimizer has no state after {steps} steps")
        place = f"optimizer_states/{number}/state"
        for index, moments in state["state"].items():
            check_entries({str(index): moments}, {str(index): dict}, f"{place}/")
            step = moments.get("step", 0)
            if isinstance(step, Tensor) and step.numel() == 1:
                step = step.item()
            if not isinstance(step, (int, float)) or not 0 <= step <= steps:
                raise ValueError(f"its '{place}/{index}/step' is {shown(step)}, and the fit has made {steps} steps")
    for number, state in enumerate(checkpoint["lr_schedulers"]):
        for index, function in enumerate(state["lr_lambdas"]):  # plain functions have no state
            place = f"lr_schedulers/{number}/lr_lambdas/"
            check_entries({str(index): function}, {str(index): type(None)}, place)
        latest = max(steps, checkpoint["epoch"] + 1)
        if not 0 <= state["last_epoch"] <= latest:
            place = f"lr_schedulers/{number}/last_epoch"
            raise ValueError(f"its '{place}' is {state['last_epoch']}; expected a number from 0 to {latest}")


def check_average(checkpoint: Mapping[str, Any]) -> None:
    """Refuse an average of the trained parameters without its decay or without the values that it averages.

    Raises:
        ValueError: With the entry.
    """
    if "ema_decay" not in checkpoint and "raw" not in checkpoint:
        return
    check_entries(checkpoint, {"ema_decay": (int, float), "raw": dict})
    if not 0 <= checkpoint["ema_decay"] < 1:
        raise ValueError(f"its 'ema_decay' is {checkpoint['ema_decay']}; expected at least 0 and below 1")
    for name, tensor in checkpoint["raw"].items():
        averaged = checkpoint["state_dict"].get(name)
        fits = averaged is not None and is_stored(tensor) and tensor.shape == averaged.shape
        if not fits or tensor.dtype != averaged.dtype:
            raise ValueError(f"its 'raw/{name}' is {shown(tensor)}; its 'state_dict/{name}' is {shown(averaged)}")
        if not tensor.isfinite().all():
            raise ValueError(f"its 'raw/{name}' holds NaN or infinity")
