"""The checkpoint of a command line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoints import delta
from commands.lightning import saved as saved_module
from commands.lightning.saved import read_saved
from tests.support.command_line import Answer, folders


@pytest.mark.parametrize("share", [0, 0.5])
def test_damaged_checkpoint(
    share: float, fitted: Path, base: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    whole = (fitted / "checkpoints/last.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: int(share * len(whole))])
    answer = call("test", "--ckpt_path", tmp_path / "half.ckpt", *base, "--run_root", tmp_path / "runs")
    assert answer.code == 1
    assert "is empty, incomplete or unsafe" in answer.err
    assert not folders(tmp_path / "runs")


def test_a_file(fitted: Path) -> None:
    saved = read_saved(str(fitted / "checkpoints/last.ckpt"))
    assert saved.class_path == "methods.SSFClassification"
    assert saved.options["weight_decay"] == 0.05
    assert not {"num_classes", "_class_path", "_instantiator"} & saved.options.keys()
    assert saved.ema_decay is None
    assert saved.adapter is None, "Lightning reads a file again, with its optimizer"


def test_an_adapter_is_read_once(
    fitted: Path, base: list[str], call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read: list[Path] = []
    original = delta.read_adapter
    monkeypatch.setattr(delta, "read_adapter", lambda folder: read.append(folder) or original(folder))
    assert call("test", "--ckpt_path", fitted / "adapter", *base, "--run_root", tmp_path).code == 0
    assert read == [fitted / "adapter"]


def test_a_file_is_read_once_beside_lightning(
    fitted: Path, base: list[str], call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read: list[str] = []
    original = saved_module.read_checkpoint
    monkeypatch.setattr(saved_module, "read_checkpoint", lambda path: read.append(path) or original(path))
    path = str(fitted / "checkpoints/best.ckpt")
    assert call("test", "--ckpt_path", path, *base, "--run_root", tmp_path).code == 0
    assert read == [path]


def test_a_checkpoint_that_a_config_names(
    fitted: Path, base: list[str], model: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "ckpt.yaml").write_text(f"ckpt_path: {fitted / 'adapter'}")
    args = [*model, *base, "--config", tmp_path / "ckpt.yaml", "--run_root", tmp_path / "runs"]
    assert call("test", *args).code == 0
    assert "lr: 0.001 in the checkpoint, 0.5 here" in call("test", *args, "--model.lr=0.5").err
