"""Places of workers: processes on this machine, each on a GPU of its own, or a job array of SLURM."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from commands.lightning.folders import ENTRY
from commands.lightning.runs import exit_on_sigterm


def gpus() -> list[str]:
    """GPUs that this process may use, by their names in CUDA_VISIBLE_DEVICES."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def worker(study: Path) -> list[str]:
    """Command line of one worker."""
    return [sys.executable, str(ENTRY), "grid", "--study", str(study.resolve()), "--join"]


def spread(study: Path, workers: int) -> None:
    """Let processes work on the study, each on the next GPU in turn."""
    found, processes = gpus(), []
    with exit_on_sigterm():
        try:
            for number in range(workers):
                environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))} | dict(os.environ)
                if found:
                    environment["CUDA_VISIBLE_DEVICES"] = found[number % len(found)]
                processes.append(subprocess.Popen(worker(study), env=environment))
            for process in processes:
                process.wait()
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()


def submit(study: Path, workers: int, settings: list[str]) -> list[Any]:
    """Submit workers as a job array; a worker whose time is over is queued again."""
    try:
        import submitit
    except ImportError as error:
        raise ValueError("--slurm needs submitit: pip install submitit (or `.[grid]` of this project)") from error
    command = worker(study)

    class Worker(submitit.helpers.Checkpointable):
        def __call__(self) -> int:
            return subprocess.run(command).returncode

    options: dict[str, Any] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        options[key] = int(value) if value.isdigit() else value
    executor = submitit.AutoExecutor(study.resolve() / "slurm", cluster=options.pop("cluster", None))
    executor.update_parameters(name="graft-grid", **options)
    with executor.batch():
        jobs = [executor.submit(Worker()) for _ in range(workers)]
    print(f"submitted {', '.join(job.job_id for job in jobs)}; logs in {executor.folder}")
    print(f"when they are done: python train.py report {study}")
    return list(jobs)
