"""Merged models: plain timm weights with equal outputs, and the files of methods that train single entries."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from checkpoints.delta import WEIGHTS, read_adapter, write_adapter
from commands.lightning.cli import GraftCLI
from commands.merge import merge
from methods import PEFTMethod
from tests.conftest import BACKBONE, TINY, checkpoint_of, composed, perturb

BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": (BACKBONE, TINY),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2)},
    ),
    "convnext": ("convnext_tiny", {"depths": (1, 1, 1, 1), "dims": (16, 16, 24, 32)}),
}
METHODS: dict[str, list[str]] = {
    "gps": ["--model.gps_k=3"],
    "spt": ["--model.spt_granularity=unstructured_only", "--model.spt_budget=0.02"],
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", BACKBONES)
def test_indices_and_values_are_the_trained_model(name: str, method: str, images: Path, tmp_path: Path) -> None:
    """Bit for bit: the adapter folder on the plain backbone, and the plain timm model that is merged from it."""
    backbone, args = BACKBONES[name]
    torch.manual_seed(1)
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model(backbone, num_classes=5, **args).state_dict(), weights)
    data = ["--data", "ImageDataset", "--data.root", str(images), "--data.batch_size", "8", "--data.image_size", "32"]
    quiet = {"accelerator": "cpu", "enable_progress_bar": "false", "enable_model_summary": "false", "max_epochs": 1}
    data += [*(f"--trainer.{key}={value}" for key, value in quiet.items()), "--run_root", str(tmp_path / "runs")]
    options = [f"--model.backbone_args.{key}={list(v) if isinstance(v, tuple) else v}" for key, v in args.items()]
    options += [f"--model.backbone={backbone}", f"--model.pretrained={weights}", "--model.lr=0.05", *METHODS[method]]
    fit = GraftCLI.run(["fit", "--method", method, *options, *data, "--test_after_fit=true"])
    folder = Path(fit.trainer.default_root_dir) / "adapter"

    batch = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        trained = fit.model.eval()(batch)
        again = PEFTMethod.from_delta(folder)
        assert torch.equal(again(batch), trained)
        merge(folder, tmp_path / "merged")
        plain = timm.create_model(f"local-dir:{tmp_path / 'merged'}", pretrained=True).eval()
        assert torch.equal(plain(batch), trained)
    tested = GraftCLI.run(["test", "--ckpt_path", str(folder), *data])
    for metric in ("test/acc1", "test/loss"):
        assert tested.trainer.callback_metrics[metric] == fit.trainer.callback_metrics[metric]

    # four bytes of value and four of index for an entry, four for what trains in full
    tensors, selection = load_file(folder / WEIGHTS), read_adapter(folder)["peft"]["selection"]
    indices = {key: tensor for key, tensor in selection.items() if len(tensor)}
    assert indices
    assert all(tensor.dtype is torch.int32 for tensor in indices.values())
    trainable = sum(p.numel() for p in again.parameters() if p.requires_grad)
    payload = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert payload == 4 * trainable + 4 * sum(map(len, indices.values()))
    header = (folder / WEIGHTS).stat().st_size - payload
    assert header < 160 * len(tensors)


def adapter_of(backbone: str, args: dict[str, Any], folder: Path) -> Path:
    """Adapter folder of SSF on a network with random weights, with scales and shifts that are far from initial."""
    torch.manual_seed(1)
    weights = folder / "weights.safetensors"
    save_file(timm.create_model(backbone, num_classes=5, **args).state_dict(), weights)
    model = composed("ssf")(backbone=backbone, backbone_args=args, pretrained=str(weights), num_classes=3)
    model.configure_model()
    perturb(model)
    write_adapter(folder / "adapter", checkpoint_of(model))
    return folder / "adapter"


def test_biases_become_an_argument_of_timm(tmp_path: Path) -> None:
    """A network without biases at qkv has them after the merge, and its config has timm's argument for them."""
    adapter = adapter_of(BACKBONE, TINY | {"qkv_bias": False}, tmp_path)
    merge(adapter, tmp_path / "merged")
    plain = timm.create_model(f"local-dir:{tmp_path / 'merged'}", pretrained=True).eval()
    assert plain.blocks[0].attn.qkv.bias is not None
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), PEFTMethod.from_delta(adapter)(images), atol=1e-5, rtol=1e-4)


def test_folder_of_the_hub(tmp_path: Path) -> None:
    """A merged folder has a card, and transformers loads it as well."""
    transformers = pytest.importorskip("transformers")
    adapter = adapter_of(BACKBONE, TINY, tmp_path)
    merge(adapter, tmp_path / "merged")
    card = (tmp_path / "merged/README.md").read_text()
    assert card.startswith("---\n")
    assert "library_name: timm" in card
    images = torch.randn(2, 3, 32, 32)
    model = transformers.AutoModelForImageClassification.from_pretrained(str(tmp_path / "merged")).eval()
    assert type(model).__name__.startswith("TimmWrapper")
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, PEFTMethod.from_delta(adapter)(images), atol=1e-5, rtol=1e-4)


def test_a_model_that_timm_cannot_load_is_written_on_demand_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = adapter_of(*BACKBONES["convnext"], tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"can take norm_pre\.ssf\.scale, norm_pre\.ssf\.shift; nothing was written"):
        merge(adapter, tmp_path / "merged")
    assert sorted(tmp_path.iterdir()) == before
    merge(adapter, tmp_path / "merged", allow_extra=True)
    assert "norm_pre.ssf.scale" in load_file(tmp_path / "merged" / "model.safetensors")
    assert "merged except norm_pre.ssf.scale, norm_pre.ssf.shift" in capsys.readouterr().out
