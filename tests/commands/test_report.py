"""report: means, marks of other protocols, what is missing, and the page."""

import csv
import json
import os
import re
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import yaml

import datamodules
from commands.report.leaderboard import averages, groups_of
from commands.report.printed import PRINTED, printed, sources
from datamodules.vtab import GROUPS
from train import main

TASKS = [task for group in GROUPS.values() for task in group]


def make(
    root: Path, method: str, task: str, seed: int, accuracy: float | None, options: Any = None, **result: Any
) -> Path:
    """A run folder as ``fit`` leaves it; of one that was not tested if there is no accuracy."""
    folder = root / method / task / str(seed)
    while folder.exists():
        folder = folder.with_name(f"{folder.name}-2")
    folder.mkdir(parents=True)
    values = {"method": method, "dataset": "VTAB", "data": "vtab-1k", "data_task": task, "seed": seed}
    values |= {"backbone": "vit", "pretrained": True, "source": "dump", "split": "final", "selection": "last epoch"}
    values |= {"resize": "direct", "interpolation": "bicubic", "normalization": "model", "images": {"train": 1000}}
    values |= {"cost/trainable_params": 1000, "cost/storage_bytes": 4000, "cost/images_per_s": 50.0} | result
    if accuracy is not None:
        values["test/acc1"] = accuracy / 100
    (folder / "result.json").write_text(json.dumps(values))
    config = {"seed_everything": seed, "model": {"init_args": {"lr": 0.1}}, "trainer": {"max_epochs": 100}}
    config["model"]["init_args"] |= options or {}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def written(root: Path, *more: Path) -> str:
    main(["report", str(root), *map(str, more), "--output", str(root / "out")])
    return (root / "out/report.md").read_text()


def rows(root: Path, name: str = "leaderboard") -> dict[str, dict[str, str]]:
    with (root / f"out/{name}.csv").open() as file:
        return {f"{row['method']} {row.get('protocol', row.get('seed'))}": row for row in csv.DictReader(file)}


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


def test_what_is_missing_is_shown(tmp_path: Path) -> None:
    for task in ("cifar", "dtd", "patch_camelyon"):
        for seed in (0, 1):
            make(tmp_path, "SSF", task, seed, 70.0)
            if (task, seed) != ("dtd", 1) and task != "patch_camelyon":
                make(tmp_path, "LoRA", task, seed, 60.0)
    crashed = make(tmp_path, "LoRA", "patch_camelyon", 0, None)
    begun = make(tmp_path, "GPS", "dtd", 0, None)
    (begun / "result.json").unlink()
    text = written(tmp_path)
    tasks = {line.split(" | ")[0]: line for line in text.partition("Top-1 of each task")[2].splitlines()}
    assert tasks["| LoRA"] == "| LoRA | A | 60.00 ± 0.00 | 60.00 (1 of 2 seeds) | - |"
    assert "natural (2 of 7)" in text
    assert "specialized (1 of 4)" in text
    assert "mean of 3 tasks" in text
    summary = next(line for line in text.splitlines() if line.startswith("| LoRA"))
    assert summary.split(" | ")[3:7] == ["60.00 (1 of 2 seeds)", "-", "-", "-"]
    assert f"`{crashed}`: not tested" in text
    assert f"`{begun}`: not tested" in text
    assert "mean of tasks" not in {k for k, v in rows(tmp_path)["LoRA A"].items() if v}


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


def test_one_protocol_needs_no_warning(tmp_path: Path) -> None:
    make(tmp_path, "SSF", "dtd", 0, 70.0)
    assert "not comparable" not in written(tmp_path)


def test_options_that_differ_join_the_name(tmp_path: Path) -> None:
    for rank, accuracy in {4: 60.0, 8: 65.0}.items():
        for task in ("dtd", "svhn"):
            make(tmp_path, "LoRA", task, 0, accuracy, {"lora_rank": rank})
    make(tmp_path, "SSF", "dtd", 0, 70.0, {"lr": 1})  # per task, and so no name
    make(tmp_path, "SSF", "svhn", 0, 70.0, {"lr": 2})
    written(tmp_path)
    assert {name: row["mean of tasks"] for name, row in rows(tmp_path).items() if "printed" not in name} == {
        "LoRA lora_rank=4 A": "60.0",
        "LoRA lora_rank=8 A": "65.0",
        "SSF A": "70.0",
    }


def test_the_newest_of_equal_runs_counts(tmp_path: Path) -> None:
    for age, accuracy in ((100, 10.0), (10, 20.0), (50, 30.0)):
        file = make(tmp_path, "SSF", "dtd", 0, accuracy) / "config.yaml"
        os.utime(file, (file.stat().st_mtime - age,) * 2)
    written(tmp_path)
    assert rows(tmp_path)["SSF A"]["dtd"] == "20.0"
    assert len(rows(tmp_path, "runs")) == 1


def test_other_numbers_of_training_images_are_marked(tmp_path: Path) -> None:
    for method in ("SSF", "LoRA"):
        make(tmp_path, method, "dtd", 0, 70.0)
    make(tmp_path, "GPS", "dtd", 0, 90.0, images={"train": 5000})
    text = written(tmp_path)
    assert "| GPS | A | 1 | 90.00 † |" in text
    assert "† trained on another number of images" in text


def test_few_shot_draws_are_seeds(tmp_path: Path) -> None:
    for draw, accuracy in enumerate((50.0, 60.0)):
        for shots in (1, 16):
            make(tmp_path, "SSF", "pets", 0, accuracy + shots, dataset="FewShot", shots=shots, shot_seed=draw)
    text = written(tmp_path)
    assert "| SSF | A | 56.00 ± 7.07 | 71.00 ± 7.07 |" in text
    assert "pets 1-shot | pets 16-shot" in text


