"""Delta checkpoints: files with the trained tensors only."""

from inspect import signature
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from checkpoints import delta as files
from checkpoints.fingerprint import manifest
from checkpoints.resumable import check_resumable
from checkpoints.structure import check_tensors, with_prefix
from methods.core.precision import KeepsPrecision, updates_statistics
from methods.core.saved_model import described_model


class DeltaCheckpoint(KeepsPrecision):
    """An adapted task whose checkpoints and adapter folders contain only the delta. They load strictly."""

    fingerprint: str = ""  # hash of the frozen weights
    selection: dict[str, Tensor] | None = None  # chosen indices, for methods that choose from data
    warm_start_options: tuple[str, ...] = ()  # options of the start, which files of trained values leave out
    started_from: dict[str, str] | None = None  # path and hash of the run that this one started from

    @classmethod
    def own_classes(cls) -> list[type]:
        """Mixed-in classes of ``methods/``, without those of ``methods/core``."""
        return [c for c in cls.__mro__ if c.__module__.startswith("methods.") and not in_core(c)]

    @classmethod
    def method_name(cls) -> str:
        mixins = [c for c in cls.own_classes() if issubclass(c, DeltaCheckpoint)]
        leaves = [c for c in mixins if not any(m is not c and issubclass(m, c) for m in mixins)]
        return "+".join(c.__name__ for c in leaves)

    @classmethod
    def method_options(cls) -> dict[str, Any]:
        """Options that the mixed-in methods declare, with their defaults."""
        inits = [vars(c)["__init__"] for c in cls.own_classes() if "__init__" in vars(c)]
        parameters = {name: p for init in inits for name, p in signature(init).parameters.items()}
        return {name: p.default for name, p in parameters.items() if p.default is not p.empty}

    def description(self) -> dict[str, Any]:
        return {
            "format": files.FORMAT,
            "method": self.method_name(),
            "backbone": getattr(self, "backbone_name", type(self.backbone).__name__),
            "fingerprint": self.fingerprint,
        } | ({"started_from": self.started_from} if self.started_from else {})

    def delta_state_dict(self) -> dict[str, Tensor]:
        assert self.plain_keys is not None, "the backbone is not adapted yet"
        state = self.state_dict()
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        parameters = dict(self.named_parameters(remove_duplicate=False))  # a shared module has two names
        updated = {
            f"backbone.{name}.{buffer}"
            for name, module in self.backbone.named_modules()
            if updates_statistics(module)
            for buffer, _ in module.named_buffers(recurse=False)
        }
        plain = {f"backbone.{name}" for name in self.plain_keys}
        added = {name for name in state if name not in plain and name not in parameters}
        return {name: tensor for name, tensor in state.items() if name in trained | updated | added}

    def storage_bytes(self) -> int:
        parts = [self.delta_state_dict(), self.selection or {}]
        return sum(tensor.nbytes for part in parts for tensor in part.values())

    def parameter_counts(self) -> dict[str, int]:
        counts = {"method": 0, "neck": 0, "head": 0}
        necks, heads = tuple(f"{name}." for name in self.necks), self.head_prefixes
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                part = "neck" if name.startswith(necks) else "head" if name.startswith(heads) else "method"
                counts[part] += parameter.numel()
        return counts

    # files

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        delta = self.delta_state_dict().keys()
        state = {name: tensor for name, tensor in checkpoint["state_dict"].items() if name in delta}
        checkpoint["state_dict"] = state
        checkpoint["peft"] = self.description() | {
            "counts": self.parameter_counts(),
            "parameters": self.total_parameters,
            "manifest": manifest(state | with_prefix(self.selection)),
            "selection": self.selection,
        }
        # without init_from, because the checkpoint already contains those values and must load without the other run
        options = {name: value for name, value in self.hparams.items() if name not in self.warm_start_options}
        # read_checkpoint needs the class; Lightning's own loader uses both keys, for runs of the CLI and of a notebook
        checkpoint["hyper_parameters"] = options | {
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
        files.to_current_format(checkpoint)
        here, there = self.method_name(), checkpoint["peft"]["method"]
        if here != there:
            raise ValueError(f"this checkpoint was trained with {there}, and this model adapts with {here}")
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            check_resumable(checkpoint)
        selection = checkpoint["peft"]["selection"]
        if self.adapted and not equal_selections(self.selection, selection):
            self.build()  # a new backbone, because this one is adapted to another selection
            self.plain_keys = None
        self.selection = selection
        self.forget_warm_start()  # because the checkpoint holds later values
        self.configure_model()
        self.started_from = checkpoint["peft"].get("started_from")
        files.check_backbone(self.description(), checkpoint["peft"])
        delta = self.delta_state_dict()
        files.check_delta(delta, checkpoint["state_dict"])
        check_tensors(checkpoint)
        frozen = {name: tensor for name, tensor in self.state_dict().items() if name not in delta}
        checkpoint["state_dict"] = frozen | checkpoint["state_dict"]  # all keys, so that loading stays strict
        super().on_load_checkpoint(checkpoint)

    @classmethod
    def from_delta(cls, source: str | Path | dict[str, Any]) -> Self:
        """Build the module of a checkpoint and load its delta.

        Args:
            source: A checkpoint file, an adapter folder, or the result of ``read_checkpoint``.

        Raises:
            FileNotFoundError: If the path does not exist, or the weights of the backbone are missing.
            ValueError: If the file is damaged or does not fit, or its class is none of this project.
        """
        checkpoint = source if isinstance(source, dict) else files.read_checkpoint(source)
        try:
            with torch.inference_mode(False):
                found, options = described_model(checkpoint)
            if not issubclass(found, cls):
                raise ValueError(f"its class is {found.__name__}; expected a {cls.__name__}")
        except ValueError as error:
            name = "this checkpoint" if isinstance(source, dict) else str(source)
            raise ValueError(f"{name} cannot be used: {error}") from error
        with torch.inference_mode(False):  # because finding the used parameters needs autograd
            module = found(**options)
            module.load_delta(checkpoint)
        return module.eval()

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, **options: Any) -> Self:  # type: ignore[override]
        """Module of a checkpoint in training mode; Lightning's own function imports what the file names.

        Args:
            checkpoint_path: A checkpoint file or an adapter folder.
            options: Options of the model that replace those of the file.

        Raises:
            FileNotFoundError: If the path does not exist, or the weights of the backbone are missing.
            ValueError: If the file is damaged or does not fit, or its class is none of this project.
        """
        checkpoint = files.read_checkpoint(checkpoint_path, option="checkpoint_path")
        checkpoint["hyper_parameters"] = checkpoint["hyper_parameters"] | options
        return cls.from_delta(checkpoint).train()

    def load_delta(self, source: str | Path | dict[str, Any]) -> None:
        """Load the delta of a checkpoint file, an adapter folder or a result of ``read_checkpoint``.

        Raises:
            FileNotFoundError: If the path does not exist.
            ValueError: If the file is damaged or does not fit.
        """
        checkpoint = dict(source) if isinstance(source, dict) else files.read_checkpoint(source)
        self.on_load_checkpoint(checkpoint)
        self.load_state_dict(checkpoint["state_dict"])


def in_core(cls: type) -> bool:
    """Whether a class is part of the contract of methods, not a method."""
    return cls.__module__.startswith("methods.core.")


def equal_selections(first: dict[str, Tensor] | None, second: dict[str, Tensor] | None) -> bool:
    """Whether two selections have the same indices under the same names; None for no selection."""
    if first is None or second is None:
        return first is second
    return first.keys() == second.keys() and all(torch.equal(first[name].cpu(), second[name].cpu()) for name in first)
