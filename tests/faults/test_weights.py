"""Weight files, adapters and checkpoints that no run can use (faults 12 to 19 and 45 of the list)."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoints.delta import CONFIG, WEIGHTS
from tests.conftest import BACKBONE, ROOT, TINY
from tests.faults.conftest import Refused
from tests.support.command_line import Answer, folders

Tensors = dict[str, Tensor]


class Payload:
    """Runs code when a pickle is read."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return Path.touch, (Path("run.txt"),)  # type: ignore[return-value]


def test_12_no_weights_and_no_network(base: list[str], refused: Refused) -> None:
    model = ["--method", "ssf", "--model.backbone", "vit_tiny_patch16_224.augreg_in21k", "--model.pretrained=true"]
    source = "Download model.safetensors of huggingface.co/timm/vit_tiny_patch16_224.augreg_in21k"
    refused(
        "fit", *model, *base, says=("could not be loaded", "Nothing was trained", source, "--model.pretrained PATH")
    )


def test_12_random_weights_are_noted(tiny: list[str], call: Callable[..., Answer], tmp_path: Path) -> None:
    assert call(*tiny, "--model.pretrained=false", "--run_root", tmp_path).code == 0
    (result,) = tmp_path.glob("*/*/*/result.json")
    assert json.loads(result.read_text())["pretrained"] is False


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


def test_13_weights_beside_a_folder(
    fitted: Path, base: list[str], weights: Path, call: Callable[..., Answer], tmp_path: Path
) -> None:
    """A backbone that is a folder of timm takes its weights from a file that fits."""
    assert call("merge", "--ckpt_path", fitted / "adapter", "--output", tmp_path / "merged").code == 0
    model = ["--method", "ssf", "--model.backbone", f"local-dir:{tmp_path / 'merged'}", f"--model.pretrained={weights}"]
    answer = call("fit", *model, *base, "--run_root", tmp_path / "runs")
    assert answer.code == 0, answer.err
    (adapter,) = tmp_path.glob("runs/*/*/*/adapter")
    assert call("test", "--ckpt_path", adapter, *base, "--run_root", tmp_path / "tests").code == 0


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


def test_45_a_newer_format(adapter: Path, base: list[str], refused: Refused) -> None:
    config = json.loads((adapter / CONFIG).read_text())
    del config["sha256"]
    config["peft"]["format"] = 3
    (adapter / CONFIG).write_text(json.dumps(config))
    refused("test", "--ckpt_path", adapter, *base, says="checkpoint format 3: this version of Graft reads format 2")


@pytest.mark.parametrize("name", ["ssf", "ssf.ckpt"])
def test_45_an_older_format(
    name: str, call: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of format 1 are translated; their accuracy is that of the day on which they were written."""
    monkeypatch.chdir(ROOT)  # because their backbone is named by a relative path
    folder = Path("tests/checkpoints/format_1")
    answer = call("test", "--ckpt_path", folder / name, "--config", folder / "run.yaml", "--run_root", tmp_path)
    assert answer.code == 0, answer.err
    (result,) = tmp_path.glob("*/*/*/result.json")
    stored = json.loads((folder / "results.json").read_text())["ssf"]["test"]
    found = json.loads(result.read_text())
    assert {metric: found[metric] for metric in stored} == pytest.approx(stored, abs=2e-5)


def test_14_a_checkpoint_of_another_backbone(
    fitted: Path, base: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    answer = call(
        *("test", "--ckpt_path", fitted / "checkpoints/last.ckpt", *base, "--run_root", tmp_path),
        *("--model.pretrained=false", "--override_checkpoint=true"),
    )
    assert answer.code == 1
    assert "this delta was trained on other weights" in answer.err


def test_19_options_that_differ_from_the_checkpoint(
    fitted: Path, base: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    checkpoint = fitted / "checkpoints/last.ckpt"
    command = ("fit", "--ckpt_path", checkpoint, *base, "--trainer.max_epochs=2", "--run_root", tmp_path)
    answer = call(*command, "--model.weight_decay", "0.5", "--model.lr=0.25")
    assert answer.code == 1
    assert "lr: 0.001 in the checkpoint, 0.25 here; weight_decay: 0.05 in the checkpoint, 0.5 here" in answer.err
    assert "--override_checkpoint true" in answer.err
    assert not folders(tmp_path)

    assert call(*command, "--model.weight_decay", "0.5", "--override_checkpoint", "true").code == 0
    (folder,) = folders(tmp_path)
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert saved["epoch"] == 1
    assert saved["hyper_parameters"]["weight_decay"] == 0.5
    assert saved["optimizer_states"][0]["param_groups"][0]["weight_decay"] == 0.5
