"""What every method shares: freezing, adapting, merging, and checkpoints that hold only what trains."""

from collections.abc import Iterable
from copy import deepcopy
from inspect import signature
from pathlib import Path
from typing import Any, Self

import torch
from lightning import Callback, LightningModule
from lightning.pytorch.cli import instantiate_module
from torch import Tensor, nn

from backbones.inject import Backbone
from callbacks.scoring.report import Scored
from callbacks.scoring.score_before_fit import ScoreBeforeFit
from callbacks.scoring.scorers import Scorer
from checkpoints import delta as files
from checkpoints.fingerprint import fingerprint, manifest
from methods.core.precision import BATCH_NORM, default_dtype, kept_in_fp32, updates_statistics
from methods.core.warm_start import copy_warm_start, read_warm_start

# parts of the names of options that say how values are drawn, not what they mean
ABOUT_DRAWING = ("dropout", "drop_path", "_init", "_std", "_xavier")


class PEFTMethod(LightningModule):
    """A way to adapt the backbone of a task; mixed in before the task, as in ``class M(SSF, Classification)``.

    A method overrides the hooks it needs: ``adapt`` and ``trainable_names`` say what trains, ``fold`` puts it back
    into plain weights. Everything else here holds for all methods.

    Args:
        init_from: Adapter folder or checkpoint of another run of the same method, where its trained values start from
            (PVP, Song et al., 2023, arXiv:2304.13639); what it selected is selected here.
        init_head: Whether the classifier starts from there too; its classes must be the same.
        init_other_backbone: Whether the other run may have had other frozen weights of the same shapes.
    """

    mergeable: bool = True
    unmergeable: str = "no plain model gives the same output"  # why, where it is not
    standalone: bool = True  # False for one that only changes how another method trains, on which it is stacked
    input_dependent: bool = False  # whether the cost of a forward pass depends on the images
    prunable: bool = False  # whether a fitted model can be scored, pruned and fit anew
    scorer: type[Scorer] | None = None  # for methods that choose weights or channels from data
    # options that say where trained values start from: no file of trained values needs them
    warm_start_options: tuple[str, ...] = ("init_from", "init_head", "init_other_backbone")

    backbone: Backbone

    def __init__(
        self,
        init_from: str | None = None,
        init_head: bool = False,
        init_other_backbone: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if init_from is None and (init_head or init_other_backbone):
            raise ValueError("init_head and init_other_backbone say how to start from another run: give init_from too")
        self.init_from, self.init_head, self.init_other_backbone = init_from, init_head, init_other_backbone
        self.started_from: dict[str, str] | None = None
        self.selection: dict[str, Tensor] | None = None
        self.plain_keys: frozenset[str] | None = None  # state-dict keys of the backbone, set once it is adapted
        self.fingerprint = ""
        self.total_parameters = 0

    # hooks of a method

    def adapt(self, backbone: Backbone) -> None:
        """Insert the method's modules into the backbone, in place; call ``super().adapt(backbone)`` first."""

    def trainable_names(self) -> Iterable[str]:
        """Names (inside the backbone) of backbone parameters that train."""
        return ()

    def after_adapt(self, backbone: Backbone) -> None:
        """Change how layers train, in place, once all methods have adapted them and it is known what trains."""

    def before_merge(self, backbone: Backbone) -> None:
        """Make the layers again what ``after_adapt`` found; comes before ``fold``."""

    def merge_into(self, backbone: Backbone) -> None:
        """Put the trained delta into the plain weights, in place; end with ``super().merge_into(backbone)``."""
        super().merge_into(backbone)  # type: ignore[misc]

    # hooks of a method that chooses from data, all about the plain backbone

    def build_scorer(self) -> Scorer:
        """The scorer of one pass over the scoring batches."""
        assert self.scorer is not None
        return self.scorer(self.backbone, self.score_targets())

    def score_targets(self) -> list[str]:
        """Names (inside the backbone) of what is scored."""
        raise TypeError(f"{type(self).__name__} scores nothing")

    @property
    def score_reads_data(self) -> bool:
        """Whether batches must pass to score; some scores are the weights'."""
        return self.scorer is None or self.scorer.needs_data  # None: what is scored is a fitted model

    @property
    def score_data(self) -> dict[str, Any]:
        """Which batches are scored: arguments of the datamodule's ``score_batches``."""
        return {"batch_size": 32}

    def score_key(self) -> str:
        """What scores depend on beside weights and data; not the budget that is selected with them."""
        return f"{self.method_name()} {self.scorer.__name__ if self.scorer else ''} {sorted(self.score_data.items())}"

    def score_loss(self, batch: Any) -> Tensor | None:
        """Loss whose gradient is scored, a scalar; None where a forward pass is all. By default the task's."""
        return self.loss(batch)

    def select(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """Index tensors of what is chosen, from fp32 scores on the CPU; pure, ties go to the lower index."""
        raise TypeError(f"{type(self).__name__} selects nothing")

    def rewind(self, initial: dict[str, Tensor]) -> None:
        """Set what trains after pruning to the values ``initial`` (the delta) from before the first fit."""
        raise TypeError(f"{type(self).__name__} prunes nothing")

    def score_rows(self, scores: dict[str, Tensor]) -> list[Scored]:
        """What the picture and the table of a pass show: what was scored, and how much of it was selected."""
        selection = self.selection or {}
        return [Scored(name, scores[name].abs(), len(selection.get(name, ()))) for name in self.score_targets()]

    # hooks of a method inside whose backbone nothing trains

    def frozen_layers(self) -> str:
        """Which features of the frozen backbone are all that the method reads, as a part of a cache's key.

        Raises:
            ValueError: If there are none, with the reason.
        """
        raise ValueError(f"{self.method_name()} trains in the backbone, whose features change at every step")

    def frozen_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """These features of images (B, 3, H, W), each with B rows."""
        raise TypeError(f"{type(self).__name__} has no features that stay")

    def forward_frozen(self, features: tuple[Tensor, ...]) -> Tensor:
        """Output of the model for what ``frozen_features`` returned."""
        raise TypeError(f"{type(self).__name__} has no features that stay")

    # what holds for all methods

    def configure_callbacks(self) -> list[Callback]:
        # Lightning's first question: the data ask the backbone for its image size next
        for name, module in self.named_modules():
            if "_orig_mod" in module._modules:
                raise ValueError(
                    f"{name} is wrapped by torch.compile, where its weights have other names: pass its original "
                    f"(_orig_mod), and compile the whole, torch.compile(model), or in place, model.{name}.compile()"
                )
        callbacks = list(super().configure_callbacks())  # type: ignore[arg-type]
        given = any(isinstance(callback, ScoreBeforeFit) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        return callbacks if self.scorer is None or given else [*callbacks, ScoreBeforeFit()]

    @property
    def adapted(self) -> bool:
        return self.plain_keys is not None

    def configure_model(self) -> None:
        """Freeze the backbone, adapt it and unfreeze what trains; a no-op when done or while a selection is due."""
        if self.adapted:
            return
        start = read_warm_start(self, self.init_from) if self.init_from is not None else None
        if start is not None:
            self.selection = start["peft"]["selection"]
        if self.scorer is not None and self.selection is None:
            return
        backbone = self.backbone
        plain = dict(backbone.named_parameters())
        buffers = dict(backbone.named_buffers())
        names = set(self.trainable_names())  # of the plain backbone: what methods add to it trains anyway
        self.plain_keys = frozenset(backbone.state_dict())
        backbone.requires_grad_(False)
        # trained tensors are drawn in fp32 on the backbone's device, whatever context Lightning has set
        with default_dtype(torch.float32), next(iter(plain.values())).device:
            try:
                self.adapt(backbone)
            except (AttributeError, IndexError, KeyError, ValueError) as error:
                if self.selection is None:
                    raise
                name = getattr(self, "backbone_name", type(backbone).__name__)
                raise ValueError(
                    f"the selection does not fit {name}: {error}. Load the backbone that it was made on, or score anew"
                ) from error
        unknown = names - plain.keys()
        if unknown:
            raise ValueError(f"{type(self).__name__}: the backbone has no {', '.join(sorted(unknown)[:5])}")
        packed = names - dict(backbone.named_parameters()).keys()
        if packed:
            raise ValueError(
                f"{type(self).__name__}: {', '.join(sorted(packed)[:5])} cannot train: only packed bytes are stored, "
                "which have no gradient"
            )
        for name in names:
            plain[name].requires_grad_(True)
        for head in self.head_names:
            backbone.get_submodule(head).requires_grad_(True)
        with default_dtype(torch.float32), next(iter(plain.values())).device:
            self.after_adapt(backbone)
        # a weight that trains in full is part of the delta: only what stays frozen identifies the backbone
        heads = tuple(f"{head}." for head in self.head_names)
        frozen = {n: p for n, p in plain.items() if not p.requires_grad} | buffers
        self.fingerprint = fingerprint({n: t for n, t in frozen.items() if not n.startswith(heads)})
        # weights that are stored in packed form still count
        every = {f"backbone.{name}": p for name, p in plain.items()} | dict(self.named_parameters())
        self.total_parameters = sum(p.numel() for p in every.values())
        if start is not None:
            self.load_warm_start(start)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; BatchNorm statistics of the frozen backbone stay as they are."""
        super().train(mode)
        for module in self.backbone.modules() if self.adapted else ():
            if isinstance(module, BATCH_NORM) and not updates_statistics(module):
                module.eval()
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Cast or move the module; under ``bf16-true`` only frozen tensors are cast."""
        # a bf16 scale at 1.0 cannot take an Adam step of 1e-3: what trains keeps its fp32 values
        modules = list(self.modules()) if self.adapted else []
        kept = [(p, p.data) for module in modules for p in kept_in_fp32(module)]
        frozen = {m for m in self.backbone.modules() if not updates_statistics(m)}
        moving = [m for m in modules if isinstance(m, BATCH_NORM) and m not in frozen]
        statistics = [(m, name, b) for m in moving for name, b in m.named_buffers(recurse=False)]
        super().to(*args, **kwargs)
        for parameter, data in kept:
            if parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = data.to(parameter.device)
        for module, name, buffer in statistics:
            if getattr(module, name).dtype in (torch.bfloat16, torch.float16):
                setattr(module, name, buffer.to(getattr(module, name).device))
        return self

    def delta_state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint of this method holds: trained parameters and the buffers that go with them."""
        assert self.plain_keys is not None, "the backbone is not adapted yet"
        state = self.state_dict()
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        parameters = dict(self.named_parameters())
        moving = {
            f"backbone.{name}.{buffer}"
            for name, module in self.backbone.named_modules()
            if updates_statistics(module)
            for buffer, _ in module.named_buffers(recurse=False)
        }
        plain = {f"backbone.{name}" for name in self.plain_keys}
        added = {name for name in state if name not in plain and name not in parameters}
        return {name: tensor for name, tensor in state.items() if name in trained | moving | added}

    def storage_bytes(self) -> int:
        """Bytes of what was trained and of what was selected, in the smallest form that this method has a file for."""
        parts = [self.delta_state_dict(), self.selection or {}]
        return sum(tensor.nbytes for part in parts for tensor in part.values())

    def parameter_counts(self) -> tuple[int, int]:
        """Trained parameters without and with the head."""
        heads = tuple(f"backbone.{name}." for name in self.head_names)
        trained = {name: p.numel() for name, p in self.named_parameters() if p.requires_grad}
        return sum(n for name, n in trained.items() if not name.startswith(heads)), sum(trained.values())

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

    # the values of another run to start from

    def free_options(self) -> set[str]:
        """Options of the method that may differ between a run and the one that it starts from."""
        drawn = {name for name in self.method_options() if any(part in name for part in ABOUT_DRAWING)}
        return drawn | set(self.warm_start_options)

    def resize_warm_start(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The other run's tensors, brought to the sizes of this one where a method knows how."""
        return tensors

    def forget_warm_start(self) -> None:
        """Read nothing to start from, as a checkpoint or an adapter folder brings later values."""
        self.init_from = None

    def load_warm_start(self, start: dict[str, Any]) -> None:
        """Take over the values of the checkpoint of ``init_from``; the optimizer's never."""
        copy_warm_start(self, start)

    @classmethod
    def method_options(cls) -> dict[str, Any]:
        """The options that the mixed-in methods declare, with their defaults."""
        own = [c for c in cls.__mro__ if c.__module__.startswith("methods.") and c is not PEFTMethod]
        inits = [vars(c)["__init__"] for c in own if "__init__" in vars(c)]
        parameters = {name: p for init in inits for name, p in signature(init).parameters.items()}
        return {name: p.default for name, p in parameters.items() if p.default is not p.empty}

    # checkpoints

    def description(self) -> dict[str, Any]:
        """What identifies the delta beside its tensors, as plain data."""
        return {
            "format": files.FORMAT,
            "method": self.method_name(),
            "backbone": getattr(self, "backbone_name", type(self.backbone).__name__),
            "fingerprint": self.fingerprint,
        } | ({"started_from": self.started_from} if self.started_from else {})

    @classmethod
    def method_name(cls) -> str:
        """Names of the mixed-in methods, ``velora+lora``."""
        mixins = [c for c in cls.__mro__ if issubclass(c, PEFTMethod) and c.__module__.startswith("methods.")]
        leaves = [c for c in mixins if c is not PEFTMethod and not any(m is not c and issubclass(m, c) for m in mixins)]
        return "+".join(c.__name__ for c in leaves)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        delta = self.delta_state_dict().keys()
        state = {name: tensor for name, tensor in checkpoint["state_dict"].items() if name in delta}
        checkpoint["state_dict"] = state
        checkpoint["peft"] = self.description() | {"manifest": manifest(state), "selection": self.selection}
        # PEFTMethod.load_from_checkpoint finds the class, whether the run began in the CLI or in a notebook
        # what it started from is in its values by now: the file must load where the other run's is not to be had
        checkpoint["hyper_parameters"] = {
            n: value for n, value in self.hparams.items() if n not in self.warm_start_options
        } | {
            "_class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "_instantiator": "lightning.pytorch.cli.instantiate_module",
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "peft" not in checkpoint:
            raise ValueError("this checkpoint is not one of this project: it has no 'peft' entry")
        if "members" in checkpoint:
            raise ValueError(
                f"this checkpoint holds {len(checkpoint['members'])} members: give the adapter folder of its run, "
                "which holds one, or to resume the same --members"
            )
        selection = checkpoint["peft"]["selection"]
        if self.adapted and not (self.selection is None and selection is None):  # built for another choice: start over
            self.build_backbone()
            self.plain_keys = None
        self.selection = selection
        self.forget_warm_start()  # the checkpoint's values have gone on from there
        self.configure_model()
        self.started_from = checkpoint["peft"].get("started_from")
        files.check_backbone(self.description(), checkpoint["peft"])
        delta = self.delta_state_dict()
        files.check_delta(delta, checkpoint["state_dict"])
        frozen = {name: tensor for name, tensor in self.state_dict().items() if name not in delta}
        checkpoint["state_dict"] = frozen | checkpoint["state_dict"]  # strict loading stays on
        super().on_load_checkpoint(checkpoint)

    @classmethod
    def from_delta(cls, path: str | Path) -> Self:
        """Build the module that a checkpoint file or an adapter folder describes, and load it.

        Raises:
            FileNotFoundError: If there is nothing at ``path``, or the backbone's weights are not to be had.
            ValueError: If the file is damaged or does not fit.
        """
        hyper_parameters = dict(files.read_checkpoint(path)["hyper_parameters"])
        hyper_parameters.pop("_instantiator", None)
        module = instantiate_module(cls, hyper_parameters)
        module.load_delta(path)
        return module.eval()

    def load_delta(self, path: str | Path) -> None:
        """Load a checkpoint file or an adapter folder into this module.

        Raises:
            FileNotFoundError: If there is nothing at ``path``.
            ValueError: If the file is damaged or does not fit.
        """
        checkpoint = files.read_checkpoint(path)
        self.on_load_checkpoint(checkpoint)
        self.load_state_dict(checkpoint["state_dict"])

    # what the task knows

    def prepare(self, batch: Any) -> tuple[Any, Any]:
        """Inputs and targets of the loss."""
        return super().prepare(batch)  # type: ignore[misc]

    def criterion(self, outputs: Any, targets: Any) -> Tensor:
        """Mean loss of the model's outputs, a scalar."""
        return super().criterion(outputs, targets)  # type: ignore[misc]

    def loss(self, batch: Any) -> Tensor:
        """Mean loss of a batch, a scalar."""
        return super().loss(batch)  # type: ignore[misc]

    def extra_loss(self) -> Tensor | None:
        """A term that the method adds to the loss, a scalar; None where it has none."""
        return super().extra_loss()  # type: ignore[misc]

    def param_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer, some with a learning rate of their own."""
        return super().param_groups()  # type: ignore[misc]

    def forward_features(self, x: Tensor) -> Tensor:
        """Features of the backbone; methods that compute otherwise override this."""
        return super().forward_features(x)  # type: ignore[misc]

    def forward_head(self, features: Tensor) -> Tensor:
        """Output of the head for features; methods whose features are not the backbone's override this too."""
        return super().forward_head(features)  # type: ignore[misc]

    def resize_head(self, width: int) -> None:
        """Give the head fresh weights for features of another width."""
        super().resize_head(width)  # type: ignore[misc]

    def build_backbone(self) -> None:
        """Make the plain backbone anew."""
        super().build_backbone()  # type: ignore[misc]

    @property
    def head_names(self) -> list[str]:
        """Module names of the head inside the backbone."""
        return super().head_names  # type: ignore[misc]
