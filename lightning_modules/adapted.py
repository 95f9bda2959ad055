"""Contract of a task with an adapted backbone, for callbacks and commands."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from backbones.blocks import recompute_blocks
from lightning_modules.task import Task


class AdaptedTask(Task):
    """A task with an adapted backbone. A small part of its tensors trains: the delta."""

    mergeable: bool = True  # whether ``merge`` returns a plain model
    uncompilable: str = ""  # the reason why torch.compile cannot be used, if there is one
    input_dependent: bool = False  # whether the cost of a forward pass depends on its input
    total_parameters: int = 0  # number of all parameters, frozen and trained
    plain_keys: frozenset[str] | None = None  # state-dict keys of the plain backbone; None until it is adapted
    init_from: str | None = None  # adapter folder or checkpoint of the run that this run starts from

    @abstractmethod
    def method_name(self) -> str:
        """Names of the methods, joined by ``+``."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Plain data that identify the delta: format, method, backbone and hash of the frozen weights."""

    @abstractmethod
    def delta_state_dict(self) -> dict[str, Tensor]:
        """Trained parameters and added buffers, by name."""

    @abstractmethod
    def parameter_counts(self) -> dict[str, int]:
        """Numbers of trained parameters of the ``method``, the ``neck`` and the ``head``."""

    @abstractmethod
    def storage_bytes(self) -> int:
        """Size of the delta in its smallest file format, in bytes."""

    @abstractmethod
    def merge(self) -> nn.Module:
        """Merge the delta into a plain copy of the backbone with equal outputs."""

    @classmethod
    @abstractmethod
    def from_delta(cls, source: str | Path | dict[str, Any]) -> Self:
        """Build the module of a checkpoint or an adapter folder and load its delta."""

    @abstractmethod
    def forget_warm_start(self) -> None:
        """Cancel the start from another run."""

    @property
    def adapted(self) -> bool:
        """Whether the backbone is adapted."""
        return self.plain_keys is not None

    def recompute(self, enabled: bool) -> None:
        """Compute the activations inside blocks again in the backward pass, instead of keeping them for it.

        Args:
            enabled: Whether to do so; False keeps activations again.

        Raises:
            ValueError: If the network has no blocks that can be computed again.
        """
        recompute_blocks(self.backbone, enabled)
