"""Runs that are killed, run out of something, or are repeated (faults 21, 22, 26, 27, 29 and 38 to 40 of the list)."""

import errno
import hashlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import atomic
from datamodules.image_module import ImageModule
from lightning_modules.classification import Classification
from tests.conftest import ROOT
from tests.faults.conftest import Refused
from tests.support.command_line import Answer, folders
from train import main

WEIGHTS = "adapter/adapter_model.safetensors"


def digest(root: Path) -> str:
    """Hash of the adapter of the newest run below a folder."""
    newest = max(root.glob(f"*/*/*/{WEIGHTS}"), key=lambda path: path.stat().st_mtime_ns)
    return hashlib.sha256(newest.read_bytes()).hexdigest()


def start(args: list[str], root: Path) -> subprocess.Popen[bytes]:
    """Start a command line in a process of its own."""
    command = [sys.executable, str(ROOT / "train.py"), *args, "--run_root", str(root)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for(found: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not found() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    assert found(), process.communicate()[1].decode() if process.poll() is not None else "nothing happened in time"


def on_one_thread(args: list[str]) -> None:
    """Run a command line with the number of threads of the tests, because other numbers round other sums."""
    torch.set_num_threads(1)
    main(args)


def run_and_kill(args: list[str], root: Path, after: float) -> None:
    """Run a command line in a process of its own and kill it some time after its first file.

    Args:
        args: The command line.
        root: Its ``run_root``.
        after: Seconds.
    """
    # forks of a server that has all imports, and not of this process, where earlier tests have left threads of autograd
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["commands.lightning.cli"])
    child = context.Process(target=on_one_thread, args=([*args, "--run_root", str(root)],))
    child.start()
    end = time.monotonic() + 60
    while not folders(root) and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(after)
    child.kill()
    child.join()


def last(root: Path) -> dict[str, Any]:
    """The newest last checkpoint below a folder."""
    newest = max(root.glob("*/*/*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    found: dict[str, Any] = torch.load(newest, weights_only=True)
    return found


def test_21_killed_at_any_moment(tiny: list[str], call: Callable[..., Answer], tmp_path: Path) -> None:
    """A killed fit leaves whole files, and a resumed one ends with the bits of one that nobody killed."""
    fit = [*tiny, "--trainer.max_epochs=5", "--data.num_workers=0"]
    begin = time.monotonic()
    assert call(*fit, "--run_root", tmp_path / "whole").code == 0
    duration, whole = time.monotonic() - begin, last(tmp_path / "whole")
    draw, epochs, latest = random.Random(0), set(), 0.7 * duration
    for number in range(20):
        root = tmp_path / f"killed{number}"
        run_and_kill(fit, root, draw.uniform(0, latest))
        for file in root.glob("*/*/*/checkpoints/*.ckpt"):
            torch.load(file, weights_only=True)
        left = list(root.glob("*/*/*/checkpoints/last.ckpt"))
        if not left:
            latest *= 1.2  # because a busy machine may have become slower
        if not left or (epoch := last(root)["epoch"]) in epochs:
            continue
        epochs.add(epoch)  # one resumed run for each epoch that a kill ended
        assert call(*fit, "--ckpt_path", left[0], "--run_root", root).code == 0
        for part in ("state_dict", "optimizer_states", "lr_schedulers"):
            torch.testing.assert_close(last(root)[part], whole[part], rtol=0, atol=0)
        assert digest(root) == digest(tmp_path / "whole"), "another epoch is the best one"
    assert epochs, "moments that are all too early or too late test nothing"


def test_22_a_full_disk(tiny: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.torch, "save", full)
    refused(*tiny, says=("No space left on device", ".ckpt"))


def test_26_resumed_with_another_batch_size(
    fitted: Path, base: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    last = fitted / "checkpoints/last.ckpt"
    options = ["--trainer.max_epochs=2", "--data.batch_size=6", "--run_root", tmp_path]
    answer = call("fit", "--ckpt_path", last, *base, *options)
    assert answer.code == 0, answer.err
    (folder,) = folders(tmp_path)
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert (saved["epoch"], saved["global_step"]) == (1, 4)


def test_27_a_loss_that_is_not_finite(tiny: list[str], refused: Refused) -> None:
    options = ("--trainer.limit_train_batches=6", "--model.lr=1e30", "--model.warmup_epochs=0")
    refused(*tiny, *options, says=("train/loss is NaN or infinite at step 1", "--model.lr"))


def test_29_a_dead_rank_ends_the_others(tiny: list[str], tmp_path: Path) -> None:
    options = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=100000"]
    process = start([*tiny, *options], tmp_path / "runs")
    wait_for(lambda: bool(list(tmp_path.rglob("last.ckpt"))), process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [int(pid) for pid in children if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(ranks) == 1
    os.kill(ranks[0], signal.SIGKILL)
    message = process.communicate(timeout=60)[1].decode()
    assert process.returncode != 0, message


def test_38_the_same_seed(tiny: list[str], call: Callable[..., Answer], tmp_path: Path) -> None:
    found = []
    for number, seed in enumerate((0, 0, 1)):
        assert call(*tiny, f"--seed_everything={seed}", "--run_root", tmp_path / str(number)).code == 0
        found.append(digest(tmp_path / str(number)))
    assert found[0] == found[1] != found[2]


def test_39_a_killed_worker(tiny: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: Any, sample: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    options = ("--data.num_workers=1", "--data.augmentation=rrc")
    monkeypatch.setattr(ImageModule, "train_item", killed)
    refused(*tiny, *options, says=("DataLoader worker", "--data.num_workers", "/dev/shm"))


def test_40_no_memory_on_the_gpu(tiny: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(Classification, "losses", full)
    messages = ("CUDA out of memory", "SSFClassification with data.batch_size=4", "accumulate_grad_batches")
    refused(*tiny, says=messages)
