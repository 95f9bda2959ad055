"""Runs that are killed, run out of something, or are repeated (faults 20, 21, 25 to 27, 29 to 31 and 38 to 41)."""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from datamodules.image_module import ImageModule
from lightning_modules.classification import Classification
from methods import PEFTMethod
from tests.conftest import ROOT
from tests.faults.conftest import Refused
from tests.support.command_line import Answer, folders, snapshot
from train import main

WEIGHTS = "adapter/adapter_model.safetensors"


def digest(root: Path) -> str:
    """Hash of the adapter of the newest run below a folder."""
    newest = max(root.glob(f"*/*/*/{WEIGHTS}"), key=lambda path: path.stat().st_mtime_ns)
    return hashlib.sha256(newest.read_bytes()).hexdigest()


STARTED: list[subprocess.Popen[bytes]] = []
"""Processes of the running test."""


@pytest.fixture(autouse=True)
def no_process_stays() -> Iterator[None]:
    """End the processes of a test that fails, otherwise they would go on for hours."""
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def start(args: list[str], root: Path, **variables: str) -> subprocess.Popen[bytes]:
    """Start a command line in a process of its own.

    Args:
        args: Subcommand and options.
        root: Its ``run_root``.
        variables: Variables of the environment beside those of the tests.
    """
    command = [sys.executable, str(ROOT / "train.py"), *args, "--run_root", str(root)]
    environment = os.environ | variables
    # a shell that runs the tests in the background ignores Ctrl-C, which the process would inherit
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        STARTED.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        )
    finally:
        signal.signal(signal.SIGINT, before)
    return STARTED[-1]


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


@pytest.fixture(scope="module")
def two_ranks(base: list[str], model: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a fit and a test in two processes, whose test images do not divide evenly."""
    root = tmp_path_factory.mktemp("two ranks")
    options = ["--trainer.devices=2", "--trainer.strategy=ddp", "--test_after_fit=true", "--trainer.max_epochs=2"]
    process = start(["fit", *model, *base, *options], root)
    message = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 0, message
    (folder,) = folders(root)
    return folder


def test_30_frozen_weights_under_two_ranks(two_ranks: Path, weights: Path, tmp_path: Path) -> None:
    """Every parameter that trains has changed, and every other one is that of the weight file, bit for bit."""
    trained = PEFTMethod.from_delta(two_ranks / "adapter")
    plain = load_file(weights)
    state = dict(trained.named_parameters())
    assert all(torch.equal(state[f"backbone.{name}"], value) for name, value in plain.items() if "head" not in name)
    saved = torch.load(two_ranks / "checkpoints/last.ckpt", weights_only=True)
    moments = saved["optimizer_states"][0]["state"].values()
    assert len(moments) == sum(parameter.requires_grad for parameter in trained.parameters())
    assert all(moment["exp_avg"].abs().sum() > 0 for moment in moments), "a parameter without a gradient"


def test_31_metrics_of_two_ranks(two_ranks: Path, base: list[str], call: Callable[..., Answer], tmp_path: Path) -> None:
    """15 images in batches of 4 on two ranks give the metrics of one process."""
    best = two_ranks / "checkpoints/best.ckpt"
    assert call("test", "--ckpt_path", best, *base, "--run_root", tmp_path).code == 0
    (folder,) = folders(tmp_path)
    alone, together = (json.loads((place / "result.json").read_text()) for place in (folder, two_ranks))
    assert together["world_size"] == 2
    for metric in ("test/acc1", "test/loss"):
        assert alone[metric] == pytest.approx(together[metric], abs=1e-6)


def test_25_two_of_four_epochs(tiny: list[str], call: Callable[..., Answer], tmp_path: Path) -> None:
    """A fit of a method that chooses weights, resumed after two epochs, ends bit for bit; nothing is scored again."""
    every_epoch = ["--checkpoint.save_top_k=-1", "--checkpoint.filename={epoch}", "--ema.decay=0.9"]
    fit = [*("gps" if word == "ssf" else word for word in tiny), "--trainer.max_epochs=4", *every_epoch]
    fit.remove("--model.weight_decay=0.05")
    assert call(*fit, "--run_root", tmp_path / "whole").code == 0
    (whole,) = folders(tmp_path / "whole")
    second = whole / "checkpoints/epoch=1.ckpt"
    answer = call(*fit, "--ckpt_path", second, "--run_root", tmp_path / "resumed")
    assert answer.code == 0, answer.err
    (resumed,) = folders(tmp_path / "resumed")
    assert (whole / "scores.png").exists()
    assert not (resumed / "scores.png").exists()
    for part in ("state_dict", "raw", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(last(tmp_path / "resumed")[part], last(tmp_path / "whole")[part], rtol=0, atol=0)
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, resumed)]
    for metric in ("val/acc1", "val/loss", "train/loss"):
        assert results[0][metric] == results[1][metric], metric


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


def test_20_the_same_command_again(
    base: list[str], model: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    command = ("fit", *model, *base, "--run_root", tmp_path)
    assert call(*command).code == 0
    (first,) = folders(tmp_path)
    before = snapshot(first)
    assert call(*command).code == 0
    assert [path.name for path in folders(tmp_path)] == [first.name, f"{first.name}-2"]
    assert snapshot(first) == before, "the second run wrote into the folder of the first"
    again = torch.load(folders(tmp_path)[1] / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    saved = torch.load(first / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, again[name]) for name, tensor in saved.items()), "same seed, other weights"
    assert call(*command, "--seed_everything", 1).code == 0
    other = next(path for path in folders(tmp_path) if not path.name.startswith(first.name))
    weights = torch.load(other / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert not all(torch.equal(tensor, weights[name]) for name, tensor in saved.items())


def test_41_a_failed_run_of_a_grid(tiny: list[str], call: Callable[..., Answer], tmp_path: Path) -> None:
    """The other runs finish, the summary names the failed one and its log, and the next start runs that one alone."""
    options = [word for word in tiny[3:] if "weight_decay" not in word]
    study = ("grid", "--study", tmp_path / "study", "--methods", "sct,ssf", "--retries", 0)
    answer = call(*study, "--", *options)  # sct wants more channels than the tiny backbone has
    assert answer.code == 1
    assert "missing: sct/s0: " in answer.out
    assert "sct/s0/log.txt" in answer.out
    assert "1 of 2 finished" in answer.out
    (finished,) = (tmp_path / "study").glob("ssf/s0/*/*/*/result.json")
    before = finished.stat().st_mtime_ns
    assert call("grid", "--study", tmp_path / "study").code == 1
    assert finished.stat().st_mtime_ns == before
    assert len(list((tmp_path / "study").glob("ssf/s0/*/*/*"))) == 1
