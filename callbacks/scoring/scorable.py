"""Contract of a model that chooses weights or channels from data."""

from abc import abstractmethod
from typing import Any

from torch import Tensor

from callbacks.scoring.report import Scored
from callbacks.scoring.scorers import Scorer
from lightning_modules.adapted import AdaptedTask
from lightning_modules.batch import Batch


class Scorable(AdaptedTask):
    """A task whose backbone is scored before the fit. All verbs work on the plain backbone."""

    scorer: type[Scorer] | None = None  # None if the options need no scores before the fit
    prunable: bool = False  # whether a fitted model can be scored, pruned and fitted once more
    selection: dict[str, Tensor] | None = None  # indices of the chosen entries or channels, by name

    @abstractmethod
    def build_scorer(self) -> Scorer:
        """Build the scorer for one pass over the scoring batches."""

    @property
    def score_reads_data(self) -> bool:
        """Whether scoring needs training batches. False when scores depend on the weights alone."""
        return self.scorer is None or self.scorer.needs_data  # ``Rewind`` scores a fitted model without ``scorer``

    @property
    def score_data(self) -> dict[str, Any]:
        """Scored batches, as arguments of the datamodule's ``score_batches``."""
        return {"batch_size": 32}

    def score_key(self) -> str:
        """Cache key of the scoring settings. Must not contain the budget."""
        return f"{self.method_name()} {self.scorer.__name__ if self.scorer else ''} {sorted(self.score_data.items())}"

    def score_loss(self, batch: Batch) -> Tensor | None:
        """Loss for the scored gradient, a scalar; by default the task's loss. None if a forward pass is enough."""
        return self.loss(batch)

    @abstractmethod
    def select(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """Choose entries or channels: index tensors by name, from fp32 scores on the CPU.

        It has no side effects. Ties go to the lower index.
        """

    def use_selection(self, selection: dict[str, Tensor]) -> None:
        """Take over what was chosen; the backbone is adapted with it."""
        self.selection = selection

    @abstractmethod
    def score_rows(self, scores: dict[str, Tensor]) -> list[Scored]:
        """Rows for the picture and the table of a pass, with scores and numbers of selected parameters."""

    def rewind(self, initial: dict[str, Tensor]) -> None:
        """Set the trained tensors after pruning to their values before the first fit.

        Args:
            initial: Delta before the first fit.

        Raises:
            TypeError: If a fitted model of this method cannot be pruned.
        """
        raise TypeError(f"{type(self).__name__} prunes nothing")
