"""Greedy soups: what is averaged, what is left out, and what cannot be averaged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.delta import read_adapter, write_adapter
from commands import soup as command
from commands.soup import averaged, soup
from datamodules import ImageDataset
from methods import PEFTMethod
from tests.conftest import checkpoint_of, perturb

Build = Callable[..., PEFTMethod]


def written(model: PEFTMethod, folder: Path, scale: float = 0.05) -> Path:
    model.configure_model()
    perturb(model, scale)
    write_adapter(folder, checkpoint_of(model))
    return folder


@pytest.fixture
def data(images: Path) -> ImageDataset:
    return ImageDataset(root=str(images), batch_size=9, resize="direct", num_workers=0)


def test_the_average_of_what_helps(
    build: Build,
    data: ImageDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Sorted by validation: c, a, b. The average with a is better, that with b is worse."""
    paths = [written(build("ssf"), tmp_path / name, scale) for name, scale in {"a": 0.1, "b": 0.2, "c": 0.3}.items()]
    scores = iter([0.6, 0.5, 0.7, 0.8, 0.75])
    monkeypatch.setattr(command, "validated", lambda model, data: next(scores))
    soup(paths, data, tmp_path / "soup")
    states = [read_adapter(path)["state_dict"] for path in (paths[2], paths[0])]
    found = read_adapter(tmp_path / "soup")["state_dict"]
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (states[0][name] + states[1][name]) / 2)
    said = capsys.readouterr().out
    assert f"80.00 with {paths[0]}: kept" in said
    assert f"75.00 with {paths[1]}: left out" in said
    card = (tmp_path / "soup/README.md").read_text()
    assert "| best/val/acc1 | 0.8 |" in card
    assert "average of 2 checkpoints" in card


def test_validation_of_the_soup(build: Build, data: ImageDataset, tmp_path: Path) -> None:
    """Without a stand-in: the soup is never worse than the best checkpoint, and two equal ones give themselves."""
    first = written(build("lora"), tmp_path / "a")
    second = written(build("lora", lr=0.5), tmp_path / "b")  # the learning rate may differ
    soup([first, second], data, tmp_path / "soup")
    one, found = (read_adapter(folder)["state_dict"] for folder in (first, tmp_path / "soup"))
    assert all(torch.allclose(one[name], found[name]) for name in one)
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        soup([first, second], data, tmp_path / "soup")


def test_integers_stay() -> None:
    states: list[Any] = [{"x": torch.tensor([1.0]), "n": torch.tensor([3])}, {"x": torch.tensor([2.0])}]
    assert averaged(states)["x"].tolist() == [1.5]
    assert averaged(states)["n"].tolist() == [3]


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("linear_probe", {}, "differ in method: SSF and LinearProbe"),
        ("ssf", {"backbone_args": {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}}, ""),
        ("ssf", {"ssf_init": "identity"}, "differ in options of the method"),
        ("ssf", {"num_classes": 4}, "differ in tensors"),
    ],
    ids=["method", "backbone", "options", "classes"],
)
def test_refusals(
    method: str, options: dict[str, Any], message: str, build: Build, data: ImageDataset, tmp_path: Path
) -> None:
    first = written(build("ssf"), tmp_path / "a")
    more = options | ({"pretrained": False} if "backbone_args" in options else {})
    second = written(build(method, **more), tmp_path / "b")
    with pytest.raises(ValueError, match=message or "differ in frozen weights"):
        soup([first, second], data, tmp_path / "soup")
    assert not (tmp_path / "soup").exists()


def test_other_selections(build: Build, data: ImageDataset, tmp_path: Path) -> None:
    paths = []
    for number, name in enumerate("ab"):
        model: Any = build("gps")
        model.selection = {
            target: torch.tensor([number], dtype=torch.int32) for target in sorted(model.score_targets())[:2]
        }
        paths.append(written(model, tmp_path / name))
    with pytest.raises(ValueError, match="have selected other weights or channels"):
        soup(paths, data, tmp_path / "soup")
    with pytest.raises(ValueError, match="expected at least 2 checkpoints"):
        soup(paths[:1], data, tmp_path / "soup")
