"""Signs of life of workers."""

import datetime
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commands.grid.heartbeat import beating, silence
from commands.lightning.runs import newest
from tests.commands.grid.conftest import planned
from tests.conftest import ROOT
from train import main


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


def test_a_file_is_touched_until_the_end(tmp_path: Path) -> None:
    file = tmp_path / "alive"
    with beating(file, 0.01):
        os.utime(file, (0, 0))
        deadline = time.monotonic() + 10
        while file.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert file.stat().st_mtime > 0
    assert not file.exists()


def test_silence(tmp_path: Path) -> None:
    file, clock, started = tmp_path / "alive", tmp_path / "now", datetime.datetime.now()
    file.touch()
    os.utime(file, (time.time() - 100, time.time() - 100))
    assert 90 < silence(file, clock, started) < 110
    early = started - datetime.timedelta(seconds=1000)
    assert silence(tmp_path / "nothing", clock, early) >= 1000, "killed before its first touch"
