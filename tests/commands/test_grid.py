"""grid: what is planned, that every cell is run once by any number of workers, and what a killed one leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands.grid import plan, take_options
from commands.grid.queue import Queue
from commands.grid.workers import submit
from commands.lightning.errors import Failed
from commands.lightning.recipes import read_recipe
from commands.lightning.runs import newest
from lightning_modules.classification import Classification
from tests.conftest import BACKBONE, ROOT, TINY
from train import main


@pytest.fixture(scope="session")
def options(images: Path, weights: Path) -> list[str]:
    """Options of every fit."""
    model = {"backbone": BACKBONE, "pretrained": weights, "lr": 0.01}
    model |= {f"backbone_args.{key}": value for key, value in TINY.items()}
    trainer = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": "false", "enable_model_summary": "false"}
    return (
        ["--data", "ImageDataset", "--data.root", str(images), "--data.batch_size", "4"]
        + [f"--model.{key}={value}" for key, value in model.items()]
        + [f"--trainer.{key}={value}" for key, value in trainer.items()]
    )


class Fake:
    """``execute`` without training: notes the command lines, and fails as often as it is told for a part of a name."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.args: list[list[str]] = []
        self.apart: list[bool] = []
        self.failures: dict[str, int] = {}

    def __call__(self, args: list[str], log: Path | None, own_process: bool) -> None:
        root = Path(args[args.index("--run_root") + 1])
        self.ran.append(str(root))
        self.args.append(args)
        self.apart.append(own_process)
        for part, count in self.failures.items():
            if part in str(root) and count:
                self.failures[part] -= 1
                raise Failed("as told")
        folder = root / "X" / "data" / "id"
        folder.mkdir(parents=True, exist_ok=True)
        values = dict(arg.removeprefix("--").split("=", 1) for arg in args if "=" in arg)
        value = 1 / (1 + abs(float(values.get("model.lr", 1)) - 0.25))
        (folder / "result.json").write_text(json.dumps({"test/acc1": 0.5, "best/val/acc1": value, "val/acc1": 0.0}))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    runs = Fake()
    monkeypatch.setattr("commands.lightning.runs.execute", runs)
    monkeypatch.setattr("commands.grid.queue.check", lambda args: Classification.headline._asdict())
    return runs


