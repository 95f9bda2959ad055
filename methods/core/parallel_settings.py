"""Several settings of a method in one run, over one forward pass of the frozen backbone they share."""

from collections.abc import Mapping, Sequence
from inspect import signature
from itertools import product
from typing import Any

import torch
from lightning import Callback, LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from callbacks.feature_cache import check_frozen
from callbacks.scoring.undisturbed import unchanged
from checkpoints import delta as files
from checkpoints.fingerprint import manifest
from lightning_modules.seed import run_seed
from lightning_modules.task import TaskModule
from methods.core.base import PEFTMethod

# one backbone, one stream of batches, one optimizer
COMMON = {"backbone", "pretrained", "backbone_args", "num_classes", "drop_path", "mixup", "cutmix"}
COMMON |= {"optimizer", "adam_eps", "lr_interval", "ema_decay", "parameterization"}


class Members(LightningModule):
    """Train several settings of a method at once, each as if it were alone.

    The frozen backbone sees every image once. The losses are summed, so that each member has its own gradient, and
    each has its own parameter groups. A member without a seed of its own ends where its solo run would, bit for bit;
    ``seed`` draws other initial values, while the order of the images stays that of the run. (With ddp Lightning seeds
    once more before a solo run draws its values: there the two are equal from equal initial values.)

    Args:
        model: The method with the options that all members share.
        members: Options of each member, with a ``name`` and a ``seed`` if wanted; or a grid, lists of values by option.
        export_member: Name of the member that the adapter folder holds; ``best`` chooses by validation accuracy.
    """

    mergeable = input_dependent = False
    scorer = selection = None

    def __init__(
        self,
        model: PEFTMethod,
        members: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]],
        export_member: str = "best",
    ) -> None:
        super().__init__()
        self.settings = expand(members)
        check_settings(model, self.settings)
        if export_member not in ("best", *self.settings):
            raise ValueError(
                f"export_member={export_member!r}: no such member; there are best, {', '.join(self.settings)}"
            )
        self.export_member, self.best_member = export_member, next(iter(self.settings))
        self.options = {n: value for n, value in model.hparams.items() if not n.startswith("_")}
        self.members = nn.ModuleList(self.build(type(model), setting) for setting in self.settings.values())
        first, *others = self.each()
        for other in others:
            share_frozen(first.backbone, other.backbone)
        layers = {member.frozen_layers() for member in self.each()}
        if len(layers) > 1:
            raise ValueError(f"members read different features of the backbone ({'; '.join(sorted(layers))})")
        trained = sum(member.parameter_counts()[1] for member in others)
        self.total_parameters = first.total_parameters + trained

    def build(self, cls: type[PEFTMethod], setting: dict[str, Any]) -> PEFTMethod:
        """A member as a run of its own would begin with it."""
        seed = setting.get("seed", run_seed())
        with unchanged(self):
            torch.manual_seed(seed)
            member = cls(**(self.options | options_of(setting)))
            member.configure_model()
        return member

    def each(self) -> list[Any]:
        return list(self.members)

    def __getattr__(self, name: str) -> Any:
        """What callbacks and datamodules ask of a model, and all members answer alike."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "members" not in self._modules:
                raise
            return getattr(self._modules["members"][0], name)  # type: ignore[index]

    def forget_warm_start(self) -> None:
        """Read nothing to start from, as a checkpoint brings later values."""
        for member in self.members:
            member.forget_warm_start()  # type: ignore[operator]

    def forward(self, x: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Logits of the member that is exported."""
        return self.chosen(x)

    @property
    def chosen(self) -> Any:
        name = self.best_member if self.export_member == "best" else self.export_member
        return self.members[list(self.settings).index(name)]

    # the fit

    def configure_callbacks(self) -> list[Callback]:
        return [self.ema] if self.ema is not None else []

    def setup(self, stage: str) -> None:
        reason = None
        if self.trainer.gradient_clip_val and self.trainer.gradient_clip_algorithm != "value":
            reason = "gradient clipping by norm takes the norm of all members together; clip by value, or not at all"
        elif self.trainer.precision not in ("32-true", "64-true", "bf16-mixed"):
            reason = f"precision {self.trainer.precision} would let one overflow skip the step of all; use bf16-mixed"
        elif any(isinstance(callback, EarlyStopping) for callback in self.trainer.callbacks):  # type: ignore[attr-defined]
            reason = "early stopping of one would stop all; leave it out"
        if reason is not None and stage == "fit":
            raise ValueError(f"members: {reason}")
        for member in self.each():
            member.trainer = self.trainer
            member.setup(stage)

    def on_fit_start(self) -> None:
        for member in self.each():
            check_frozen(member)
            member.on_fit_start()

    on_train_start = TaskModule.on_train_start
    on_train_epoch_start = TaskModule.on_train_epoch_start

    def frozen(self, x: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Features of images, if they are not features already."""
        if isinstance(x, tuple):
            return x
        with torch.no_grad(), self.mixed_dtypes():
            return self.frozen_features(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, targets = self.members[0].prepare(batch)  # type: ignore[operator]
        features = self.frozen(inputs)
        losses = [member.criterion(member(features), targets) for member in self.each()]
        self.log_dict({f"train/loss/{n}": v.detach() for n, v in zip(self.settings, losses, strict=True)})
        total = torch.stack(losses).sum()  # a mean would divide every gradient by their number
        self.log("train/loss", total.detach() / len(losses), prog_bar=True)
        return total

    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of every member, with its rate."""
        return [{"lr": member.lr} | group for member in self.each() for group in member.param_groups()]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        first = self.each()[0]
        optimizer = first.build_optimizer(self.param_groups())
        factors = [member.lr_factor() for member in self.each() for _ in member.param_groups()]
        schedule = LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": first.lr_interval}}

    # evaluation

    def on_validation_start(self) -> None:
        for member in self.each():
            member.on_validation_start()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        features = self.frozen(batch[0])
        for member in self.each():
            member.evaluate((features, batch[1]), member.val_metrics, member.val_loss)

    def on_validation_epoch_end(self) -> None:
        found: dict[str, dict[str, Tensor]] = {}
        for name, member in zip(self.settings, self.each(), strict=True):
            found[name] = {**member.val_metrics.compute(), "val/loss": member.val_loss.compute()}
            member.val_metrics.reset()
            member.val_loss.reset()
        self.best_member = max(found, key=lambda name: float(found[name]["val/acc1"]))  # of equal ones the first
        self.log_dict({f"{key}/{name}": v for name, values in found.items() for key, v in values.items()})
        self.log_dict(found[self.best_member], prog_bar=True)
        self.log("val/best_member", float(list(self.settings).index(self.best_member)))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.chosen.evaluate(batch, self.chosen.test_metrics, self.chosen.test_loss)

    def on_test_epoch_end(self) -> None:
        member = self.chosen
        self.log_dict({**member.test_metrics.compute(), "test/loss": member.test_loss.compute()})
        member.test_metrics.reset()
        member.test_loss.reset()

    # checkpoints and costs

    def delta_state_dict(self) -> dict[str, Tensor]:
        """What all members trained."""
        deltas = [member.delta_state_dict() for member in self.each()]
        return {f"members.{i}.{name}": tensor for i, delta in enumerate(deltas) for name, tensor in delta.items()}

    def storage_bytes(self) -> int:
        return sum(member.storage_bytes() for member in self.each())

    def parameter_counts(self) -> tuple[int, int]:
        """Trained parameters of all members without and with their heads."""
        no_head, trained = zip(*(member.parameter_counts() for member in self.each()), strict=True)
        return sum(no_head), sum(trained)

    def description(self) -> dict[str, Any]:
        return self.each()[0].description() | {"members": self.settings, "exported": self.export_member}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        self.each()[0].on_save_checkpoint(checkpoint)  # class, options, classes and weights that all of them share
        checkpoint["state_dict"] = {name: state[name] for name in self.delta_state_dict()}
        checkpoint["peft"]["manifest"] = manifest(checkpoint["state_dict"])
        checkpoint["hyper_parameters"] |= self.options
        checkpoint["members"] = {name: options_of(setting) for name, setting in self.settings.items()}
        checkpoint["best_member"] = self.best_member

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        here = {name: options_of(setting) for name, setting in self.settings.items()}
        if checkpoint.get("members") != here:
            raise ValueError(f"members: {checkpoint.get('members', 'none')} in the checkpoint, {here} here")
        files.check_backbone(self.each()[0].description(), checkpoint["peft"])
        delta = self.delta_state_dict()
        files.check_delta(delta, checkpoint["state_dict"])
        self.best_member = checkpoint["best_member"]
        frozen = {name: tensor for name, tensor in self.state_dict().items() if name not in delta}
        checkpoint["state_dict"] = frozen | checkpoint["state_dict"]


def expand(members: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """Settings by name, of a list or of a grid.

    Raises:
        ValueError: If there is none, or two have one name.
    """
    if isinstance(members, Mapping):
        scalars = [name for name, values in members.items() if not isinstance(values, (list, tuple))]
        if scalars:
            raise ValueError(f"members: a grid holds lists of values, and {scalars[0]} is {members[scalars[0]]!r}")
        members = [dict(zip(members, values, strict=True)) for values in product(*members.values())]
    settings: dict[str, dict[str, Any]] = {}
    for setting in members:
        options = {key: value for key, value in setting.items() if key != "name"}
        name = str(setting.get("name", "_".join(f"{key}={value}" for key, value in options.items())))
        if not name or name in settings or name == "best":
            raise ValueError(f"members: {name!r} is empty, given twice or 'best'; give each member another name")
        settings[name] = options
    if not settings:
        raise ValueError("members: expected a list of options, or a grid, with at least one member")
    return settings


def options_of(setting: dict[str, Any]) -> dict[str, Any]:
    """The options of the model among those of a member."""
    return {name: value for name, value in setting.items() if name != "seed"}


def check_settings(model: PEFTMethod, settings: dict[str, dict[str, Any]]) -> None:
    """Refuse options that a member cannot have for itself.

    Raises:
        ValueError: If the method trains in the backbone, or an option is unknown or must be the same for all.
    """
    try:
        model.frozen_layers()
    except ValueError as error:
        raise ValueError(f"members need a backbone that stays as it is: {error}") from error
    known = {name for base in type(model).__mro__ for name in signature(base.__init__).parameters}  # type: ignore[misc]
    for name, setting in settings.items():
        same = COMMON & setting.keys()
        if same:
            raise ValueError(f"members: {name!r} has its own {', '.join(sorted(same))}, which all of them share")
        unknown = setting.keys() - known - {"seed"}
        if unknown:
            raise ValueError(f"members: {name!r} has {', '.join(sorted(unknown))}, no option of {type(model).__name__}")


def share_frozen(source: nn.Module, target: nn.Module) -> None:
    """Let every frozen parameter of ``target`` be that of ``source``."""
    for name, parameter in list(target.named_parameters()):
        if not parameter.requires_grad:
            path, _, leaf = name.rpartition(".")
            setattr(target.get_submodule(path), leaf, source.get_parameter(name))
