"""Contract of a task whose backbone a method adapts: what callbacks may use of it."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from lightning_modules.task import Task


class AdaptedTask(Task):
    """A task with an adapted backbone, of which a small part trains: the delta."""

    mergeable: bool = True  # whether ``merge`` returns a plain model
    input_dependent: bool = False  # whether the cost of a forward pass depends on its input
    total_parameters: int = 0
    plain_keys: frozenset[str] | None = None  # state-dict keys of the plain backbone; None until it is adapted
    init_from: str | None = None  # another run that this one starts from

    @abstractmethod
    def method_name(self) -> str:
        """Names of the methods, joined by ``+``."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Plain data that identify the delta beside its tensors."""

    @abstractmethod
    def delta_state_dict(self) -> dict[str, Tensor]:
        """Trained parameters, and the buffers that go with them."""

    @abstractmethod
    def parameter_counts(self) -> dict[str, int]:
        """Trained parameters of the ``method``, of the ``neck`` and of the ``head``."""

    @abstractmethod
    def storage_bytes(self) -> int:
        """Bytes of the smallest file that holds the delta."""

    @abstractmethod
    def merge(self) -> nn.Module:
        """The backbone as a plain model that gives the same outputs."""

    @classmethod
    @abstractmethod
    def from_delta(cls, source: str | Path | dict[str, Any]) -> Self:
        """Build the module that a checkpoint or an adapter folder describes, and load it."""

    @abstractmethod
    def forget_warm_start(self) -> None:
        """Start from no other run."""

    @property
    def adapted(self) -> bool:
        """Whether the backbone is adapted already."""
        return self.plain_keys is not None
