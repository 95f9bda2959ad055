"""Numbers of a table: means, deviations and rows of protocols."""

import json
from math import exp, log10
from pathlib import Path
from statistics import mean, stdev

import pytest

from commands.report.leaderboard import averages, groups_of, letter
from datamodules.vtab import GROUPS
from tests.support.reports import TASKS, make, rows, written


def test_means_and_deviations(tmp_path: Path) -> None:
    accuracy = {(task, seed): 50.0 + number + 3 * seed for number, task in enumerate(TASKS) for seed in (0, 1, 2)}
    for (task, seed), value in accuracy.items():
        make(tmp_path, "SSF", task, seed, value)
    text = written(tmp_path)
    row = rows(tmp_path)["SSF A"]
    groups = {name: mean(accuracy[task, 1] for task in tasks) for name, tasks in GROUPS.items()}
    for name, value in groups.items():
        assert float(row[name]) == pytest.approx(value, abs=1e-3)
    assert float(row["mean of groups"]) == pytest.approx(mean(groups.values()), abs=1e-3)
    assert float(row["mean of tasks"]) == pytest.approx(mean(accuracy[task, 1] for task in TASKS), abs=1e-3)
    assert float(row["mean of tasks std"]) == pytest.approx(stdev([0.0, 3.0, 6.0]), abs=1e-3)
    assert float(row["dtd std"]) == pytest.approx(3.0)
    assert f"| mean of {len(TASKS)} tasks |" in text
    assert "| 55.00 ± 3.00 |" in text  # dtd


def test_printed_means_and_ppt_stand_beside_ours(tmp_path: Path) -> None:
    for task in TASKS:
        make(tmp_path, "SSF", task, 0, 70.0, **{"cost/trainable_params_method": 205_824})
    text, found = written(tmp_path), rows(tmp_path)
    assert float(found["SSF A"]["PPT"]) == pytest.approx(0.7 * exp(-log10(1.0205824)), abs=1e-4)
    assert float(found["HST (printed) V-PETL on VTAB"]["mean of groups"]) == pytest.approx(78.13, abs=0.01)
    assert found["Bi-LoRA-1 with Bi-Head (printed) PETL-ViT"]["mean of groups"] == "74.6"
    assert "| Bi-LoRA-1 with Bi-Head, printed | [PETL-ViT] |  | - | - | - | 74.60 | - | - |" in text
    assert "- PPT is V-PETL's" in text


def test_printed_means_of_all_tasks_do_not_stand_beside_some(tmp_path: Path) -> None:
    for task in ("cifar", "dtd"):
        make(tmp_path, "SSF", task, 0, 70.0)
    assert "PETL-ViT" not in written(tmp_path)
    assert rows(tmp_path)["SSF A"]["PPT"] == ""


def test_a_missing_seed_is_in_the_csv(tmp_path: Path) -> None:
    for task, seed in ((task, seed) for task in ("cifar", "dtd") for seed in (0, 1, 2)):
        make(tmp_path, "SSF", task, seed, 70.0)
        if (task, seed) != ("dtd", 2):
            make(tmp_path, "LoRA", task, seed, 60.0)
    written(tmp_path)
    names = ("seeds", "cifar seeds", "dtd seeds", "natural seeds", "mean of tasks seeds")
    found = rows(tmp_path)
    assert [found["SSF A"][name] for name in names] == ["3", "3", "3", "3", "3"]
    assert [found["LoRA A"][name] for name in names] == ["3", "3", "2", "2", "2"]


def test_methods_that_each_lack_another_seed(tmp_path: Path) -> None:
    for method, seeds in {"SSF": (0, 1), "LoRA": (1, 2)}.items():
        for seed in seeds:
            make(tmp_path, method, "dtd", seed, 70.0)
    make(tmp_path, "SSF", "dtd", 42, 70.0, backbone="swin")  # no seed that protocol A would lack
    text = written(tmp_path)
    for method in ("SSF", "LoRA"):
        assert f"| {method} | A | 2 | 70.00 ± 0.00 (2 of 3 seeds) |" in text


@pytest.mark.parametrize(
    "other",
    [
        {"backbone": "swin"},
        {"split": "tune"},
        {"selection": "best test epoch"},
        {"normalization": "inception"},
        {"source": "hf"},
    ],
)
def test_other_protocols_are_rows_of_their_own(tmp_path: Path, other: dict[str, str]) -> None:
    for seed in (0, 1):
        make(tmp_path, "SSF", "dtd", seed, 70.0)
        make(tmp_path, "LoRA", "dtd", seed, 60.0)
    make(tmp_path, "SSF", "dtd", 2, 90.0, **other)
    text = written(tmp_path)
    found = rows(tmp_path)
    assert float(found["SSF A"]["dtd"]) == 70.0
    assert float(found["SSF B"]["dtd"]) == 90.0
    ((key, value),) = other.items()
    usual = json.loads(next((tmp_path / "LoRA").rglob("result.json")).read_text())[key]
    assert f"- protocol B: {key} {value} (A: {usual})\n" in text
    assert "Rows of different protocols are not comparable" in text


def test_few_shot_draws_are_seeds(tmp_path: Path) -> None:
    for draw, accuracy in enumerate((50.0, 60.0)):
        for shots in (1, 16):
            make(tmp_path, "SSF", "pets", 0, accuracy + shots, dataset="FewShot", shots=shots, shot_seed=draw)
    text = written(tmp_path)
    assert "| SSF | A | 56.00 ± 7.07 | 71.00 ± 7.07 |" in text
    assert "pets 1-shot | pets 16-shot" in text


def test_means_need_all_their_columns() -> None:
    groups = {"first": ["a", "b"], "second": ["c"]}
    whole = {"a": 1.0, "b": 3.0, "c": 8.0}
    assert averages(whole, groups, ["a", "b", "c"]) == {
        "first": 2.0,
        "second": 8.0,
        "mean of groups": 5.0,
        "mean of tasks": 4.0,
    }
    assert averages({"a": 1.0, "c": 8.0}, groups, ["a", "b", "c"]) == {"second": 8.0}
    assert averages({"a": 1.0}, {"all": ["a"]}, ["a"]) == {"all": 1.0, "mean of tasks": 1.0}, "one group has no mean"


def test_letters_of_protocols() -> None:
    assert [letter(number) for number in (0, 1, 25, 26, 27, 52)] == ["A", "B", "Z", "AA", "BB", "AAA"]
    assert len({letter(number) for number in range(100)}) == 100


def test_groups_of_a_data_set() -> None:
    assert {name: list(tasks) for name, tasks in groups_of("VTAB").items()} == {n: list(t) for n, t in GROUPS.items()}
    assert groups_of("ImageDataset") == groups_of("NoSuchData") == {"all": ()}
