"""Contract of a model that chooses weights or channels from data."""

from abc import abstractmethod
from typing import Any

from torch import Tensor

from callbacks.scoring.report import Scored
from callbacks.scoring.scorers import Scorer
from lightning_modules.adapted import AdaptedTask
from lightning_modules.batch import Batch


class Scorable(AdaptedTask):
    """A task whose backbone is scored before the fit. All verbs are about the plain backbone."""

    scorer: type[Scorer] | None = None  # None if the options need no scores before the fit
    prunable: bool = False  # whether a fitted model can be scored, pruned and fit anew
    selection: dict[str, Tensor] | None = None  # index tensors of what was chosen

    @abstractmethod
    def build_scorer(self) -> Scorer:
        """The scorer of one pass over the scoring batches."""

    @property
    def score_reads_data(self) -> bool:
        """Whether scoring needs training batches. False when scores depend on the weights alone."""
        return self.scorer is None or self.scorer.needs_data  # without a scorer, a fitted model is scored

    @property
    def score_data(self) -> dict[str, Any]:
        """Which batches are scored: arguments of the datamodule's ``score_batches``."""
        return {"batch_size": 32}

    def score_key(self) -> str:
        """Cache key of the scoring settings. Must not contain the budget."""
        return f"{self.method_name()} {self.scorer.__name__ if self.scorer else ''} {sorted(self.score_data.items())}"

    def score_loss(self, batch: Batch) -> Tensor | None:
        """Loss whose gradient is scored, a scalar; by default the task's. None if a forward pass is enough."""
        return self.loss(batch)

    @abstractmethod
    def select(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """Index tensors of what is chosen, from fp32 scores on the CPU; pure, ties go to the lower index."""

    @abstractmethod
    def score_rows(self, scores: dict[str, Tensor]) -> list[Scored]:
        """Rows of the picture and the table of a pass: what was scored, and how much of it was selected."""

    def rewind(self, initial: dict[str, Tensor]) -> None:
        """Set what trains after pruning to the values ``initial`` (the delta) from before the first fit.

        Raises:
            TypeError: If a fitted model of this method cannot be pruned.
        """
        raise TypeError(f"{type(self).__name__} prunes nothing")