def test_cells_of_a_grid(tmp_path: Path) -> None:
    """The label wins over the method's class, a cell without a run is unfinished, and searches are no results."""
    for label, task, accuracy in (("vpt_deep", "dtd", 70.0), ("vpt_shallow", "dtd", 60.0), ("vpt_deep", "svhn", None)):
        cell = tmp_path / label / task / "s0"
        cell.mkdir(parents=True)
        (cell / "cell.json").write_text(json.dumps({"label": label, "task": task, "seed": 0}))
        if accuracy is not None:
            make(cell, "VPT", task, 0, accuracy)
    search = make(tmp_path / "search", "VPT", "dtd", 0, 99.0)
    (search.parent / "cell.json").write_text('{"search": {"model.lr": 1}}')
    text = written(tmp_path)
    assert {row["method"] for row in rows(tmp_path, "runs").values()} == {"vpt_deep", "vpt_shallow"}
    assert f"- vpt_deep, svhn, seed 0: `{tmp_path / 'vpt_deep/svhn/s0'}`" in text
    assert "99.00" not in text


def test_data_without_a_table(tmp_path: Path) -> None:
    make(tmp_path, "SSF", "x", 0, 70.0, dataset="ImageDataset", data="some/pets|cats", data_task=None)
    text = written(tmp_path)
    assert "## ImageDataset" in text
    assert "| pets\\|cats |" in text
    assert "mean of groups" not in text


def test_the_page_holds_everything(tmp_path: Path) -> None:
    make(tmp_path, "SSF", "dtd", 0, 70.0)
    make(tmp_path, "<script>alert(1)</script>", "dtd", 1, 60.0)
    text = written(tmp_path)
    page = (tmp_path / "out/report.html").read_text()
    assert re.findall('src="([^"]{22})', page) == ["data:image/png;base64,"]
    assert "<script" not in page
    assert "http" not in page
    assert page.count("<table") == text.count("| --- |")
    assert (tmp_path / "out/VTAB.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("file", "content"), [("result.json", "{"), ("result.json", "[]"), ("config.yaml", "a: [")])
def test_damaged_files_are_named(file: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path, "SSF", "dtd", 0, 70.0)
    (folder / file).write_text(content)
    with pytest.raises(SystemExit):
        written(tmp_path)
    assert f"{folder / file} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(("place", "message"), [("nothing", "no such folder"), (".", "no run in")])
def test_nothing_to_report(place: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / place)])
    assert message in capsys.readouterr().err


# what papers print


def test_printed_numbers_stand_beside_ours(tmp_path: Path) -> None:
    make(tmp_path, "SSF", "dtd", 0, 70.0)
    text = written(tmp_path)
    assert "| SSF, printed | [SSF] | " in text
    assert "| 75.10 |" in text
    assert f"- [SSF] {sources()['SSF']}" in text
    assert rows(tmp_path)["SSF (printed) SSF"]["dtd"] == "75.1"


@pytest.mark.parametrize(
    ("method", "of_groups", "of_tasks"),
    [
        ("full", 68.97, 65.57),
        ("linear", 57.64, 52.94),
        ("bias", 65.22, 62.05),
        ("VPT-shallow", 67.82, 64.85),
        ("VPT-deep", 71.97, 69.43),
        ("Adapter of zeros", 59.95, 55.82),
        ("Adapter-8", 73.86, 71.44),
        ("LoRA-8", 74.60, 72.25),
        ("NOAH", 75.48, 73.25),
        ("AdaptFormer-8", 74.75, 72.32),
        ("FacT-TT", 75.34, 73.04),
        ("FacT-TK", 75.55, 73.23),
        ("Convpass", 76.56, 74.45),
        ("RepAdapter", 76.09, 73.84),
        ("SSF", 75.69, 73.10),
        ("DyT r=.5", 77.14, None),
        ("DyT r=.7", 77.57, None),
        ("DyT r=.9", 77.30, None),
    ],
)
def test_printed_rows_have_their_printed_means(method: str, of_groups: float, of_tasks: float | None) -> None:
    """Papers give one mean or the other."""
    (row,) = [row for row in printed("VTAB") if row["method"] == method]
    assert row["source"] in sources()
    groups = {name: list(tasks) for name, tasks in groups_of("VTAB").items()}
    found = averages(row["accuracy"], groups, TASKS)
    assert found["mean of groups"] == pytest.approx(of_groups, abs=0.015)  # of rounded numbers
    if of_tasks is not None:
        assert found["mean of tasks"] == pytest.approx(of_tasks, abs=0.011)


def test_printed_tables_name_our_tasks() -> None:
    content = yaml.safe_load(PRINTED.read_text())
    for dataset, table in content["tables"].items():
        assert table["tasks"] == list(getattr(datamodules, dataset).tasks)
        assert {row[1] for row in table["rows"]} <= content["sources"].keys()
    fgvc = {row["method"]: mean(row["accuracy"].values()) for row in printed("FGVC")}
    printed_means = {"full": 88.54, "linear": 79.32, "bias": 88.40, "Adapter of zeros": 85.66, "VPT-deep": 89.10}
    assert {name: fgvc[name] for name in printed_means} == pytest.approx(printed_means, abs=0.011)


def test_folders_are_seen_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "runs", "SSF", "dtd", 0, 70.0)
    monkeypatch.chdir(tmp_path)
    main(["report", "runs", "--output", "report"])
    assert str(tmp_path) not in (tmp_path / "report" / "runs.csv").read_text()
    assert "runs/SSF/dtd/0" in (tmp_path / "report" / "runs.csv").read_text()
