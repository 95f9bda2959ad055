"""Compilation of the network."""

from contextlib import ExitStack
from typing import Any, Literal, cast

import torch
import torch._dynamo
from lightning import Callback, LightningModule, Trainer

from lightning_modules.adapted import AdaptedTask

Mode = Literal["default", "reduce-overhead", "max-autotune"]


class Compiled(Callback):
    """Compile the forward pass of the network, and its backward pass, with torch.compile.

    ``forward`` of the model is replaced while the trainer runs, so that all modules and tensors keep their names.
    Passes that are run once, such as scoring, are not compiled.

    Args:
        mode: Mode of torch.compile; None compiles nothing.
    """

    def __init__(self, mode: Mode | None = None) -> None:
        self.mode = mode
        self.settings = ExitStack()  # of the compiler, while the trainer runs

    def check(self, task: AdaptedTask) -> None:
        """Refuse a model that cannot be compiled.

        Raises:
            ValueError: With the name of the method and the reason.
        """
        if self.mode is not None and task.uncompilable:
            raise ValueError(
                f"compile={self.mode}: {task.method_name()} cannot be compiled, because {task.uncompilable}; or leave "
                "compile out"
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.mode is None:
            return
        self.check(cast(AdaptedTask, pl_module))
        if stage == "fit":
            torch.compiler.reset()  # otherwise earlier models of this process count for the limit of graphs
        # otherwise a block that is computed again breaks the graph if a hook keeps a tensor for another one
        settings = torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True)
        self.settings.enter_context(settings)
        # the attribute of this object, and not Module.compile, because DDP of Lightning runs its steps through __call__
        pl_module.forward = torch.compile(pl_module.forward, mode=self.mode)  # type: ignore[method-assign]

    def start_step(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Mark the start of a step, because a CUDA graph writes the outputs of a step over those of the one before."""
        if self.mode is not None:
            torch.compiler.cudagraph_mark_step_begin()

    on_train_batch_start = on_validation_batch_start = on_test_batch_start = on_predict_batch_start = start_step

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.settings.close()
        if self.mode is not None:
            vars(pl_module).pop("forward", None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "")
