"""Fits in jobs of SLURM: asked for again before their time ends, and gone on with."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only

from checkpoints.atomic import write_atomically

RECORD = "slurm_job.json"


def job_id() -> str | None:
    """Name of this job for ``scontrol``; None outside of a job step of SLURM."""
    if not SLURMEnvironment.detect():
        return None
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID")


def checkpoint_before_restart(root: Path, run: str) -> Path | None:
    """The last checkpoint of a run that an earlier start of this job began; None if there is none.

    Args:
        root: The ``run_root``.
        run: Digest of the run's options.
    """
    job = job_id()
    if job is None or int(os.environ.get("SLURM_RESTART_COUNT", 0)) == 0:
        return None
    record = {"job": job, "run": run}
    found = [file.parent for file in root.glob(f"*/*/*/{RECORD}") if json.loads(file.read_text()) == record]
    lasts = [last for last in (folder / "checkpoints/last.ckpt" for folder in found) if last.is_file()]
    return max(lasts, key=lambda path: path.stat().st_mtime_ns, default=None)


def requeue(job: str, folder: Path) -> None:
    """Ask SLURM to start a job again, and print whether it will.

    Args:
        job: Name of the job.
        folder: Run folder of its fit.
    """
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        problem = done.stderr.strip() or f"exit code {done.returncode}" if done.returncode else None
    except OSError as error:
        problem = str(error)
    if problem is None:
        print(f"SLURM starts job {job} again, in which this fit goes on from its last epoch", flush=True)
        return
    last = folder / "checkpoints/last.ckpt"
    print(f"warning: job {job} is not started again ({problem}); go on with fit --ckpt_path {last}", flush=True)


@contextmanager
def requeued_on_signal(folder: Path, run: str, environments: list[SLURMEnvironment]) -> Iterator[None]:
    """Record the job of a fit in its run folder, and ask SLURM to start the job again when the signal comes.

    The fit itself goes on until SLURM ends it. Its next start goes on from the last whole epoch, and not from the
    step of the signal, because a step that is interrupted cannot be repeated bit for bit.

    Args:
        folder: Run folder.
        run: Digest of the run's options.
        environments: The user's own settings of SLURM, if any.
    """
    job, environment = job_id(), next(iter(environments), None)
    if job is None or (environment is not None and not environment.auto_requeue):
        yield
        return
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        record = json.dumps({"job": job, "run": run})
        write_atomically(folder / RECORD, lambda new: new.write_text(record))

    def handle(*_: Any) -> None:
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            requeue(job, folder)

    number = signal.SIGUSR1 if environment is None else environment.requeue_signal
    assert number is not None
    before = signal.signal(number, handle)  # Lightning sets no handler of its own where there is one
    try:
        yield
    finally:
        signal.signal(number, before)
