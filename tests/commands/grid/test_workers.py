"""Workers on this machine and in a job array."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from commands.grid.workers import submit
from commands.lightning.runs import newest
from tests.commands.grid.conftest import Fake, call, planned
from tests.conftest import ROOT

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
