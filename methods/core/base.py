"""Contract of a method: how it adapts the frozen backbone of a task, and what it trains there."""

from collections.abc import Iterable
from copy import deepcopy

import torch
from lightning import Callback
from torch import Tensor, nn

from backbones.inject import Backbone
from checkpoints.fingerprint import fingerprint
from methods.core.precision import default_dtype
from methods.core.warm_start import WarmStart


class PEFTMethod(WarmStart):
    """A way to adapt the backbone of a task; mixed in before the task, as in ``class M(SSF, Classification)``.

    A method overrides the hooks it needs: ``adapt`` and ``trainable_names`` decide what trains, ``merge_into`` puts it
    back into plain weights. Everything else here holds for all methods.
    """

    mergeable: bool = True
    unmergeable: str = "no plain model gives the same output"  # the reason, where it is not mergeable
    standalone: bool = True  # False if the method only works stacked on another one
    scales_over_widths: bool = True  # whether there are rules over widths for what trains (width_scaling)
    prunable: bool = False  # whether a fitted model can be scored, pruned and fit anew

    # hooks of a method

    def adapt(self, backbone: Backbone) -> None:
        """Insert the method's modules into the backbone, in place; call ``super().adapt(backbone)`` first."""

    def trainable_names(self) -> Iterable[str]:
        """Names (inside the backbone) of backbone parameters that train."""
        return ()

    def after_adapt(self, backbone: Backbone) -> None:
        """Change layers in place. Called after all methods have adapted and ``requires_grad`` is final."""

    def before_merge(self, backbone: Backbone) -> None:
        """Undo ``after_adapt``, in place. Called before ``merge_into``."""

    def merge_into(self, backbone: Backbone) -> None:
        """Put the trained delta into the plain weights, in place; end with ``super().merge_into(backbone)``."""

    # adapting, in six steps

    def configure_callbacks(self) -> list[Callback]:
        # runs before any data are read, so that a compiled backbone is refused early
        for name, module in self.named_modules():
            if "_orig_mod" in module._modules:
                raise ValueError(
                    f"{name} is wrapped by torch.compile, where its weights have other names: pass its original "
                    f"(_orig_mod), and compile the whole, torch.compile(model), or in place, model.{name}.compile()"
                )
        callbacks = super().configure_callbacks()
        return [callbacks] if isinstance(callbacks, Callback) else list(callbacks)

    def ready_to_adapt(self) -> bool:
        """Whether everything is known that ``adapt`` needs."""
        return True

    def configure_model(self) -> None:
        """Freeze the backbone, adapt it and unfreeze what trains; a no-op when done or while a selection is missing."""
        if self.adapted:
            return
        start = self.read_warm_start()
        if start is not None:
            self.selection = start["peft"]["selection"]
        if not self.ready_to_adapt():
            return
        plain = self.freeze_backbone()
        names = set(self.trainable_names())  # of the plain backbone, because what a method adds trains anyway
        self.adapt_backbone()
        self.check_trainable(names, plain)
        self.unfreeze_trained(names, plain)
        self.fingerprint_frozen(plain)
        if start is not None:
            self.load_warm_start(start)
        self.train(self.training)

    def freeze_backbone(self) -> dict[str, Tensor]:
        """Freeze the backbone and return its plain parameters and buffers by name."""
        self.plain_keys = frozenset(self.backbone.state_dict())
        self.backbone.requires_grad_(False)
        return dict(self.backbone.named_parameters()) | dict(self.backbone.named_buffers())

    def adapt_backbone(self) -> None:
        """Run the methods' ``adapt``; new tensors are fp32 on the backbone's device, whatever Lightning has set."""
        with default_dtype(torch.float32), next(self.backbone.parameters()).device:
            try:
                self.adapt(self.backbone)
            except (AttributeError, IndexError, KeyError, ValueError) as error:
                if self.selection is None:
                    raise
                name = getattr(self, "backbone_name", type(self.backbone).__name__)
                raise ValueError(
                    f"the selection does not fit {name}: {error}. Load the backbone that it was made on, or score anew"
                ) from error

    def check_trainable(self, names: set[str], plain: dict[str, Tensor]) -> None:
        """Refuse names of parameters that the backbone does not have, or that are stored as packed bytes only."""
        unknown = {name for name in names if not isinstance(plain.get(name), nn.Parameter)}
        if unknown:
            raise ValueError(f"{type(self).__name__}: the backbone has no {', '.join(sorted(unknown)[:5])}")
        packed = names - dict(self.backbone.named_parameters()).keys()
        if packed:
            raise ValueError(
                f"{type(self).__name__}: {', '.join(sorted(packed)[:5])} cannot train: only packed bytes are stored, "
                "which have no gradient"
            )

    def unfreeze_trained(self, names: set[str], plain: dict[str, Tensor]) -> None:
        """Let the named parameters and the heads train, then run the methods' ``after_adapt``."""
        for name in names:
            plain[name].requires_grad_(True)
        for head in self.heads().values():
            head.requires_grad_(True)
        with default_dtype(torch.float32), next(self.backbone.parameters()).device:
            self.after_adapt(self.backbone)

    def fingerprint_frozen(self, plain: dict[str, Tensor]) -> None:
        """Hash the frozen weights and count all parameters, those that are stored in packed form too."""
        # a weight that trains in full is part of the delta: only what stays frozen identifies the backbone
        frozen = {n: t for n, t in plain.items() if not (t.requires_grad or self.in_head(f"backbone.{n}"))}
        self.fingerprint = fingerprint(frozen)
        weights = {f"backbone.{name}": p for name, p in plain.items() if isinstance(p, nn.Parameter)}
        self.total_parameters = sum(p.numel() for p in (weights | dict(self.named_parameters())).values())

    # merging

    def merge(self) -> nn.Module:
        """The backbone as a plain model with the trained delta merged in; this module stays as it is.

        Returns:
            A copy of the backbone in fp32 and eval mode. Modules that cannot be merged are still in it, as extra keys.

        Raises:
            TypeError: If no plain model gives the same output.
        """
        if not self.mergeable:
            raise TypeError(f"{self.method_name()} cannot be merged because {self.unmergeable}")
        self.configure_model()
        backbone = deepcopy(self.backbone).float()  # merging in bf16 would round the frozen weights
        with torch.no_grad():
            self.before_merge(backbone)
            self.merge_into(backbone)
        return backbone.requires_grad_(False).eval()