def call(*args: object) -> int:
    try:
        main(["grid", *map(str, args)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    assert call(*args) in (1, 2)
    return capsys.readouterr().err


def planned(folder: Path, args: list[str]) -> Queue:
    """A study that nobody works on yet."""
    queue, (own, rest) = Queue(folder), take_options(args)
    queue.plan(*plan.cells(own, rest), own.retries, own.stale_after)
    return queue


# what is planned


def test_every_cell_is_run_once(fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = ["--study", tmp_path, "--methods", "ssf,lora"]
    assert call(*study, "--seeds", "0,1", "--", "--data.root", "x") == 0
    cells = [f"{method}/s{seed}" for method in ("ssf", "lora") for seed in (0, 1)]
    assert fake.ran == [str(tmp_path / cell) for cell in cells]
    assert fake.apart == [False] * 4
    assert call(*study, "--seeds", "0,1", "--", "--data.root", "x") == 0
    assert len(fake.ran) == 4
    assert call(*study, "--seeds", "0,1,2", "--", "--data.root", "x") == 0, "more seeds join"
    assert fake.ran[4:] == [str(tmp_path / f"{method}/s2") for method in ("ssf", "lora")]
    assert "6 of 6 finished" in capsys.readouterr().out
    assert "holds ssf/s0 with other options" in refused(capsys, *study, "--", "--data.root", "y")
    assert len(fake.ran) == 6


def test_a_finished_run_of_a_killed_worker_counts(fake: Fake, tmp_path: Path) -> None:
    folder = tmp_path / "ssf/s0/X/data/id"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text('{"test/acc1": 0.7}')
    assert call("--study", tmp_path, "--methods", "ssf", "--seeds", "0,1", "--") == 0
    assert fake.ran == [str(tmp_path / "ssf/s1")]
    assert sorted(trial.value for _, trial in Queue(tmp_path).trials("COMPLETE")) == [0.5, 0.7]


def test_tasks_axes_and_placeholders(fake: Fake, tmp_path: Path) -> None:
    call("--study", tmp_path / "a", "--recipe", "vtab", "--methods", "ssf", "--tasks", "pets,dtd", "--seeds", "3")
    first = fake.args[0]
    assert first[:3] == ["fit", "--recipe", "vtab/ssf"]
    assert {"--data.task=oxford_iiit_pet", "--seed_everything=3", "--test_after_fit=true"} <= set(first)
    assert len(fake.args) == 2
    call("--study", tmp_path / "b", "--recipe", "vtab", "--methods", "ssf,gps", "--tasks", "all")
    assert len(fake.args) == 2 + 2 * 19
    fake.args.clear()
    shots = ["--over", "data.shots=1,4", "--over", "model.lora_rank=2,8"]
    call("--study", tmp_path / "c", "--methods", "lora", *shots, "--", "--config", "{method}.yaml")
    assert fake.args[0][:5] == ["fit", "--method", "lora", "--test_after_fit=true", "--config"]
    assert [args[5:8] for args in fake.args] == [
        ["lora.yaml", f"--data.shots={shots}", f"--model.lora_rank={rank}"] for shots in (1, 4) for rank in (2, 8)
    ]
    assert {json.loads(file.read_text())["label"] for file in (tmp_path / "c").rglob("cell.json")} == {
        "lora lora_rank=2",
        "lora lora_rank=8",
    }
    fake.args.clear()
    call("--study", tmp_path / "d", "--methods", "ssf", "--tasks", "a,b", "--", "--data.root", "sets/{task}")
    assert [args[5] for args in fake.args] == ["sets/a", "sets/b"]
    assert not any("data.task" in arg for args in fake.args for arg in args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--methods", "sff"], "unknown method 'sff'; nearest: ssf"),
        (["--methods", "sff", "--recipe", "vtab"], "unknown recipe 'vtab/sff'"),
        (["--methods", "ssf", "--recipe", "vtab", "--tasks", "cifer"], "unknown task 'cifer'; nearest: cifar"),
        (["--methods", "ssf", "--tasks", "all"], "--tasks all: say which data"),
        (["--methods", "ssf", "--over", "model.lr"], "unknown --over 'model.lr'"),
        (["--methods", "ssf", "--", "--seed_everything", "1"], "--seed_everything after --: the grid sets it"),
        (["--methods", "ssf", "--", "--run_root=x"], "--run_root after --: the grid sets it"),
        (["--methods", "ssf", "--", "--model.lrr", "1"], "did you mean --model.lr"),
        (["--methods", "ssf", "--seeds", "one"], "argument --seeds: invalid"),
        (["--methods", "ssf", "--search"], "--search needs a --recipe"),
        (["--methods", "ssf", "--recipe", "vtab", "--tasks=dtd", "--search"], "ssf has no `grid` of options"),
        (["--methods", "lora_pvp", "--recipe", "few_shot", "--search"], "lora_pvp has no `grid` of options"),
        ([], "has nothing planned: name --methods"),
        (["--slurm"], "has nothing planned: name --methods"),
    ],
)
def test_refused(args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, "--study", tmp_path, *args)
    assert not Queue(tmp_path).trials("WAITING", "RUNNING", "COMPLETE", "FAIL")


def test_without_optuna(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "grid needs optuna: pip install optuna" in refused(capsys, "--study", tmp_path, "--methods", "ssf")


# failures


def test_failed_cells_are_tried_again_and_not_forever(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.failures = {"ssf": 2, "lora": 9}
    study = ["--study", tmp_path, "--methods", "ssf,lora,bitfit", "--retries", 2]
    assert call(*study) == 1
    tries = [Path(root).parent.name for root in fake.ran]
    assert [tries.count(method) for method in ("ssf", "lora", "bitfit")] == [3, 3, 1]
    assert all(apart for root, apart in zip(fake.ran[3:], fake.apart[3:], strict=True)), "in a process of its own"
    out = capsys.readouterr().out
    assert "missing: lora/s0: as told" in out
    assert "2 of 3 finished" in out
    assert "lora, its data, seed 0" in (tmp_path / "report/report.md").read_text()
    fake.failures = {}
    assert call(*study) == 0, "the same command tries again what failed"
    assert [Path(root).parent.name for root in fake.ran[7:]] == ["lora"]


def test_stopping_costs_no_try(tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("commands.lightning.runs.execute", stop)
    with pytest.raises(KeyboardInterrupt):
        call("--study", tmp_path, "--methods", "ssf", "--retries", 0)
    monkeypatch.setattr("commands.lightning.runs.execute", fake)
    assert not list((tmp_path / "alive").glob("grid*"))
    assert call("--study", tmp_path) == 0
    assert len(fake.ran) == 1


def test_what_a_failing_run_leaves(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of its own: the message is told, and the log has the traceback."""
    bad = [*options, "--model.pretrained", "nothing.pth"]
    assert call("--study", tmp_path, "--methods", "ssf", "--retries", 0, "--", *bad) == 1
    assert "'nothing.pth': no such file" in capsys.readouterr().out
    assert "Traceback" in (tmp_path / "ssf/s0/log.txt").read_text()


# workers

WORKER = """
import json, sys, time
from pathlib import Path
from commands.grid.queue import Queue
from commands.lightning import runs

def execute(args, log, own_process):
    root = Path(args[args.index("--run_root") + 1])
    with open(sys.argv[2], "a") as ran:
        ran.write(root.parent.name + "\\n")
    time.sleep(0.02)
    folder = root / "X/data/id"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text('{"test/acc1": 0.5}')

runs.execute = execute
Queue(Path(sys.argv[1])).work()
"""


def test_workers_share_the_cells(fake: Fake, tmp_path: Path) -> None:
    queue = planned(tmp_path, ["--methods", "ssf", "--seeds", ",".join(map(str, range(30)))])
    args = [sys.executable, "-c", WORKER, str(tmp_path), str(tmp_path / "ran")]
    workers = [subprocess.Popen(args, cwd=ROOT) for _ in range(3)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0, 0]
    assert len((tmp_path / "ran").read_text().splitlines()) == 30
    assert len(queue.trials("COMPLETE")) == 30
    assert not queue.trials("WAITING", "RUNNING", "FAIL")


def test_the_cell_of_a_killed_worker_is_taken_over(
    monkeypatch: pytest.MonkeyPatch, options: list[str], tmp_path: Path
) -> None:
    """Real processes and real runs."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as many as in this process, or sums end in other bits
    study = ["--methods", "ssf", "--seeds", "0,1", "--retries", "1", "--stale_after", "2"]
    queue = planned(tmp_path, [*study, "--", *options])
    join = [sys.executable, "train.py", "grid", "--study", str(tmp_path), "--join"]
    worker = subprocess.Popen(join, cwd=ROOT)
    while not list(tmp_path.rglob("config.yaml")):  # the fit has begun
        assert worker.poll() is None
        time.sleep(0.05)
    worker.kill()
    assert worker.wait() == -signal.SIGKILL
    killed = [trial for _, trial in queue.trials("RUNNING")]
    assert len(killed) == 1
    queue.work()
    assert [trial.number for _, trial in queue.trials("FAIL")] == [killed[0].number]
    assert not queue.trials("WAITING", "RUNNING")
    finished = {trial.user_attrs["cell"]: trial for _, trial in queue.trials("COMPLETE")}
    assert finished.keys() == {"ssf/s0", "ssf/s1"}
    again = finished[killed[0].user_attrs["cell"]]
    assert again.user_attrs["left"] == 0
    alone = tmp_path / "alone"
    main([*again.user_attrs["args"], "--run_root", str(alone)])
    results = [newest(root, "result.json") for root in (alone, tmp_path / again.user_attrs["cell"])]
    mine, theirs = (json.loads(file.read_text()) for file in results if file is not None)
    assert mine["test/loss"] == theirs["test/loss"], "as a run alone"


def test_workers_get_a_gpu_each(monkeypatch: pytest.MonkeyPatch, fake: Fake, tmp_path: Path) -> None:
    started: list[Any] = []

    class Process:
        def __init__(self, args: list[str], env: dict[str, str]) -> None:
            started.append((args, env))

        def wait(self) -> int:
            return 0

        def terminate(self) -> None:
            pass

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,MIG-5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    call("--study", tmp_path, "--methods", "ssf")
    assert [env["CUDA_VISIBLE_DEVICES"] for _, env in started] == ["3", "MIG-5"]
    assert all("--join" in args for args, _ in started)
    assert all(int(env["OMP_NUM_THREADS"]) == max(1, (os.cpu_count() or 1) // 2) for _, env in started)
    call("--study", tmp_path, "--methods", "ssf", "--workers", 3)
    assert [env["CUDA_VISIBLE_DEVICES"] for _, env in started[2:]] == ["3", "MIG-5", "3"]


def test_slurm_gets_a_job_array(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pretended cluster, whose sbatch keeps the script that it gets."""
    (tmp_path / "bin").mkdir()
    for name, text in {"srun": "", "sbatch": f'cp "$1" {tmp_path}/script; echo Submitted batch job 42'}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    settings = ["--slurm", "timeout_min=90", "gpus_per_node=1", "slurm_partition=gpu"]
    assert call("--study", tmp_path / "study", "--methods", "ssf", "--workers", 3, *settings) == 0
    script = (tmp_path / "script").read_text()
    for line in ("--array=0-2", "--time=90", "--gpus-per-node=1", "--partition=gpu", "--job-name=graft-grid"):
        assert f"#SBATCH {line}" in script
    assert "submitted 42_0, 42_1, 42_2" in capsys.readouterr().out
    assert not fake.ran


def test_a_submitted_worker_works(options: list[str], tmp_path: Path) -> None:
    """submitit's own processes on this machine."""
    queue = planned(tmp_path, ["--methods", "ssf", "--", *options])
    (job,) = submit(tmp_path, 1, ["cluster=local"])
    assert job.result() == 0
    assert len(queue.trials("COMPLETE")) == 1
    assert newest(tmp_path / "ssf/s0", "result.json") is not None


# search


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
