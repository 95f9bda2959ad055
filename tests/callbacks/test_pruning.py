"""A fit of a search ends where it is worse than the others."""

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from lightning import Trainer
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from callbacks.pruning import PRUNED, Pruning
from datamodules import ImageDataset
from methods import PEFTMethod

Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    """Five finished trials with an accuracy above all, and a running one."""
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    made = optuna.create_study(study_name="search/ssf", storage=storage, direction="maximize")
    for _ in range(5):
        trial = made.ask()
        for epoch in range(4):
            trial.report(2.0, epoch)
        made.tell(trial, 2.0)
    made.ask()
    return made


def test_a_bad_fit_ends(study: optuna.Study, build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path) -> None:
    run = trainer(max_epochs=4, callbacks=[Pruning(tmp_path / "journal.log", "search/ssf", 5)])
    run.fit(build("linear_probe"), datamodule=data())
    assert run.current_epoch == 1
    found = study.trials[5]
    assert found.user_attrs == {PRUNED: 0}
    assert found.intermediate_values == {0: pytest.approx(float(run.callback_metrics["val/acc1"]))}
    assert found.state == TrialState.RUNNING, "its worker ends it"


@pytest.mark.parametrize("number", [0, 9])
def test_a_trial_that_does_not_run(
    number: int, study: optuna.Study, build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path
) -> None:
    """As where the config of a run is used again."""
    run = trainer(max_epochs=2, callbacks=[Pruning(tmp_path / "journal.log", "search/ssf", number)])
    run.fit(build("linear_probe"), datamodule=data())
    assert run.current_epoch == 2
    assert not any(PRUNED in trial.user_attrs for trial in study.trials)
