"""Signals to a fit (fault 24 of the list): Ctrl-C, the end of a job of SLURM, and its next start."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lightning.pytorch.loggers import CSVLogger

from tests.faults.test_runs import last, no_process_stays, start, wait_for  # noqa: F401  (a fixture)
from tests.support.command_line import Answer, folders

SCONTROL = """#!/bin/sh
echo "$@" >> "$SCONTROL_LOG"
kill -TERM $PPID
"""
"""Stand-in for SLURM, which ends the processes of a job that it starts again."""


class WaitingLogger(CSVLogger):
    """Logger whose end waits for a server that never answers.

    Args:
        save_dir: The run folder, which the command line gives.
    """

    def __init__(self, save_dir: str = "") -> None:
        super().__init__(save_dir)

    def finalize(self, status: str) -> None:
        (Path(self.save_dir) / "waits").touch()
        time.sleep(600)


def test_24_a_job_of_slurm_starts_again(tiny: list[str], call: Callable[..., Answer], tmp_path: Path) -> None:
    """A fit asks for its job again, and the next start of the job ends with the bits of an undisturbed fit."""
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin/scontrol"
    scontrol.write_text(SCONTROL)
    scontrol.chmod(0o755)
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}
    job |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "1"}
    job |= {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # because other numbers of threads round other sums
    job |= {"SCONTROL_LOG": str(tmp_path / "log"), "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    fit = [*tiny, "--trainer.max_epochs=30", "--data.num_workers=0"]
    assert call(*fit, "--run_root", tmp_path / "whole").code == 0

    process = start(fit, tmp_path / "runs", **job)
    wait_for(lambda: bool(list(tmp_path.glob("runs/*/*/*/checkpoints/last.ckpt"))), process)
    process.send_signal(signal.SIGUSR1)
    message = process.communicate(timeout=300)[1].decode()
    assert process.returncode == 128 + signal.SIGTERM, message
    assert (tmp_path / "log").read_text() == "requeue 4711\n"
    (first,) = folders(tmp_path / "runs")
    assert 0 <= last(tmp_path / "runs")["epoch"] < 29

    process = start(fit, tmp_path / "runs", **job, SLURM_RESTART_COUNT="1")
    message = process.communicate(timeout=300)[1].decode()
    assert process.returncode == 0, message
    assert f"checkpoint path at {first / 'checkpoints/last.ckpt'}" in message
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(last(tmp_path / "runs")[part], last(tmp_path / "whole")[part], rtol=0, atol=0)


def test_24_ctrl_c(tiny: list[str], tmp_path: Path) -> None:
    """The checkpoints stay. The exit code of SIGTERM is that of the test above."""
    process = start([*tiny, "--trainer.max_epochs=100000"], tmp_path)
    wait_for(lambda: bool(list(tmp_path.rglob("last.ckpt"))), process)
    process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=300)[1].decode()
    assert process.returncode == 1, message
    assert last(tmp_path)["state_dict"]


def test_24_a_second_ctrl_c_ends_a_fit_at_once(tiny: list[str], tmp_path: Path) -> None:
    """The first one closes the loggers, of which one waits for ever; checkpoints stay whole."""
    logger = f"--trainer.logger+={WaitingLogger.__module__}.{WaitingLogger.__qualname__}"
    options = [logger, "--trainer.max_epochs=100000", "--data.num_workers=0"]
    process = start([*tiny, *options], tmp_path / "runs")
    wait_for(lambda: bool(list(tmp_path.rglob("last.ckpt"))), process)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: bool(list(tmp_path.rglob("waits"))), process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert last(tmp_path / "runs")["state_dict"]
