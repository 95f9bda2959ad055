"""State of a run: what is missing, damaged or contradicts itself is named before a fit goes on."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from callbacks.ema import EMA
from checkpoints.resumable import check_evaluable, check_resumable
from datamodules import ImageDataset
from methods import PEFTMethod
from tests.conftest import build_tiny, quiet_trainer

Checkpoint = dict[str, Any]


@pytest.fixture(scope="module")
def resumable(images: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """What Lightning saves after two steps of a fit with an average."""
    folder = tmp_path_factory.mktemp("resumable")
    fit = quiet_trainer(folder, max_steps=2, callbacks=[EMA(0.9)], enable_checkpointing=True)
    fit.fit(build_tiny(weights, "ssf"), datamodule=ImageDataset(root=str(images), batch_size=4, resize="direct"))
    fit.save_checkpoint(folder / "model.ckpt")
    checkpoint: Checkpoint = torch.load(folder / "model.ckpt", weights_only=True)
    return checkpoint


def loops(checkpoint: Checkpoint, name: str = "epoch_loop.automatic_optimization.optim_progress") -> Checkpoint:
    found: Checkpoint = checkpoint["loops"]["fit_loop"][name]
    return found


def moments(checkpoint: Checkpoint) -> Checkpoint:
    """State of the optimizer for the first parameter."""
    found: Checkpoint = checkpoint["optimizer_states"][0]["state"][0]
    return found


def best(checkpoint: Checkpoint) -> Checkpoint:
    """State of the callback that keeps checkpoints."""
    (found,) = (state for name, state in checkpoint["callbacks"].items() if name.startswith("ModelCheckpoint"))
    return found


HEAD = "backbone.head.bias"
LOOPS = "loops/fit_loop/epoch_"
CHANGES: dict[str, Callable[[Checkpoint], Any]] = {
    # what is missing, or has another type
    "it has no 'optimizer_states'": lambda c: c.pop("optimizer_states"),
    "its 'optimizer_states' is empty": lambda c: c.update(optimizer_states=[]),
    "its optimizer has no state after 2 steps": lambda c: c["optimizer_states"][0].update(state={}),
    "its 'optimizer_states/0' is None; expected a mapping": lambda c: c.update(optimizer_states=[None]),
    "it has no 'optimizer_states/0/param_groups'": lambda c: c["optimizer_states"][0].pop("param_groups"),
    "its 'optimizer_states/0/state/0' is 1; expected a mapping": lambda c: c["optimizer_states"][0]["state"].update(
        {0: 1}
    ),
    "it has no 'lr_schedulers'": lambda c: c.pop("lr_schedulers"),
    "its 'lr_schedulers' is empty": lambda c: c.update(lr_schedulers=[]),
    "it has no 'lr_schedulers/0/last_epoch'": lambda c: c["lr_schedulers"][0].pop("last_epoch"),
    "its 'lr_schedulers/0/lr_lambdas/1' is True; expected none": lambda c: c["lr_schedulers"][0][
        "lr_lambdas"
    ].__setitem__(1, True),
    "its 'epoch' is '1'; expected a whole number": lambda c: c.update(epoch="1"),
    "it has no 'global_step'": lambda c: c.pop("global_step"),
    "it has no 'callbacks'": lambda c: c.pop("callbacks"),
    "its 'callbacks/EMA' is 'x'; expected a mapping": lambda c: c["callbacks"].update(EMA="x"),
    "it has no 'callbacks/ModelCheckpoint/best_model_path'": lambda c: best(c).pop("best_model_path"),
    "its 'callbacks/ModelCheckpoint/best_model_score' is 'x'; expected a tensor or none": lambda c: best(c).update(
        best_model_score="x"
    ),
    "it has no 'loops'": lambda c: c.pop("loops"),
    "it has no 'loops/fit_loop'": lambda c: c["loops"].pop("fit_loop"),
    f"its '{LOOPS}progress/current/ready' is 'x'": lambda c: loops(c, "epoch_progress")["current"].update(ready="x"),
    f"it has no '{LOOPS}loop.automatic_optimization.optim_progress'": lambda c: c["loops"]["fit_loop"].pop(
        "epoch_loop.automatic_optimization.optim_progress"
    ),
    # counters that contradict each other
    "its 'epoch' is 5, and its loops count 1": lambda c: c.update(epoch=5),
    "its 'global_step' is 3, and its loops count 2": lambda c: c.update(global_step=3),
    f"its '{LOOPS}progress/total/completed' is -1; expected 0 to 2": lambda c: loops(c, "epoch_progress")[
        "total"
    ].update(completed=-1),
    f"its '{LOOPS}loop.batch_progress/total/processed' is 9; expected 0 to 2": lambda c: loops(
        c, "epoch_loop.batch_progress"
    )["total"].update(processed=9),
    f"its '{LOOPS}progress/current/ready' is 5, but 1 were processed": lambda c: loops(c, "epoch_progress")[
        "current"
    ].update(ready=5, started=5),
    f"its '{LOOPS}loop.batch_progress/current/ready' is 7; expected at most the total, 2": lambda c: loops(
        c, "epoch_loop.batch_progress"
    )["current"].update(ready=7),
    "it has 2 steps of the optimizer after 1 batches": lambda c: [
        loops(c, "epoch_loop.batch_progress")[span].update(dict.fromkeys(loops(c, "epoch_progress")["total"], 1))
        for span in ("total", "current")
    ],
    r"its 'optimizer_states/0/state/0/step' is 9\.0, and the fit has made 2 steps": lambda c: moments(c).update(
        step=torch.tensor(9.0)
    ),
    "its 'optimizer_states/0/state/0/step' is 'two'": lambda c: moments(c).update(step="two"),
    "its 'optimizer_states/0/state/0/step' is nan": lambda c: moments(c).update(step=torch.tensor(torch.nan)),
    "its 'lr_schedulers/0/last_epoch' is 40; expected a number from 0 to 2": lambda c: c["lr_schedulers"][0].update(
        last_epoch=40
    ),
    # the average
    "it has no 'raw', where a mapping is expected": lambda c: c.pop("raw"),
    "it has no 'ema_decay', where a whole number or a number is expected": lambda c: c.pop("ema_decay"),
    "its 'ema_decay' is 1.5; expected at least 0 and below 1": lambda c: c.update(ema_decay=1.5),
    rf"its 'raw/{HEAD}' is a tensor \(2,\) of torch.float32; its 'state_dict/{HEAD}' is a tensor \(3,\)": lambda c: c[
        "raw"
    ].update({HEAD: torch.zeros(2)}),
    "its 'raw/extra' is 1; its 'state_dict/extra' is None": lambda c: c["raw"].update(extra=1),
    f"its 'raw/{HEAD}' holds NaN or infinity": lambda c: c["raw"].update({HEAD: torch.full((3,), torch.inf)}),
}


@pytest.mark.parametrize("message", CHANGES)
def test_no_fit_goes_on_from_half_a_state(message: str, resumable: Checkpoint) -> None:
    check_resumable(resumable)
    changed = copy.deepcopy(resumable)
    CHANGES[message](changed)
    with pytest.raises(ValueError, match=f"no fit can go on from it: {message}.*--model.init_from PATH"):
        check_resumable(changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"callbacks": "x"}, "its 'callbacks' is 'x'; expected a mapping"),
        (
            {"callbacks": {"ModelCheckpoint{'monitor': None}": {}}},
            "it has no 'callbacks/ModelCheckpoint/best_model_path'",
        ),
        ({"loops": []}, "its 'loops' is []; expected a mapping"),
        ({"loops": {}}, "it has no 'loops/validate_loop'"),
    ],
)
def test_states_that_an_evaluation_reads(change: Checkpoint, message: str, resumable: Checkpoint) -> None:
    check_evaluable(resumable)
    check_evaluable({})
    with pytest.raises(ValueError, match=re.escape(message)):
        check_evaluable(resumable | change)


def test_a_fit_without_an_average(resumable: Checkpoint) -> None:
    check_resumable({name: value for name, value in resumable.items() if name not in ("raw", "ema_decay")})


def test_a_fit_in_a_notebook_does_not_go_on_without_an_optimizer(
    resumable: Checkpoint,
    build: Callable[..., PEFTMethod],
    data: Callable[..., ImageDataset],
    trainer: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    resumable = {name: value for name, value in resumable.items() if name != "callbacks"} | {"callbacks": {}}
    torch.save(resumable | {"optimizer_states": []}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="no fit can go on from it: its 'optimizer_states' is empty"):
        trainer(max_epochs=2).fit(build("ssf"), datamodule=data(), ckpt_path=tmp_path / "model.ckpt")
    tested = trainer().test(build("ssf"), datamodule=data(), ckpt_path=tmp_path / "model.ckpt", verbose=False)
    assert "test/acc1" in tested[0], "an evaluation needs no optimizer"
