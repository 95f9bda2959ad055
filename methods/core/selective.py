"""Base of methods that choose weights or channels from data before the fit."""

from abc import abstractmethod

from lightning import Callback
from torch import Tensor

from callbacks.scoring.report import Scored
from callbacks.scoring.rewind import Rewind
from callbacks.scoring.scorable import Scorable
from callbacks.scoring.score_before_fit import ScoreBeforeFit
from callbacks.scoring.scorers import Scorer
from lightning_modules.run import callbacks_of
from methods.core.base import PEFTMethod


class Selective(PEFTMethod, Scorable):
    """A method that adapts the backbone after a scoring pass has filled its ``selection``."""

    @abstractmethod
    def score_targets(self) -> list[str]:
        """Names (inside the backbone) of the scored parameters or modules."""

    def build_scorer(self) -> Scorer:
        assert self.scorer is not None
        return self.scorer(self.backbone, self.score_targets())

    def score_rows(self, scores: dict[str, Tensor]) -> list[Scored]:
        selection = self.selection or {}
        return [Scored(name, scores[name].abs(), len(selection.get(name, ()))) for name in self.score_targets()]

    def ready_to_adapt(self) -> bool:
        return self.scorer is None or self.selection is not None

    def adapt_before_data(self) -> None:
        if self._trainer is not None and any(isinstance(c, Rewind) for c in callbacks_of(self.trainer)):
            return  # because it gives a selection to a method that needs none before its first fit
        super().adapt_before_data()
        if not self.adapted:
            self.check_targets()

    def check_targets(self) -> None:
        """Refuse a backbone without anything to score.

        Raises:
            ValueError: With the class of the backbone.
        """
        if not self.score_targets():
            raise ValueError(
                f"{self.method_name()} finds nothing to score in {type(self.backbone).__name__}: use a backbone with "
                "linear or convolutional layers, or the method full"
            )

    def configure_callbacks(self) -> list[Callback]:
        callbacks = super().configure_callbacks()
        given = any(isinstance(callback, ScoreBeforeFit) for callback in callbacks_of(self.trainer))
        return callbacks if self.scorer is None or given else [*callbacks, ScoreBeforeFit()]
