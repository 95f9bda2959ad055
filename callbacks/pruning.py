"""End of a fit of a search that is worse than the others."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

from lightning import Callback, LightningModule, Trainer

from lightning_modules.task import Task

if TYPE_CHECKING:
    from optuna.trial import Trial

PRUNED = "pruned"
"""Attribute of a trial whose fit was ended, with the epoch."""


class Pruning(Callback):
    """Reports each validation to a trial of Optuna, and ends the fit where the median rule asks for it.

    The rule: at least five trials have finished, and the best value so far is worse than the median of theirs after
    the same epoch. ``train.py grid --search --prune`` adds this callback. It does nothing once the trial is over, so
    that the config of the run can be used again.

    Args:
        journal: Journal file of the study.
        study: Name of the study in it.
        trial: Number of the trial.
    """

    def __init__(self, journal: Path, study: str, trial: int) -> None:
        self.journal, self.study, self.trial = Path(journal), study, trial
        self.open_trial: Trial | None = None  # on rank 0, while the trial runs

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero and self.journal.is_file():
            self.open_trial = running_trial(self.journal, self.study, self.trial)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        stop, trial = False, self.open_trial
        if trial is not None:
            name = f"val/{cast(Task, pl_module).headline.name}"
            trial.report(float(trainer.callback_metrics[name]), trainer.current_epoch)
            stop = trial.should_prune()
            if stop:
                trial.set_user_attr(PRUNED, trainer.current_epoch)
        # on every rank, because all of them must stop together
        trainer.should_stop |= trainer.strategy.reduce_boolean_decision(stop, all=False)


def running_trial(journal: Path, study: str, number: int) -> "Trial | None":
    """Trial of a study, or None if it does not run (any more)."""
    import optuna
    from optuna.pruners import MedianPruner
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import Trial, TrialState

    storage = JournalStorage(JournalFileBackend(str(journal)))
    if study not in [known.study_name for known in storage.get_all_studies()]:
        return None
    found = optuna.load_study(study_name=study, storage=storage, pruner=MedianPruner(n_startup_trials=5))
    trials = found.get_trials(deepcopy=False)
    if number >= len(trials) or trials[number].state != TrialState.RUNNING:
        return None
    return Trial(found, storage.get_trial_id_from_study_id_trial_number(found._study_id, number))
