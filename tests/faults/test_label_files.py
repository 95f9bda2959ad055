"""CSV files of targets on the command line: what they train, and what is refused before training."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.faults.conftest import Refused
from tests.support.command_line import Answer, folders
from tests.support.tables import write_tables

ROWS = {
    "classification": ("ClassFile", "label", ["cat", "dog", "cat", "cat"]),
    "multi_label": ("TagFile", "tags", ["a|b", "b", "", "a"]),
    "regression": ("NumberFile", "target", ["100", "200", "300", "500"]),
}


@pytest.fixture
def fit(weights: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """``fit(task)``: command line of a fit on CSV files of the task."""

    def build(task: str) -> list[str]:
        data, header, rows = ROWS[task]
        write_tables(tmp_path / task, {"train": rows, "val": rows[:2], "test": rows[:2]}, header)
        args = "".join(f"--model.backbone_args.{name}={value} " for name, value in TINY.items())
        model = f"--method lora --task {task} --model.backbone vit_tiny_patch16_224 {args}"
        given = f"--data {data} --data.root {tmp_path / task} --data.batch_size 2 --data.num_workers 0"
        trainer = "--trainer.accelerator cpu --trainer.max_epochs 1 --trainer.enable_progress_bar false"
        return ["fit", "--model.pretrained", str(weights), *f"{model} {given} {trainer}".split()]

    return build


@pytest.mark.parametrize(
    ("task", "metric", "columns"),
    [("multi_label", "mAP", "index,sample,a,b"), ("regression", "MAE", "index,sample,target")],
)
def test_fit_test_predict_and_merge(
    task: str, metric: str, columns: str, fit: Callable[..., list[str]], call: Callable[..., Answer], tmp_path: Path
) -> None:
    args = fit(task)
    answer = call(*args, "--test_after_fit", "true", "--run_root", tmp_path / "runs")
    assert answer.code == 0, answer.err
    (run,) = folders(tmp_path / "runs")
    assert f'"test/{metric}"' in (run / "result.json").read_text()
    data = args[args.index("--data") : args.index("--trainer.max_epochs")]
    answer = call("predict", "--ckpt_path", run / "adapter", *data, "--run_root", tmp_path / "predict")
    assert answer.code == 0, answer.err
    (predicted,) = folders(tmp_path / "predict")
    lines = (predicted / "predictions.csv").read_text().splitlines()
    assert (lines[0], len(lines)) == (columns, 3)
    answer = call("merge", "--ckpt_path", run / "adapter", "--output", tmp_path / "merged")
    assert answer.code == 0, answer.err
    assert (tmp_path / "merged/model.safetensors").is_file()


def test_mistakes_in_files(fit: Callable[..., list[str]], tmp_path: Path, refused: Refused) -> None:
    """Each with the file, the line or column, and what is expected."""
    args = fit("classification")
    file = tmp_path / "classification/train.csv"
    refused(*args, "--data.label_column", "kind", says=("no column 'kind': found path, label", "--data.label_column"))
    file.write_text("path,label\ntrain0.png,cat\ntrain1.png,7\n")
    refused(*args, says="found 'cat'; expected a number, as '7' in line 3")
    file.write_text("path,label\ntrain0.png,cat\ntrain1.png,cat\n")
    for option in ("--model.class_weights=balanced", "--data.sampling=balanced"):
        says = f"{option.removeprefix('--').removeprefix('model.')}: 1 of 2 classes have no training image, first 'dog'"
        refused(*args, option, says=says)


def test_wrong_pairs_of_task_and_data(fit: Callable[..., list[str]], refused: Refused) -> None:
    args = fit("regression")
    at = args.index("regression")
    refused(*args[:at], "classification", *args[at + 1 :], says=("NumberFile has numbers", "pass --task regression"))
    args = fit("classification")
    at = args.index("classification")
    refused(*args[:at], "multi_label", *args[at + 1 :], says=("ClassFile has labels of images", "--data TagFile"))
