"""Several settings of a method in one run, with one forward pass of the shared frozen backbone."""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torchmetrics import MetricCollection

from callbacks.features.cache import check_frozen
from callbacks.scoring.undisturbed import unchanged
from checkpoints import delta as files
from checkpoints.fingerprint import manifest
from checkpoints.structure import check_tensors, with_prefix
from lightning_modules.batch import Batch, Features
from lightning_modules.optim.optimized import Optimized
from lightning_modules.run import callbacks_of
from lightning_modules.seed import run_seed
from lightning_modules.task import total
from methods.core.base import PEFTMethod
from methods.core.members import Members
from methods.core.settings import check_settings, expand, options_of

OPTIMIZATION = [name for name in signature(Optimized.__init__).parameters if name != "self"]


class ParallelSettings(Members):
    """Trains several settings of a method at once. Each setting (a member) trains as in a run of its own.

    Each image passes the frozen backbone once. The losses are summed, so that each member has its own gradient, and
    each has its own parameter groups. A member without a ``seed`` gives the same result as a run of its own, bit for
    bit. A ``seed`` changes the initial values, but not the order of the images. (With DDP, Lightning seeds once more
    before a single run draws its initial values; the results are then equal only from equal initial values.)

    Args:
        model: The method with the options that all members share.
        members: A list with the options of each member, and a ``name`` and a ``seed`` if wanted. Or a grid: lists of
            values by option.
        export_member: Name of the member in the adapter folder; ``best`` for the member with the best headline metric.
    """

    not_options = ("model",)
    uncompilable = "several settings share the features of one backbone; give each a run of its own"

    def __init__(
        self,
        model: PEFTMethod,
        members: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]],
        export_member: str = "best",
    ) -> None:
        super().__init__(**{name: model.hparams[name] for name in OPTIMIZATION if name in model.hparams})
        if model.unit != "image":  # because features of a sample would be several rows
            raise ValueError(
                f"members train on single images, not on {model.unit}s: give each setting a run of its own"
            )
        self.settings = expand(members)
        check_settings(model, self.settings)
        if export_member not in ("best", *self.settings):
            raise ValueError(
                f"export_member={export_member!r}: no such member; there are best, {', '.join(self.settings)}"
            )
        self.export_member, self.best_member = export_member, next(iter(self.settings))
        self.options = {n: value for n, value in model.hparams.items() if not n.startswith("_")}
        self.members = nn.ModuleList(self.new_member(type(model), setting) for setting in self.settings.values())
        first, *others = self.each()
        for other in others:
            share_frozen(first.backbone, other.backbone)
        layers = {member.frozen_layers() for member in self.each()}
        if len(layers) > 1:
            raise ValueError(f"members read different features of the backbone ({'; '.join(sorted(layers))})")
        trained = sum(sum(member.parameter_counts().values()) for member in others)
        self.total_parameters = first.total_parameters + trained
        # attributes that callbacks and datamodules use, equal for all members
        self.headline, self.unit = first.headline, first.unit  # type: ignore[misc]
        self.plain_keys, self.fingerprint = first.plain_keys, first.fingerprint
        names = ("pretrained", "backbone_name", "backbone_args", "num_classes", "input_config", "mixup")
        for name in (*names, "targets", "dense"):
            setattr(self, name, getattr(first, name, None))
        self.init_metrics()

    def new_member(self, cls: type[PEFTMethod], setting: dict[str, Any]) -> PEFTMethod:
        """Build a member with the initial values of a run of its own."""
        with unchanged(self):
            torch.manual_seed(setting.get("seed", run_seed()))
            member = cls(**(self.options | options_of(setting)))
            member.configure_model()
        return member

    def shared_features(self, inputs: Any) -> Features:
        """Features of inputs; inputs that are features already stay as they are."""
        if isinstance(inputs, Features):
            return inputs
        with torch.no_grad(), self.mixed_dtypes():
            return Features(self.frozen_features(inputs))

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Loss of each member. Their sum is minimised, because a mean would divide each gradient."""
        batch = self.each()[0].augment(batch)
        features = self.shared_features(batch.inputs)
        pairs = zip(self.settings, self.each(), strict=True)
        return {f"loss/{name}": total(member.losses(member(features), batch.targets)) for name, member in pairs}

    def evaluate(self, batch: Batch) -> Any:
        """Outputs of all members in a validation, of the exported member in a test."""
        if self.trainer.testing:
            return self.chosen(batch.inputs)
        features = self.shared_features(batch.inputs)
        return [member(features) for member in self.each()]

    def update(self, metrics: MetricCollection, outputs: Any, batch: Batch) -> None:
        if metrics is self.val_metrics:
            for member, output in zip(self.each(), outputs, strict=True):
                member.update(member.val_metrics, output, batch)
        else:
            self.chosen.update(metrics, outputs, batch)

    # the fit

    def setup(self, stage: str) -> None:
        super().setup(stage)
        reason = None
        if self.trainer.gradient_clip_val and self.trainer.gradient_clip_algorithm != "value":
            reason = "gradient clipping by norm uses the norm of all members together; clip by value, or not at all"
        elif self.trainer.precision not in ("32-true", "64-true", "bf16-mixed"):
            reason = f"with precision {self.trainer.precision} one overflow skips the step of all; use bf16-mixed"
        elif any(isinstance(callback, EarlyStopping) for callback in callbacks_of(self.trainer)):
            reason = "early stopping of one member would stop all; leave it out"
        if reason is not None and stage == "fit":
            raise ValueError(f"members: {reason}")
        for member in self.each():
            member.trainer = self.trainer  # as Lightning does for direct children
            member.setup(stage)

    def on_fit_start(self) -> None:
        for member in self.each():
            check_frozen(member)
            member.on_fit_start()

    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of all members, each with the learning rate of its member."""
        return [{"lr": member.lr} | group for member in self.each() for group in member.param_groups()]

    def lr_factors(self) -> list[Callable[[int], float]]:
        return [member.lr_factor() for member in self.each() for _ in member.param_groups()]

    def on_validation_start(self) -> None:
        for member in self.each():
            member.on_validation_start()

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of each member, and those of the best member under the names of a single run."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, member in zip(self.settings, self.each(), strict=True):
            found[name] = member.val_metrics.compute()
            member.val_metrics.reset()
        key, sign = f"val/{self.headline.name}", 1 if self.headline.higher_is_better else -1
        self.best_member = max(found, key=lambda name: sign * float(found[name][key]))  # the first of equal values
        self.log_dict({f"{key}/{name}": v for name, values in found.items() for key, v in values.items()})
        self.log_dict(found[self.best_member], prog_bar=True)
        self.log("val/best_member", float(list(self.settings).index(self.best_member)))

    # checkpoints and costs

    def delta_state_dict(self) -> dict[str, Tensor]:
        """Deltas of all members."""
        deltas = [member.delta_state_dict() for member in self.each()]
        return {f"members.{i}.{name}": tensor for i, delta in enumerate(deltas) for name, tensor in delta.items()}

    def storage_bytes(self) -> int:
        return sum(member.storage_bytes() for member in self.each())

    def parameter_counts(self) -> dict[str, int]:
        """Number of trained parameters of all members, by part."""
        counts = [member.parameter_counts() for member in self.each()]
        return {part: sum(count[part] for count in counts) for part in counts[0]}

    def description(self) -> dict[str, Any]:
        return self.each()[0].description() | {"members": self.settings, "exported": self.export_member}

    def merge(self) -> nn.Module:
        raise TypeError("several members cannot be merged into one model: merge the adapter folder of one")

    @classmethod
    def from_delta(cls, source: str | Path | dict[str, Any]) -> Self:
        raise TypeError("a file of several members loads into the model that trained them only: give the same members")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        self.each()[0].on_save_checkpoint(checkpoint)  # class, options, identity and weights are equal for all members
        checkpoint["state_dict"] = {name: state[name] for name in self.delta_state_dict()}
        selection = with_prefix(checkpoint["peft"]["selection"])
        checkpoint["peft"]["manifest"] = manifest(checkpoint["state_dict"] | selection)
        checkpoint["hyper_parameters"] |= self.options
        checkpoint["members"] = {name: options_of(setting) for name, setting in self.settings.items()}
        checkpoint["best_member"] = self.best_member

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        files.to_current_format(checkpoint)
        here = {name: options_of(setting) for name, setting in self.settings.items()}
        if checkpoint.get("members") != here:
            raise ValueError(f"members: {checkpoint.get('members', 'none')} in the checkpoint, {here} in this run")
        files.check_backbone(self.each()[0].description(), checkpoint["peft"])
        delta = self.delta_state_dict()
        files.check_delta(delta, checkpoint["state_dict"])
        check_tensors(checkpoint)
        self.best_member = checkpoint["best_member"]
        frozen = {name: tensor for name, tensor in self.state_dict().items() if name not in delta}
        checkpoint["state_dict"] = frozen | checkpoint["state_dict"]


def share_frozen(source: nn.Module, target: nn.Module) -> None:
    """Replace each frozen parameter of ``target`` by that of ``source``."""
    for name, parameter in list(target.named_parameters()):
        if not parameter.requires_grad:
            path, _, leaf = name.rpartition(".")
            setattr(target.get_submodule(path), leaf, source.get_parameter(name))
