"""Weight files, adapters and checkpoints that no run can use (faults 13, 15 to 18 and 33 of the list)."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conftest import BACKBONE, TINY
from tests.faults.conftest import Refused
from tests.support.command_line import Answer

WEIGHTS = "adapter_model.safetensors"
Tensors = dict[str, Tensor]


class Payload:
    """Runs code when a pickle is read."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return Path.touch, (Path("run.txt"),)  # type: ignore[return-value]


def test_13_weights_of_another_architecture(tiny: list[str], refused: Refused, tmp_path: Path) -> None:
    file = tmp_path / "wide.safetensors"
    save_file(timm.create_model(BACKBONE, num_classes=5, **TINY | {"embed_dim": 96}).state_dict(), file)
    refused(*tiny, f"--model.pretrained={file}", says=("wide.safetensors", "patch_embed.proj.weight"))


def test_13_truncated_weights_and_code(
    tiny: list[str], weights: Path, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = weights.read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(*tiny, "--model.pretrained=half.safetensors", says="half.safetensors")
    torch.save({"state_dict": Payload()}, tmp_path / "code.pth")
    refused(*tiny, "--model.pretrained=code.pth", says="code.pth")
    assert not (tmp_path / "run.txt").exists()


@pytest.fixture
def adapter(fitted: Path, tmp_path: Path) -> Path:
    """A copy of an adapter folder."""
    shutil.copytree(fitted / "adapter", tmp_path / "adapter")
    return tmp_path / "adapter"


def changed(adapter: Path, change: Callable[[Tensors], object]) -> str:
    """Change the tensors of an adapter folder; returns the name of the first of them."""
    tensors = load_file(adapter / WEIGHTS)
    first = sorted(tensors)[0]
    change(tensors)
    save_file(tensors, adapter / WEIGHTS)
    return first


def test_15_a_missing_tensor(adapter: Path, base: list[str], refused: Refused) -> None:
    name = changed(adapter, lambda tensors: tensors.__delitem__(sorted(tensors)[0]))
    refused("test", "--ckpt_path", adapter, *base, says=name)


def test_16_an_extra_tensor(adapter: Path, base: list[str], refused: Refused) -> None:
    changed(adapter, lambda tensors: tensors.update(extra=torch.ones(2)))
    refused("test", "--ckpt_path", adapter, *base, says="extra")


def test_17_a_value_that_is_not_finite(adapter: Path, base: list[str], refused: Refused) -> None:
    name = changed(adapter, lambda tensors: tensors[sorted(tensors)[0]].view(-1)[0].fill_(torch.nan))
    refused("test", "--ckpt_path", adapter, *base, says=name)


@pytest.mark.parametrize("share", [0, 0.5])
def test_18_a_truncated_file(share: float, fitted: Path, adapter: Path, base: list[str], refused: Refused) -> None:
    for place in (adapter / WEIGHTS, adapter.parent / "last.ckpt"):
        source = fitted / ("adapter" if place.suffix == ".safetensors" else "checkpoints") / place.name
        whole = source.read_bytes()
        place.write_bytes(whole[: int(len(whole) * share)])
        named = adapter if place.parent == adapter else place
        refused("test", "--ckpt_path", named, *base, says=place.name)


def test_33_a_method_that_cannot_be_merged(
    base: list[str], model: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    options = ["adapter" if word == "ssf" else word for word in model]
    assert call("fit", *options, *base, "--run_root", tmp_path / "runs").code == 0
    (adapter,) = tmp_path.glob("runs/*/*/*/adapter")
    answer = call("merge", "--ckpt_path", adapter, "--output", tmp_path / "merged")
    assert answer.code == 1
    assert "error: Adapter cannot be merged" in answer.err
    assert not (tmp_path / "merged").exists()
