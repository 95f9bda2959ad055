"""Rewind: score and prune a fitted model, then fit it once more from its initial values."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from callbacks.scoring.scorable import Scorable
from callbacks.scoring.score_before_fit import ScoreBeforeFit
from callbacks.scoring.undisturbed import unchanged
from checkpoints.atomic import tensor_bytes, write_atomically


class Rewind(ScoreBeforeFit):
    """Scores a fitted model between two fits. The second fit trains what the scores keep, from the initial values.

    The first fit has neither ``fitted`` nor ``plan``. Before the second fit, the fitted model is scored in fp32 and
    eval mode, and the selection is written to ``plan``. If the file ``plan`` exists, it is read and nothing is scored.

    Args:
        initial: File with the values before the first step. The first fit writes it, the second fit starts from it.
            Without it, the second fit starts from new random values.
        plan: File with the selection.
        fitted: Checkpoint of the first fit.
        cache_dir: Folder for scores; other plans are then made without another pass. By default no cache.
    """

    def __init__(
        self,
        initial: str | None = None,
        plan: str | None = None,
        fitted: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(cache_dir=cache_dir)
        self.initial, self.plan, self.fitted = initial, plan, fitted
        self.kept: dict[str, Any] | None = None  # the plan of the second fit

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not isinstance(pl_module, Scorable) or not pl_module.prunable:
            raise ValueError(f"{type(pl_module).__name__}: nothing of this model can be pruned and fitted once more")
        self.check_trainer(trainer, pl_module)
        if self.plan is None and self.fitted is None:
            return
        self.kept = trainer.strategy.broadcast(self.read() if trainer.is_global_zero else None)
        if self.kept is None:
            assert self.fitted is not None
            with unchanged(pl_module):  # because building a model draws random numbers
                model = type(pl_module).from_delta(self.fitted)
            model.trainer = trainer  # as Lightning does before it runs a model
            scores = self.cached_scores(trainer, model)
            selection = self.select(trainer, pl_module, scores)
            self.kept = model.description() | {"fitted": self.fitted} | {"selection": plain(selection)}
            if trainer.is_global_zero and self.plan is not None:
                text = json.dumps(self.kept | {"scores": plain(scores)}, sort_keys=True)
                write_atomically(Path(self.plan), lambda path: path.write_text(text))
        self.check(pl_module)
        pl_module.use_selection(tensors(self.kept["selection"]))
        pl_module.forget_warm_start()  # because the initial values of the first fit contain it

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Scorable)
        if self.kept is not None:
            self.check(pl_module)
        if self.initial is None or trainer.ckpt_path is not None:  # a resumed run has its values from the checkpoint
            return
        if self.kept is not None:
            try:
                initial = load_file(self.initial)
            except (SafetensorError, FileNotFoundError) as error:
                raise ValueError(f"initial={self.initial!r} cannot be read: {error}") from error
            pl_module.rewind(initial)
        elif trainer.is_global_zero:
            values = {name: tensor.cpu().contiguous() for name, tensor in pl_module.delta_state_dict().items()}
            write_atomically(
                Path(self.initial), lambda path: save_file(values, path), lambda: tensor_bytes(values.values())
            )

    def read(self) -> dict[str, Any] | None:
        """Read the plan; None if there is no file yet.

        Raises:
            ValueError: If the file is damaged.
        """
        if self.plan is None or (self.fitted is not None and not Path(self.plan).exists()):
            return None
        try:
            kept = json.loads(Path(self.plan).read_text())
            tensors(kept["selection"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"plan={self.plan!r} is no readable plan: {type(error).__name__} {error}") from error
        return kept

    def check(self, pl_module: Scorable) -> None:
        """Refuse a plan that was made for another model.

        Raises:
            ValueError: With what differs.
        """
        assert self.kept is not None
        # the name of the backbone may differ, but not the hash of its weights, which is empty until it is adapted
        ours = {name: value for name, value in pl_module.description().items() if name != "backbone" and value != ""}
        wrong = [f"{n} {self.kept.get(n)}, expected {value}" for n, value in ours.items() if self.kept.get(n) != value]
        if wrong:
            made = f"plan={self.plan!r}" if self.plan is not None else f"fitted={self.fitted!r}"
            raise ValueError(f"{made} is of another model: {'; '.join(wrong)}. Score this model, or load that one")


def plain(values: dict[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in values.items()}


def tensors(values: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}
