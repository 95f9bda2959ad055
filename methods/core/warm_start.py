"""Warm start from the trained values of another run of the same method (PVP, Song et al., 2023, arXiv:2304.13639)."""

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from checkpoints import delta as files
from checkpoints.fingerprint import fingerprint
from methods.core.checkpoint import DeltaCheckpoint

# options with such a part in their name decide how initial values are drawn; the two runs may differ in them
ABOUT_DRAWING = ("dropout", "drop_path", "_init", "_std", "_xavier")


class WarmStart(DeltaCheckpoint):
    """An adapted task that can start from the trained values of another run.

    Args:
        init_from: Adapter folder or checkpoint of another run of the same method. It gives the initial trained values
            and the selection.
        init_head: Whether the classifier starts from the other run too; both runs must have the same classes.
        init_other_backbone: Whether the frozen weights of the other run may differ from those of this run, such as
            weights of another pre-training. Their shapes must be equal.
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
            raise ValueError("init_head and init_other_backbone are options of a start from another run: set init_from")
        self.init_from, self.init_head, self.init_other_backbone = init_from, init_head, init_other_backbone

    def free_options(self) -> set[str]:
        """Options of the method that may differ between this run and the one that it starts from."""
        drawn = {name for name in self.method_options() if any(part in name for part in ABOUT_DRAWING)}
        return drawn | set(self.warm_start_options)

    def resize_warm_start(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resize the tensors of the other run to the sizes of this run. By default they stay as they are."""
        return tensors

    def forget_warm_start(self) -> None:
        self.init_from = None

    def read_warm_start(self) -> dict[str, Any] | None:
        """Checkpoint of the run to start from; None if there is none.

        Raises:
            FileNotFoundError: If ``init_from`` does not exist.
            ValueError: If the file is damaged, or is of another method or of other options of this method.
        """
        if self.init_from is None:
            return None
        start = files.read_checkpoint(self.init_from, option="init_from")
        here, there = self.method_name(), start["peft"]["method"]
        if here != there:
            raise ValueError(f"init_from={self.init_from!r} was trained with {there}, this run trains {here}")
        options, saved = dict(self.hparams), start["hyper_parameters"]
        differences = [
            f"{name}: {saved.get(name, default)!r} in that run, {options[name]!r} in this run"
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
        """Copy the trained values of the other run; its head only with ``init_head``, its optimizer never.

        Args:
            start: Result of ``read_warm_start``.

        Raises:
            ValueError: If the other run had other frozen weights or other classes, or a tensor does not fit.
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

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.init_from is not None and self.started_from is not None:
            self.check_ranks(self.started_from["sha256"])  # here, because before it the ranks are not connected

    def without_head(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors without those of the heads; with ``init_head`` all of them."""
        heads = self.head_prefixes
        return {name: tensor for name, tensor in tensors.items() if self.init_head or not name.startswith(heads)}

    def check_head(self, there: dict[str, Any]) -> None:
        """Refuse the head of a run with another identity, such as other names of classes.

        Args:
            there: Identity of the other run.

        Raises:
            ValueError: With both values.
        """
        for name, value in self.identity().items():
            if value and there.get(name) and value != there[name]:
                label = name.removeprefix("class_names") or "classes"
                shown = [", ".join(map(str, v)) if isinstance(v, list) else str(v) for v in (there[name], value)]
                raise ValueError(
                    f"init_head: the {label} are {shown[0][:200]} in that run, {shown[1][:200]} in this run"
                )

    def check_ranks(self, sha256: str) -> None:
        """Refuse different files on different ranks.

        Args:
            sha256: Hash of the values that this rank has read.

        Raises:
            ValueError: If another rank has another hash.
        """
        trainer = self._trainer
        if trainer is not None and trainer.world_size > 1:
            digest = torch.tensor(int(sha256[:15], 16), device=trainer.strategy.root_device)
            if trainer.strategy.all_gather(digest).unique().numel() > 1:
                raise ValueError(f"init_from={self.init_from!r}: the ranks read different files")
