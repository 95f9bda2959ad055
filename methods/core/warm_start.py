"""Starting from what another run of the same method trained (PVP, Song et al., 2023, arXiv:2304.13639)."""

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from checkpoints import delta as files
from checkpoints.fingerprint import fingerprint
from methods.core.checkpoint import DeltaCheckpoint

# parts of the names of options that decide how initial values are drawn; a run may differ in them from its start
ABOUT_DRAWING = ("dropout", "drop_path", "_init", "_std", "_xavier")


class WarmStart(DeltaCheckpoint):
    """An adapted task that can start from the trained values of another run.

    Args:
        init_from: Adapter folder or checkpoint of another run of the same method. Trained values start from it, and
            its selection is taken over.
        init_head: Whether the classifier starts from it too; its classes must be the same.
        init_other_backbone: Whether the other run may have had other frozen weights of the same shapes, such as those
            of another pre-training.
    """

    warm_start_options: tuple[str, ...] = ("init_from", "init_head", "init_other_backbone")

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

    def free_options(self) -> set[str]:
        """Options of the method that may differ between this run and the one that it starts from."""
        drawn = {name for name in self.method_options() if any(part in name for part in ABOUT_DRAWING)}
        return drawn | set(self.warm_start_options)

    def resize_warm_start(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the other run in the sizes of this one. By default they must have them."""
        return tensors

    def forget_warm_start(self) -> None:
        self.init_from = None

    def read_warm_start(self) -> dict[str, Any] | None:
        """Checkpoint of the run to start from; None if there is none.

        Raises:
            FileNotFoundError: If there is nothing at ``init_from``.
            ValueError: If the file is damaged, of another method, or of other options of this one.
        """
        if self.init_from is None:
            return None
        start = files.read_checkpoint(self.init_from, option="init_from")
        here, there = self.method_name(), start["peft"]["method"]
        if here != there:
            raise ValueError(f"init_from={self.init_from!r} was trained with {there}, this run trains {here}")
        options, saved = dict(self.hparams), start["hyper_parameters"]
        differences = [
            f"{name}: {saved.get(name, default)!r} there, {options[name]!r} here"
            for name, default in self.method_options().items()
            if name in options and saved.get(name, default) != options[name] and name not in self.free_options()
        ]
        if differences:
            raise ValueError(
                f"init_from={self.init_from!r} was trained with other options: {'; '.join(sorted(differences))}. "
                "Give this run the same"
            )
        return start

    def load_warm_start(self, start: dict[str, Any]) -> None:
        """Copy what the other run trained; its head only with ``init_head``, its optimizer never.

        Args:
            start: What ``read_warm_start`` returned.

        Raises:
            ValueError: If it was trained on other weights or other classes, or a tensor does not fit.
        """
        path = self.init_from
        expected = self.without_head(self.delta_state_dict())
        found = self.without_head(start["state_dict"])
        try:
            if self.init_other_backbone and start["peft"].get("fingerprint") != self.fingerprint:
                rank_zero_warn(f"init_from={path!r} was trained on other weights, of {start['peft']['backbone']}")
                start["peft"]["fingerprint"] = self.fingerprint
            files.check_backbone(self.description(), start["peft"])
            if self.init_head:
                self.check_head(start["identity"])
            found = self.resize_warm_start(found)
            files.check_delta(expected, found)
        except ValueError as error:
            raise ValueError(f"init_from={path!r}: {error}") from error
        self.load_state_dict(self.state_dict() | found)
        self.started_from = {"path": str(path), "sha256": fingerprint(found)}
        self.check_ranks(self.started_from["sha256"])

    def without_head(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors that start from the other run: without those of the heads, unless ``init_head``."""
        return {name: tensor for name, tensor in tensors.items() if self.init_head or not self.in_head(name)}

    def check_head(self, there: dict[str, Any]) -> None:
        """Refuse the head of a run whose identity, such as the names of its classes, is another one."""
        for name, value in self.identity().items():
            if value and there.get(name) and value != there[name]:
                label = name.removeprefix("class_names") or "classes"
                shown = [", ".join(map(str, v)) if isinstance(v, list) else str(v) for v in (there[name], value)]
                raise ValueError(f"init_head: the {label} are {shown[0][:200]} there, {shown[1][:200]} here")

    def check_ranks(self, sha256: str) -> None:
        """Refuse to go on where the ranks have read different files."""
        trainer = self._trainer
        if trainer is not None and trainer.world_size > 1:
            digest = torch.tensor(int(sha256[:15], 16), device=trainer.strategy.root_device)
            if trainer.strategy.all_gather(digest).unique().numel() > 1:
                raise ValueError(f"init_from={self.init_from!r}: the ranks read different files")
