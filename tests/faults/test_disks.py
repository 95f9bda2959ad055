"""Disks that are full or read-only (faults 22 and 23 of the list): one message, and nothing that is half written."""

import errno
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from checkpoints.delta import read_checkpoint
from tests.support.command_line import Answer, folders

FULL = "No space left on device"
Call = Callable[..., Answer]


@contextmanager
def disk(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own, where the tests may mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no tmpfs may be mounted here; other tests inject the error")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, free: int) -> None:
    """Leave some bytes of a disk free."""
    left = os.statvfs(folder)
    (folder / "filler").write_bytes(bytes(max(left.f_bavail * left.f_frsize - free, 0)))


def full_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that has no space for one file, by its name, and for all after it."""
    original, found = tempfile.mkstemp, []

    def mkstemp(*args: Any, prefix: str = "", **options: Any) -> Any:
        found.extend([prefix] if prefix.startswith(f".{name}.") else [])
        if found:
            raise OSError(errno.ENOSPC, FULL)
        return original(*args, prefix=prefix, **options)

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)


def check_one_message(answer: Answer, *words: object) -> None:
    assert answer.code == 1, answer
    (line,) = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in answer.err
    for word in words:
        assert str(word) in line, line


def check_whole(folder: Path) -> None:
    """No temporary file, and every checkpoint can be read."""
    assert not [path for path in folder.rglob(".*") if path.is_file()]
    for path in folder.rglob("*.ckpt"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "name", ["best.ckpt", "last.ckpt", "adapter_model.safetensors", "adapter_config.json", "curves.png", "result.json"]
)
def test_22_a_full_disk_in_a_fit(
    name: str, tiny: list[str], call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        full_for(name, patch)
        answer = call(*tiny, "--run_root", tmp_path / "runs")
    needed = "MB are needed, " if name != "curves.png" else ""  # a picture has no size before it is written
    check_one_message(answer, f"/{name} ({FULL}", needed, "MB are free in", "Make room, or pass another folder")
    (folder,) = folders(tmp_path / "runs")
    check_whole(folder)
    assert not (folder / "result.json").exists()
    last = folder / "checkpoints/last.ckpt"
    assert last.exists() == (name not in ("best.ckpt", "last.ckpt"))
    assert (f"go on with fit --ckpt_path {last}" in answer.err) == last.exists()
    if name == "adapter_config.json":
        rest = [option for option in tiny[1:] if "model" not in option and option not in ("--method", "ssf")]
        assert call("fit", "--ckpt_path", last, *rest, "--run_root", tmp_path / "resumed").code == 0
        (resumed,) = folders(tmp_path / "resumed")
        assert (resumed / "adapter/adapter_config.json").exists()


def test_22_a_full_disk_for_a_file_of_a_library(
    tiny: list[str], call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from lightning.pytorch.loggers.csv_logs import ExperimentWriter

    def full(self: Any) -> None:
        raise OSError(errno.ENOSPC, FULL, f"{self.log_dir}/metrics.csv")

    monkeypatch.setattr(ExperimentWriter, "save", full)
    answer = call(*tiny, "--run_root", tmp_path)
    check_one_message(answer, "cannot write", f"metrics.csv ({FULL})", "Make room")


@pytest.mark.parametrize("free", [0, 8_000, 40_000, 120_000, 200_000])
def test_22_a_disk_that_fills_in_a_fit(free: int, tiny: list[str], call: Call, tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "size=4m") as small:
        fill(small, free)
        answer = call(*tiny, "--run_root", small / "runs")
        check_one_message(answer, FULL, "disk")
        check_whole(small)
        assert not list(small.rglob("result.json"))


def test_22_a_full_disk_in_a_prediction(
    fitted: Path, base: list[str], call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    full_for("predictions.csv", monkeypatch)
    answer = call("predict", "--ckpt_path", fitted / "adapter", *base, "--run_root", tmp_path)
    check_one_message(answer, f"predictions.csv ({FULL}", "no file was left there", "--run_root, and begin again")


@pytest.fixture(scope="module")
def lora(base: list[str], model: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapter folder of a LoRA."""
    from commands.lightning.cli import GraftCLI

    root = tmp_path_factory.mktemp("lora")
    options = ["lora" if word == "ssf" else word for word in model]
    return Path(GraftCLI.run(["fit", *options, *base, "--run_root", str(root)]).trainer.default_root_dir) / "adapter"


@pytest.mark.parametrize("command", ["merge", "export"])
def test_22_a_full_disk_for_a_command(
    command: str, lora: Path, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*args: Any, **options: Any) -> None:
        Path(args[1]).write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    writers = {"merge": "safetensors.torch.save_file", "export": "checkpoints.peft.save_file"}
    monkeypatch.setattr(writers[command], full)
    answer = call(command, "--ckpt_path", lora, "--output", tmp_path / "new")
    words = ("os error 28", "MB are needed", "MB are free", "nothing was written")
    check_one_message(answer, f"cannot write {tmp_path / 'new'}", *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["merge", "export"])
def test_22_a_small_disk_for_a_command(command: str, lora: Path, call: Call, tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "size=1m") as small:
        fill(small, 4096)
        answer = call(command, "--ckpt_path", lora, "--output", small / "new")
        check_one_message(answer, f"cannot write {small / 'new'}", "MB are free", "nothing was written")
        assert [path.name for path in small.iterdir()] == ["filler"]


def test_22_another_disk_that_is_full(lora: Path, call: Call, tmp_path: Path) -> None:
    """The output is an empty disk of its own, so that its files are copied there."""
    with disk(tmp_path / "disk", "size=64k") as small:
        answer = call("merge", "--ckpt_path", lora, "--output", small)
        check_one_message(answer, f"cannot write {small}", FULL)
        assert not list(small.iterdir())


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder in which nobody may write, also not the administrator."""
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(0o500)
        yield tmp_path / "locked"
        return
    with disk(tmp_path / "locked", "size=1m,ro") as folder:
        yield folder


@pytest.mark.parametrize("command", ["fit", "test", "merge", "export"])
def test_23_a_folder_that_takes_no_files(
    command: str, tiny: list[str], base: list[str], lora: Path, read_only: Path, call: Call
) -> None:
    options: dict[str, list[Any]] = {
        "fit": [*tiny[1:], "--run_root", read_only],
        "test": ["--ckpt_path", lora, *base, "--run_root", read_only],
    }
    answer = call(command, *options.get(command, ["--ckpt_path", lora, "--output", read_only / "new"]))
    check_one_message(answer, read_only)
    assert any(reason in answer.err for reason in ("Read-only file system", "Permission denied"))
    assert not list(read_only.iterdir())
