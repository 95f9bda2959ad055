"""Choices of searches."""

from pathlib import Path

import pytest
import yaml

from callbacks.pruning import PRUNED, running_trial
from commands.grid.queue import FINISHED, Queue
from commands.lightning.recipes import read_recipe
from tests.commands.grid.conftest import Fake, call


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    content = {"method": "ssf", "data": "VTAB", "all": {"model.lr": 1.0, "trainer.max_epochs": 3}}
    content["tasks"] = {"dtd": {"model.drop_path": 0.1}, "svhn": {"model.drop_path": 0.2}}
    content["grid"] = {"model.lr": [0.1, 0.2, 0.9], "model.weight_decay": [0.0, 0.1]}
    (folder / "ssf.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_search_chooses_by_validation(fake: Fake, recipe: Path, tmp_path: Path) -> None:
    study = ["--study", tmp_path / "study", "--recipe", recipe, "--methods", "ssf", "--tasks", "dtd,svhn"]
    assert call(*study, "--search", "--", "--data.split=final", "--data.root", "x") == 0
    assert len(fake.args) == len(set(fake.ran)) == 2 * 6
    assert all([arg for arg in args if "split" in arg][-1] == "--data.split=tune" for args in fake.args)
    assert not any("test_after_fit" in arg for args in fake.args for arg in args)
    chosen = read_recipe(str(tmp_path / "study/chosen/ssf.yaml"))
    assert "grid" not in chosen
    assert chosen["all"] == {"model.lr": 1.0, "trainer.max_epochs": 3}
    for task, drop_path in {"dtd": 0.1, "svhn": 0.2}.items():
        assert chosen["tasks"][task]["model.lr"] == 0.2
        assert chosen["tasks"][task]["model.drop_path"] == drop_path
    study[3] = tmp_path / "study/chosen"
    assert call(*study, "--", "--data.split=final") == 0, "and what is chosen can be run"
    assert fake.args[-1][1:3] == ["--recipe", str(tmp_path / "study/chosen/ssf.yaml")]
    report = (tmp_path / "study/report/report.md").read_text()
    assert "/study/search" not in report


def test_search_with_a_budget(fake: Fake, recipe: Path, tmp_path: Path) -> None:
    args = ["--recipe", recipe, "--methods", "ssf", "--tasks", "dtd", "--search", 4]
    picked = []
    for name in ("a", "b"):
        assert call("--study", tmp_path / name, *args) == 0
        queue = Queue(tmp_path / name)
        picked.append([trial.params for _, trial in queue.trials("COMPLETE")])
    assert len(picked[0]) == 4
    assert picked[0] == picked[1], "the same whatever worker asks"
    assert all(trial["model.lr"] in (0.1, 0.2, 0.9) for trial in picked[0])


def test_search_over_own_images(fake: Fake, options: list[str], tmp_path: Path) -> None:
    """Without a recipe: the values of --over, and a config that a fit reads."""
    axes = ["--over", "model.lr=1e-1,3e-1,9e-1", "--over", "trainer.max_epochs=5"]
    args = ["--study", tmp_path, "--methods", "ssf,lora", "--search", *axes]
    assert call(*args, "--", *options) == 0
    assert len(fake.args) == 2 * 3
    assert not any("test_after_fit" in arg for args in fake.args for arg in args)
    for method in ("ssf", "lora"):
        chosen = yaml.safe_load((tmp_path / f"chosen/{method}.yaml").read_text())
        assert chosen == {"model": {"init_args": {"lr": 0.3}}, "trainer": {"max_epochs": 5}}
    assert call(*args, "--", *options) == 0, "again, without another run"
    assert len(fake.args) == 6


def test_pruned_fits(fake: Fake, options: list[str], tmp_path: Path) -> None:
    """A fit that was ended counts as finished, and is not chosen."""

    def prune_the_best(args: list[str], log: Path | None, own_process: bool) -> None:
        fake(args, log, own_process)
        values = dict(arg.removeprefix("--").split("=", 1) for arg in args if "=" in arg)
        if values["model.lr"] == "0.3":
            trial = running_trial(Path(values["trainer.callbacks.journal"]), values["trainer.callbacks.study"], 1)
            assert trial is not None
            trial.set_user_attr(PRUNED, 0)

    args = ["--study", tmp_path, "--methods", "ssf", "--search", "--prune", "--over", "model.lr=1e-1,3e-1,9e-1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("commands.lightning.runs.execute", prune_the_best)
        assert call(*args, "--", *options) == 0
    assert [trial.state.name for _, trial in Queue(tmp_path).trials(*FINISHED)] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert yaml.safe_load((tmp_path / "chosen/ssf.yaml").read_text()) == {"model": {"init_args": {"lr": 0.1}}}
    assert call(*args, "--", *options) == 0, "again, without another run"
    assert len(fake.args) == 3
