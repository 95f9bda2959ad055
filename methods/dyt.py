"""Dynamic Tuning Towards Parameter and Inference Efficiency for ViT Adaptation (arXiv:2403.11808).

``x' = x + M * MLP(norm(x)) + A(x)`` with a mask M of tokens from a dispatcher and an adapter A for all tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.anatomy import attends_without_positions, token_sequence
from backbones.blocks import pre_norm_blocks
from backbones.inject import Backbone, attach, check_free
from callbacks.kept_tokens import KeptTokens
from lightning_modules.batch import Batch
from lightning_modules.metrics import WeightedMean
from lightning_modules.task import total
from methods.core.base import PEFTMethod
from methods.layers.token_dispatch import Adapter, AttentionDispatch, Dispatch, LayerDispatch, MixedAdapter


class DyT(PEFTMethod):
    """Dynamic Tuning (Zhao et al., NeurIPS 2024, arXiv:2403.11808).

    Args:
        dyt_dim: Width d of the adapters; 8 for VTAB-1k, 64 on larger sets.
        dyt_scale: Factor s of the adapters' output, bias included; 1 for VTAB-1k, 0.1 on larger sets.
        dyt_dropout: Probability of dropping a hidden unit of an adapter.
        dyt_rate: Target r for the share of patch tokens that are kept, over all blocks. The paper takes 0.5 if the MLP
            or the attention is dispatched, and 0.7 if both are.
        dyt_place: Branch that unimportant tokens skip. ``mlp``: the MLP. ``attention``: the attention.
            ``attention_mlp``: both, each with its own dispatcher and adapter. ``layer``: the whole block, with one
            dispatcher and one adapter.
        dyt_rate_weight: Weight alpha of the squared distance between the kept share and r.
        dyt_temperature: Temperature tau of the relaxed decisions in training.
        dyt_teacher: Loss terms of a second forward pass, in which no token skips. ``kl``: its own loss and the
            divergence of the first pass from it. ``complete``: its own loss. ``none``: no second pass.
        dyt_experts: Adapters per block, mixed for each image by a router; 1 for a plain adapter.
        dyt_router: Weights of the experts. ``softmax``: softmax of the router's output. ``linear``: the output itself.
        dyt_attention_mask: Attention in training. ``keys``: no token attends to skipped tokens, as in inference.
            ``output_only``: full attention, and only the output is masked (Eq. 5 of the paper).
        dyt_skip: Computation of an evaluation. ``gather``: skipped tokens are not computed. ``dense``: they are
            computed and masked, as always in training. ``auto``: ``gather``, or ``dense`` under torch.compile.
        dyt_drop_last: Whether an evaluation skips the last dispatched MLP and its adapter for all patch tokens if the
            backbone pools the class token. The logits stay the same, the patch tokens of ``features`` do not.
        dyt_sync_rate: Whether the kept share in the loss is the mean over all processes, not that of each process.
    """

    mergeable = False
    unmergeable = "which tokens skip an MLP depends on the image"
    input_dependent = True

    def __init__(
        self,
        dyt_dim: int = 8,
        dyt_scale: float = 1.0,
        dyt_dropout: float = 0.1,
        dyt_rate: float = 0.5,
        dyt_place: Literal["mlp", "attention", "attention_mlp", "layer"] = "mlp",
        dyt_rate_weight: float = 2.0,
        dyt_temperature: float = 5.0,
        dyt_teacher: Literal["kl", "complete", "none"] = "kl",
        dyt_experts: int = 1,
        dyt_router: Literal["softmax", "linear"] = "softmax",
        dyt_attention_mask: Literal["keys", "output_only"] = "keys",
        dyt_skip: Literal["auto", "dense", "gather"] = "auto",
        dyt_drop_last: bool = True,
        dyt_sync_rate: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if dyt_dim < 1:
            raise ValueError(f"dyt_dim={dyt_dim}: expected an adapter of at least 1 channel")
        if dyt_experts < 1:
            raise ValueError(f"dyt_experts={dyt_experts}: expected at least 1 adapter per block")
        if not 0 < dyt_rate <= 1:
            raise ValueError(f"dyt_rate={dyt_rate}: expected a share above 0 and at most 1, such as 0.5")
        if not 0 <= dyt_dropout < 1:
            raise ValueError(f"dyt_dropout={dyt_dropout}: expected a probability of at least 0 and below 1")
        if dyt_temperature <= 0:
            raise ValueError(f"dyt_temperature={dyt_temperature}: expected a positive temperature, 5 in the paper")
        if dyt_rate_weight <= 0:
            raise ValueError(f"dyt_rate_weight={dyt_rate_weight}: expected a positive weight; at 0 no token would skip")
        self.dyt_dim, self.dyt_scale, self.dyt_dropout = dyt_dim, dyt_scale, dyt_dropout
        self.dyt_rate, self.dyt_place, self.dyt_rate_weight = dyt_rate, dyt_place, dyt_rate_weight
        self.dyt_temperature, self.dyt_teacher = dyt_temperature, dyt_teacher
        self.dyt_experts, self.dyt_router, self.dyt_attention_mask = dyt_experts, dyt_router, dyt_attention_mask
        self.dyt_skip, self.dyt_drop_last, self.dyt_sync_rate = dyt_skip, dyt_drop_last, dyt_sync_rate
        if dyt_skip == "gather":
            self.uncompilable = "dyt_skip=gather makes tensors whose size depends on the image; use dyt_skip=auto"
        self.recomputes, self.last_kept = False, torch.zeros(())  # share of patch tokens that ran in the last step
        dispatchable_blocks(self.backbone, dyt_place)  # refuses an unsuitable backbone before any image is read

    def configure_callbacks(self) -> list[Callback]:
        return [*super().configure_callbacks(), KeptTokens()]

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        blocks = dispatchable_blocks(backbone, self.dyt_place)
        for block in blocks:
            if self.dyt_place in ("attention", "attention_mlp"):
                attention = self.new(AttentionDispatch, backbone)
                add_child(block, "dyt_attention", attention)
                block.norm1.register_forward_pre_hook(attention.pre_hook)
                block.attn.register_forward_pre_hook(attention.attention_pre_hook, with_kwargs=True)
                block.drop_path1.register_forward_hook(attention.hook)
            if self.dyt_place in ("mlp", "attention_mlp"):
                mlp = self.new(Dispatch, backbone)
                add_child(block, "dyt_mlp", mlp)
                block.norm2.register_forward_pre_hook(mlp.pre_hook)
                block.drop_path2.register_forward_hook(mlp.hook)
                # patch tokens of the last block have no effect on the logits, because only the class token is pooled
                pools_class_token = getattr(backbone, "global_pool", "") == "token" and backbone.num_prefix_tokens > 0
                mlp.prefix_only = self.dyt_drop_last and block is blocks[-1] and pools_class_token and not self.dense
            if self.dyt_place == "layer":
                layer = self.new(LayerDispatch, backbone)
                block.register_forward_pre_hook(layer.pre_hook)
                block.attn.register_forward_pre_hook(layer.attention_pre_hook, with_kwargs=True)
                attach(block, "dyt_layer", layer)
        self.kept: Any = nn.ModuleList(WeightedMean() for _ in [*self.dispatches, "all"])

    def new(self, kind: type[Dispatch], backbone: Backbone) -> Any:
        sizes = (backbone.embed_dim, self.dyt_dim, self.dyt_scale, self.dyt_dropout)
        adapter = Adapter(*sizes) if self.dyt_experts == 1 else MixedAdapter(self.dyt_experts, self.dyt_router, *sizes)
        op = kind(backbone.embed_dim, adapter, self.dyt_temperature, backbone.num_prefix_tokens, self.dyt_skip)
        op.mask_keys = self.dyt_attention_mask == "keys"
        return op

    @property
    def dispatches(self) -> dict[str, Dispatch]:
        """Dispatchers (with their adapters) by name, in the order in which they run."""
        return {name: m for name, m in self.backbone.named_modules() if isinstance(m, Dispatch)}

    def forward(self, inputs: Tensor, complete: bool = False) -> Tensor:
        """Outputs of the task for images (B, 3, H, W).

        Args:
            inputs: The images.
            complete: Whether all tokens run through all blocks.
        """
        ops = self.dispatches.values()
        for op in ops:
            op.complete = complete
        if self.recomputes:  # not the complete pass, because a second computation of a block skips tokens again
            super().recompute(not complete)
        try:
            return super().forward(inputs)
        finally:
            for op in ops:
                op.complete = False
            if self.recomputes:
                super().recompute(True)

    def recompute(self, enabled: bool) -> None:
        """Compute activations inside blocks again in the backward pass; those of the teacher are kept."""
        super().recompute(enabled)
        self.recomputes = enabled

    def fix_shapes(self) -> None:
        super().fix_shapes()
        for op in self.dispatches.values():
            op.skip = "dense"

    @contextmanager
    def masks(self) -> Iterator[list[Tensor]]:
        """Collect the masks (B, N) of patch tokens, one for each dispatcher that runs inside the context."""
        ops, found = self.dispatches.values(), list[Tensor]()
        for op in ops:
            op.record = found
        try:
            yield found
        finally:
            for op in ops:
                op.record = None

    # training

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Terms of the loss: those of the task and, in training, of the teacher and of the kept share."""
        if not (self.training and self.adapted):
            return super().terms(batch)
        batch = self.augment(batch)
        with self.masks() as masks:
            outputs = self(batch.inputs)
        kept = torch.cat([mask.flatten() for mask in masks]).mean()
        if self.dyt_sync_rate and self.trainer.world_size > 1:
            kept = self.all_gather(kept, sync_grads=True).mean()  # type: ignore[union-attr]
        self.last_kept = kept.detach()
        terms = self.losses(outputs, batch.targets)
        terms["rate_loss"] = self.dyt_rate_weight * (kept - self.dyt_rate) ** 2
        if self.dyt_teacher != "none":
            teacher = self(batch.inputs, complete=True)
            terms["complete_loss"] = total(self.losses(teacher, batch.targets))
            if self.dyt_teacher == "kl":
                log_p, log_q = (self.logits(out).float().log_softmax(1) for out in (teacher, outputs))
                divergence = F.kl_div(log_q, log_p.detach(), reduction="none", log_target=True)
                terms["distill_loss"] = divergence.sum(1).mean()  # over images, or over pixels of a dense task
        return terms

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        self.log("train/kept", self.last_kept)

    # evaluation

    def evaluate(self, batch: Batch) -> Tensor:
        """Outputs for a batch. Logs the share of patch tokens that ran, for each dispatched branch and for all.

        This share is 0 in the last block if ``dyt_drop_last`` has an effect.
        """
        with self.masks() as masks:
            outputs = super().evaluate(batch)
        split = "test" if self.trainer.testing else "val"
        names = [name.removeprefix("blocks.") for name in self.dispatches]
        # (dispatchers, images); a dense task passes the windows of an image, in one pass or several
        shares = [torch.cat(masks[i :: len(names)]).float().mean(-1) for i in range(len(names))]
        kept = torch.stack(shares).unflatten(1, (batch.size, -1)).mean(-1)
        for name, values, metric in zip([*names, "all"], [*kept, kept], self.kept, strict=True):
            metric.update(values, batch.valid)
            self.log(f"{split}/kept/{name}", metric, on_step=False, on_epoch=True)
        return outputs


def dispatchable_blocks(backbone: Backbone, place: str) -> list[Any]:
    """Blocks of a backbone with one sequence of tokens.

    Args:
        backbone: The backbone.
        place: Option ``dyt_place``.

    Raises:
        ValueError: If tokens of this backbone cannot skip ``place``.
    """
    use = "DyT drops tokens from a sequence"
    token_sequence(backbone, use)
    blocks = pre_norm_blocks(backbone, use)
    if place != "mlp" and not all(attends_without_positions(block) for block in blocks):
        raise ValueError(
            f"dyt_place={place!r}: the attention of {type(backbone).__name__} rotates tokens by their "
            "place in the full sequence; expected dyt_place=mlp"
        )
    return blocks


def add_child(block: Any, name: str, op: Dispatch) -> None:
    """Add a dispatcher to a block under a name that is free."""
    check_free(block, name)
    block.add_module(name, op)
