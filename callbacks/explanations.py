"""Pictures of where a model looks: Grad-CAM (arXiv:1610.02391) and attention roll-out (arXiv:2005.00928)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.anatomy import token_grid, token_sequence
from checkpoints.atomic import write_atomically
from lightning_modules.batch import Batch
from lightning_modules.run import datamodule_of

Explain = Literal["gradcam", "rollout"]
USE = "a map over the patches needs their tokens"


class Explanations(BasePredictionWriter):
    """Writes ``explanations/INDEX_NAME.png`` into the run folder in ``predict``: the image below a heat map.

    Args:
        kind: ``gradcam`` or ``rollout``.
    """

    def __init__(self, kind: Explain) -> None:
        super().__init__(write_interval="batch")
        self.kind = kind
        self.written = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if getattr(pl_module, "dense", False):
            raise ValueError("explain is for a class of the whole image, and this task predicts masks: leave it out")
        if getattr(pl_module, "unit", "image") != "image":
            raise ValueError(f"explain is for single images, and this task reads {pl_module.unit}s: leave it out")
        if self.kind == "rollout":
            attentions(pl_module.backbone)  # refuses an unsuitable backbone before the first image

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Tensor,
        batch_indices: Sequence[int] | None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        with torch.inference_mode(False):  # because Grad-CAM needs gradients
            images, classes = batch.inputs.clone(), prediction.argmax(1).clone()
            maps = grad_cam(pl_module, images, classes) if self.kind == "gradcam" else rollout(pl_module, images)
        data, folder = datamodule_of(trainer).splits["test"], Path(str(trainer.log_dir)) / "explanations"
        assert batch_indices is not None
        for index, heat in zip(batch_indices, maps, strict=True):
            name = f"{index:06d}_{Path(data.samples.name(index)).stem}.png"
            write_atomically(folder / name, partial(overlay(data[index][0], heat).save, format="PNG"))
        self.written += len(batch_indices)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = Path(str(trainer.log_dir)) / "explanations"  # all ranks must call log_dir
        if trainer.is_global_zero:
            print(f"{self.written * trainer.world_size} pictures in {folder}")


def grad_cam(model: Any, images: Tensor, classes: Tensor) -> Tensor:
    """Maps (B, h, w) from 0 to 1: the last map of features, weighted by the mean gradient of each channel.

    For a network of tokens, it is the input of the last block, because a class token alone goes on from its output.

    Args:
        model: Adapted classification model in eval mode.
        images: Normalised images (B, C, H, W).
        classes: Class (B,) whose logit is differentiated.

    Raises:
        ValueError: If the backbone has neither maps nor one sequence of tokens.
    """
    with torch.enable_grad(), kept_gradients(model):
        features = model.features(images)
        if features.dim() == 4:
            found = features.detach().requires_grad_()
            logits = model.predict_from(found)
        else:
            found, logits = through_last_block(model, images)
        (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), found)
    if features.dim() == 3:
        grid = token_grid(model.backbone, (images.shape[2], images.shape[3]))
        # patches are the last tokens, behind class token, registers and prompts
        found, gradient = (
            t[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid) for t in (found.detach(), gradient)
        )
    elif features.shape[1] != model.backbone.num_features:  # Swin and others have channels last
        found, gradient = (t.permute(0, 3, 1, 2) for t in (found.detach(), gradient))
    weights = gradient.mean((2, 3), keepdim=True)
    return scaled((weights * found.detach()).sum(1).relu())


def through_last_block(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Input (B, N, C) of the last block, from which the gradient starts, and the logits."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        kept.append(args[0].detach().requires_grad_())
        return (kept[-1], *args[1:])

    handle = token_sequence(model.backbone, USE).blocks[-1].register_forward_pre_hook(keep)
    try:
        logits = model(images)
    finally:
        handle.remove()
    return kept[-1], logits


@contextmanager
def kept_gradients(model: nn.Module) -> Iterator[None]:
    """Switch the gradients of parameters off, because only those of features are wanted."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def attentions(backbone: Any) -> list[Any]:
    """Attention layers of a plain vision transformer that can give their weights.

    Raises:
        ValueError: If the backbone or the method has attention of another kind.
    """
    layers = [getattr(block, "attn", None) for block in token_sequence(backbone, "explain=rollout: " + USE).blocks]
    if not all(hasattr(layer, "attn_drop") and hasattr(layer, "fused_attn") for layer in layers):
        raise ValueError(f"explain=rollout: {type(backbone).__name__} has no attention weights to look at: use gradcam")
    return layers


def rollout(model: Any, images: Tensor) -> Tensor:
    """Maps (B, h, w) from 0 to 1: product over the blocks of ``(A + I) / 2``, with the mean A of all heads.

    The map is the row of the class token, or the mean row if there is none, at the patches.

    Args:
        model: Adapted classification model in eval mode.
        images: Normalised images (B, C, H, W).

    Raises:
        ValueError: If a layer gives no attention weights, or their number changes between blocks.
    """
    layers, found = attentions(model.backbone), list[Tensor]()
    fused = [layer.fused_attn for layer in layers]
    handles = [layer.attn_drop.register_forward_hook(lambda m, a, out: found.append(out.mean(1))) for layer in layers]
    try:
        for layer in layers:
            layer.fused_attn = False
        with torch.no_grad():
            model(images)
    finally:
        for layer, before, handle in zip(layers, fused, handles, strict=True):
            layer.fused_attn = before
            handle.remove()
    if len(found) != len(layers) or len({weights.shape for weights in found}) != 1:
        raise ValueError(f"explain=rollout: {model.method_name()} changes the attention or its tokens: use gradcam")
    product: Tensor | None = None
    for weights in found:
        step = (weights + torch.eye(weights.shape[1], device=weights.device)) / 2
        product = step if product is None else step @ product
    assert product is not None
    start = product[:, 0] if model.backbone.num_prefix_tokens else product.mean(1)
    grid = token_grid(model.backbone, (images.shape[2], images.shape[3]))
    return scaled(start[:, -grid[0] * grid[1] :].unflatten(1, grid))


def scaled(maps: Tensor) -> Tensor:
    """Maps (B, h, w), each from 0 to 1."""
    low, high = (f(maps.flatten(1), 1)[:, None, None] for f in (torch.amin, torch.amax))
    return (maps - low) / (high - low).clamp(min=1e-12)


def overlay(pixels: Tensor, heat: Tensor) -> Image.Image:
    """Picture of an image (C, H, W), uint8, below the colours of a map (h, w) from 0 to 1."""
    from matplotlib import colormaps

    size: Sequence[int] = pixels.shape[1:]
    large = F.interpolate(heat[None, None].float().cpu(), size=tuple(size), mode="bilinear")[0, 0]
    colours = torch.from_numpy(colormaps["inferno"](large.numpy())[..., :3] * 255)
    image = pixels[:3].expand(3, -1, -1).permute(1, 2, 0)
    return Image.fromarray((0.5 * image + 0.5 * colours).round().byte().numpy())
