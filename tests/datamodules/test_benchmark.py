"""Rules of all benchmarks, on one that is made up."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from datamodules.benchmark import Benchmark, TrainTest
from tests.support.pictures import INPUT, Bytes, pictures


class Shapes(Benchmark):
    """Two datasets with lists of published sizes."""

    tasks: ClassVar[dict[str, int]] = {"circles": 3, "squares": 4}
    aliases: ClassVar[dict[str, str]] = {"rounds": "circles"}
    lists: ClassVar[dict[str, dict[str, str]]] = {
        "tune": {"train": "some", "val": "held", "test": "test"},
        "final": {"train": "all", "test": "test"},
    }

    @property
    def published_sizes(self) -> dict[str, int | None]:
        return {"some": 6, "held": 3, "all": 9, "test": 5}

    def samples_of(self, name: str) -> Bytes:
        samples = pictures({"some": 6, "held": 3, "all": 9, "test": 4}[name])
        self.compare(name, name, samples)
        return samples


class Halves(TrainTest):
    """Training and test images."""

    num_classes = 3
    class_names: ClassVar[list[str]] = ["a", "b", "c"]  # type: ignore[assignment]

    @property
    def published_sizes(self) -> dict[str, int | None]:
        return {"train": None, "test": None}

    def samples_of(self, name: str) -> Bytes:
        return pictures({"train": 6, "test": 4}[name])


def sizes(module: Any) -> dict[str, int | None]:
    parts = {split: module.samples(split) for split in ("train", "val", "test")}
    return {split: None if samples is None else len(samples) for split, samples in parts.items()}


def test_splits_of_a_benchmark(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert sizes(Shapes(root, "circles")) == {"train": 6, "val": 3, "test": 4}
    assert sizes(Shapes(root, "circles", split="final")) == {"train": 9, "val": None, "test": 4}
    best = Shapes(root, "circles", split="final", report_best_test=True)
    assert sizes(best) == {"train": 9, "val": 4, "test": 4}
    kept = [Shapes(root, "circles", split=split).kept_epoch for split in ("tune", "final")]  # type: ignore[arg-type]
    assert [*kept, best.kept_epoch] == ["best validation epoch", "last epoch", "best test epoch"]


def test_splits_of_training_and_test_images(tmp_path: Path) -> None:
    assert sizes(Halves(str(tmp_path))) == {"train": 6, "val": None, "test": 4}
    assert Halves(str(tmp_path)).kept_epoch == "last epoch"
    best = Halves(str(tmp_path), report_best_test=True)
    assert sizes(best) == {"train": 6, "val": 4, "test": 4}
    assert best.kept_epoch == "best test epoch"


def test_names_of_datasets(tmp_path: Path) -> None:
    assert Shapes(str(tmp_path), "rounds").task == "circles"
    assert Shapes(str(tmp_path), "squares").num_classes == 4
    assert Shapes(str(tmp_path), "squares").class_names == ["0", "1", "2", "3"]
    with pytest.raises(ValueError, match="unknown task 'circle'; nearest: circles; known: circles, squares"):
        Shapes(str(tmp_path), "circle")
    with pytest.raises(ValueError, match=r"data\.task is missing; known: circles, squares"):
        _ = Shapes(str(tmp_path)).num_classes
    with pytest.raises(ValueError, match=r"report_best_test=true goes with split=final"):
        Shapes(str(tmp_path), "circles", report_best_test=True)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Shapes(str(tmp_path / "nowhere"), "circles")


def test_list_of_another_size_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Shapes(str(tmp_path), "circles").samples("test")
    assert capsys.readouterr().out == "note: test: 4 images, 5 in papers; accuracies are not comparable\n"
    Shapes(str(tmp_path), "circles").samples("train")
    assert not capsys.readouterr().out


def test_final_fit_reads_the_test_list_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = Shapes.samples_of
    monkeypatch.setattr(Shapes, "samples_of", lambda self, name: (read.append(name), original(self, name))[1])
    for split, first in {"tune": "some", "final": "test"}.items():
        read.clear()
        module = Shapes(str(tmp_path), "circles", split=split, batch_size=2)  # type: ignore[arg-type]
        module.trainer = SimpleNamespace(lightning_module=SimpleNamespace(input_config=INPUT))  # type: ignore[assignment]
        module.setup("fit")
        assert read[0] == first
