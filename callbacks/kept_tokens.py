"""Picture of the tokens that a method keeps."""

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from callbacks.scoring.undisturbed import eagerly
from checkpoints.atomic import write_atomically
from lightning_modules.batch import Batch
from lightning_modules.run import writes_files


class KeptTokens(Callback):
    """Draws ``kept_tokens.png`` after a fit or a test: some images, and below each the patches that blocks keep.

    Args:
        images: Number of images: the first ones of the split that was evaluated last.
    """

    def __init__(self, images: int = 8) -> None:
        self.images, self.shown = images, torch.empty(0)

    def keep(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int, *_: Any
    ) -> None:
        if batch_idx == 0:
            self.shown = batch.inputs[: self.images].detach().clone()

    @torch.no_grad()
    def draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = Path(str(trainer.log_dir or trainer.default_root_dir))  # all ranks must call log_dir
        if not writes_files(trainer) or not len(self.shown):
            return
        task: Any = pl_module  # a method with ``masks``, such as DyT
        training = task.training
        with task.eval().masks() as masks, eagerly(), task.mixed_dtypes():
            # not the whole model, because the images can be a part of a clip; it is on the CPU after a fit on a GPU
            task.features(self.shown.to(task.device))
        task.train(training)
        sides = zip(self.shown.shape[2:], task.backbone.patch_embed.patch_size, strict=True)
        kept = torch.stack(masks).float().mean(0).unflatten(1, [1, *(-(-side // patch) for side, patch in sides)])
        write_picture(folder / "kept_tokens.png", self.shown.float().cpu(), kept.cpu())
        self.shown = torch.empty(0)

    on_validation_batch_end = on_test_batch_end = keep  # type: ignore[assignment]
    on_fit_end = on_test_end = draw


def write_picture(path: Path, images: Tensor, kept: Tensor) -> None:
    """Draw images in one row, and below each the image with its patches darkened by how rarely they are kept.

    Args:
        path: File to write.
        images: Images (B, 3, H, W) of any range.
        kept: Share (B, 1, h, w) in [0, 1] of the blocks that keep a patch.
    """
    from matplotlib.figure import Figure

    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    images = (images - low) / (high - low).clamp(min=1e-6)
    size = list(images.shape[2:])
    brightness = F.interpolate(kept / kept.max().clamp(min=1e-6), size)
    figure = Figure(figsize=(1.6 * len(images), 3.6), layout="constrained")
    axes = figure.subplots(2, len(images), squeeze=False)
    for row, pictures in zip(axes, (images, images * (0.15 + 0.85 * brightness)), strict=True):
        for axis, picture in zip(row, pictures.permute(0, 2, 3, 1).numpy(), strict=True):
            axis.imshow(picture)
            axis.axis("off")
    figure.suptitle(f"below: the brighter a patch, the more blocks keep it (brightest: {kept.max():.0%} of them)")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=100))
