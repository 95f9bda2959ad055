"""Contract of a method: how it adapts the frozen backbone of a task, and which parameters it trains."""

from collections.abc import Iterable
from copy import deepcopy
from typing import ClassVar

import torch
from lightning import Callback
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from backbones.evaluating import evaluating
from backbones.inject import Backbone
from backbones.used import used_parameters
from callbacks.scoring.undisturbed import eagerly
from checkpoints.fingerprint import fingerprint
from lightning_modules.heads.feature_norm import merge_norms
from lightning_modules.task import Task
from methods.core.precision import default_dtype
from methods.core.sharded import check_strategy
from methods.core.warm_start import WarmStart


class PEFTMethod(WarmStart):
    """Mixin that adapts the backbone of a task, as in ``class M(SSF, Classification)``.

    A method overrides the hooks it needs. ``adapt`` and ``trainable_names`` decide which parameters train.
    ``merge_into`` merges the trained delta into plain weights. The other functions of this class serve all methods.
    """

    mergeable: bool = True
    unmergeable: str = "no plain model gives the same output"  # the reason, if the method is not mergeable
    standalone: bool = True  # False if the method only works stacked on another one
    scales_over_widths: bool = True  # whether width_scaling has rules for the trained parameters
    used: set[str] | None = None  # names of used parameters of the plain backbone; see ``used_names``
    prunable: bool = False  # whether a fitted model can be scored, pruned and fitted once more
    shardable: ClassVar[bool] = False  # whether ``Sharded`` can train it; not inherited

    # hooks of a method

    @classmethod
    def refusal(cls, task: type[Task]) -> str:
        """Reason why this method cannot serve a task, with another method for it; empty if it can.

        Args:
            task: The task, which may be a composition with methods.
        """
        return ""

    def adapt(self, backbone: Backbone) -> None:
        """Insert the method's modules into the backbone, in place; call ``super().adapt(backbone)`` first."""

    def trainable_names(self) -> Iterable[str]:
        """Names (inside the backbone) of backbone parameters that train."""
        return ()

    def after_adapt(self, backbone: Backbone) -> None:
        """Change layers in place. Called when all methods have adapted and ``requires_grad`` is final."""

    def before_merge(self, backbone: Backbone) -> None:
        """Undo ``after_adapt``, in place. Called before ``merge_into``."""

    def merge_into(self, backbone: Backbone) -> None:
        """Merge the trained delta into the plain weights, in place; end with ``super().merge_into(backbone)``."""

    def fix_shapes(self) -> None:
        """Make the sizes of all tensors of an evaluation independent of the images, for formats that need this."""

    def used_names(self) -> list[str]:
        """Names of backbone parameters that the outputs depend on, in model order.

        Networks of timm can have parameters without use, such as the norm of another pooling. These must stay frozen,
        because plain DDP waits for their gradients.
        """
        if self.used is None:
            inputs = move_data_to_device(self.example_batch().inputs, next(self.backbone.parameters()).device)
            with evaluating(self), eagerly():  # because a graph of the plain backbone cannot be used later
                self.used = used_parameters(self.backbone, lambda: self.logits(self(inputs)))
        return [name for name, _ in self.backbone.named_parameters() if name in self.used]

    # adapting, in six steps

    def configure_callbacks(self) -> list[Callback]:
        self.refuse_precision()
        self.refuse_compiled()
        check_strategy(self.trainer.strategy)
        self.adapt_before_data()  # here, because this is the first hook of a run, before any data are read
        callbacks = super().configure_callbacks()
        return [callbacks] if isinstance(callbacks, Callback) else list(callbacks)

    def refuse_compiled(self) -> None:
        """Refuse a compiled backbone, because its weights have other names.

        Raises:
            ValueError: With the name of the compiled module.
        """
        for name, module in self.named_modules():
            if "_orig_mod" in module._modules:
                raise ValueError(
                    f"{name} is wrapped by torch.compile, where its weights have other names: pass its original "
                    f"(_orig_mod), and compile the whole, torch.compile(model), or in place, model.{name}.compile()"
                )

    def adapt_before_data(self) -> None:
        """Adapt the backbone if that needs no data, so that a backbone that does not fit is refused early.

        Raises:
            ValueError: With what the backbone lacks and what to use instead.
        """
        self.configure_model()

    def ready_to_adapt(self) -> bool:
        """Whether ``adapt`` can run; False while a selection is missing."""
        return True

    def configure_model(self) -> None:
        """Freeze the backbone, adapt it and unfreeze trained parameters.

        A second call has no effect, nor has a call before ``ready_to_adapt``.

        Raises:
            ValueError: If a method refuses the task, or the backbone.
        """
        refused = self.refusal(type(self))
        if refused:
            raise ValueError(refused)
        if self.adapted:
            return
        start = self.read_warm_start()
        if start is not None:
            self.selection = start["peft"]["selection"]
        if not self.ready_to_adapt():
            return
        plain_keys, plain = frozenset(self.backbone.state_dict()), self.freeze_backbone()
        names = set(self.trainable_names())  # from the plain backbone, because all added parameters train anyway
        self.adapt_backbone()
        self.plain_keys = plain_keys
        self.check_trainable(names, plain)
        self.unfreeze_trained(names, plain)
        self.fingerprint_frozen(plain)
        if start is not None:
            self.load_warm_start(start)
        self.train(self.training)

    def freeze_backbone(self) -> dict[str, Tensor]:
        """Freeze the backbone and return its plain parameters and buffers by name."""
        self.backbone.requires_grad_(False)
        return dict(self.backbone.named_parameters()) | dict(self.backbone.named_buffers())

    def adapt_backbone(self) -> None:
        """Run ``adapt`` of the methods. New tensors are fp32 on the backbone's device for every precision of the run.

        Raises:
            ValueError: If the selection does not fit the backbone.
        """
        with default_dtype(torch.float32), next(self.backbone.parameters()).device:
            try:
                self.adapt(self.backbone)
            except (AttributeError, IndexError, KeyError, ValueError) as error:
                if self.selection is None:
                    raise
                name = getattr(self, "backbone_name", type(self.backbone).__name__)
                raise ValueError(
                    f"the selection does not fit {name}: {error}. Load the backbone of the selection, or score again"
                ) from error

    def check_trainable(self, names: set[str], plain: dict[str, Tensor]) -> None:
        """Refuse unknown names of parameters, and parameters that are stored as packed bytes.

        Raises:
            ValueError: With the names.
        """
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
        """Make the named parameters and the heads trainable, then run ``after_adapt`` of the methods."""
        for name in names:
            plain[name].requires_grad_(True)
        for head in self.heads().values():
            head.requires_grad_(True)
        with default_dtype(torch.float32), next(self.backbone.parameters()).device:
            self.after_adapt(self.backbone)

    def fingerprint_frozen(self, plain: dict[str, Tensor]) -> None:
        """Hash the frozen weights and count all parameters, including those in packed form."""
        # without weights that train in full: the delta contains them, and frozen weights identify the backbone
        heads = self.head_prefixes
        frozen = {n: t for n, t in plain.items() if not (t.requires_grad or f"backbone.{n}".startswith(heads))}
        self.fingerprint = fingerprint(frozen)
        weights = {f"backbone.{name}": p for name, p in plain.items() if isinstance(p, nn.Parameter)}
        self.total_parameters = sum(p.numel() for p in (weights | dict(self.named_parameters())).values())

    # merging

    def merge(self) -> nn.Module:
        """Merge the trained delta into a plain copy of the backbone; this module does not change.

        Returns:
            A copy of the backbone in fp32 and eval mode. Modules that cannot be merged stay in it, as extra keys.

        Raises:
            TypeError: If no plain model gives the same output.
        """
        if not self.mergeable:
            raise TypeError(f"{self.method_name()} cannot be merged because {self.unmergeable}")
        self.configure_model()
        backbone = deepcopy(self.backbone).float()  # because a merge in bf16 would round the frozen weights
        with torch.no_grad():
            self.before_merge(backbone)
            self.merge_into(backbone)
            merge_norms(backbone)
            self.finish_merged(backbone)
        return backbone.requires_grad_(False).eval()
