"""Jobs of SLURM: their names, their records, and a request to start again."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.plugins.environments import SLURMEnvironment

from commands.lightning.slurm import checkpoint_before_restart, job_id, requeued_on_signal


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in {"NTASKS": "1", "JOB_ID": "12", "JOB_NAME": "train"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    return monkeypatch


def begin(root: Path, run: str, number: int) -> Path:
    """Run folder of a job's fit that has written its last checkpoint."""
    folder = root / "SSF/data" / f"{run}-{number}"
    (folder / "checkpoints").mkdir(parents=True)
    with requeued_on_signal(folder, run, []):
        (folder / "checkpoints/last.ckpt").touch()
    os.utime(folder / "checkpoints/last.ckpt", (number, number))
    return folder / "checkpoints/last.ckpt"


def test_names_of_jobs(job: pytest.MonkeyPatch) -> None:
    assert job_id() == "12"
    job.setenv("SLURM_ARRAY_JOB_ID", "10")
    job.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert job_id() == "10_2"
    job.setenv("SLURM_JOB_NAME", "bash")  # an interactive shell
    assert job_id() is None


def test_only_the_same_run_of_the_same_job_goes_on(job: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begin(tmp_path, "a", 1)
    newer = begin(tmp_path, "a", 2)
    begin(tmp_path, "b", 3)
    assert checkpoint_before_restart(tmp_path, "a") is None, "the first start of a job goes on from nothing"
    job.setenv("SLURM_RESTART_COUNT", "1")
    assert checkpoint_before_restart(tmp_path, "a") == newer
    assert checkpoint_before_restart(tmp_path, "c") is None
    newer.unlink()
    assert checkpoint_before_restart(tmp_path, "a") == tmp_path / "SSF/data/a-1/checkpoints/last.ckpt"
    job.setenv("SLURM_JOB_ID", "13")
    assert checkpoint_before_restart(tmp_path, "a") is None


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 0", "SLURM starts job 12 again"),
        ("echo no such job >&2; exit 1", "warning: job 12 is not started again (no such job); go on with fit"),
        (None, "warning: job 12 is not started again ("),
    ],
)
def test_the_answer_of_scontrol(
    script: str | None, words: str, job: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job.setenv("PATH", str(tmp_path))
    if script is not None:
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "scontrol").chmod(0o755)
    before = signal.getsignal(signal.SIGUSR1)
    with requeued_on_signal(tmp_path, "a", []):
        signal.raise_signal(signal.SIGUSR1)
    assert words in capsys.readouterr().out
    assert signal.getsignal(signal.SIGUSR1) == before


def test_settings_of_the_user(job: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before: Any = signal.getsignal(signal.SIGUSR1)
    with requeued_on_signal(tmp_path, "a", [SLURMEnvironment(auto_requeue=False)]):
        assert signal.getsignal(signal.SIGUSR1) == before
        assert not list(tmp_path.iterdir())
    with requeued_on_signal(tmp_path, "a", [SLURMEnvironment(requeue_signal=signal.SIGUSR2)]):
        assert signal.getsignal(signal.SIGUSR1) == before
        assert signal.getsignal(signal.SIGUSR2) not in (signal.SIG_DFL, None)
