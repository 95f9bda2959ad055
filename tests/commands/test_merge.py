"""The files of methods that train single entries: what they weigh, and that nothing is lost on the way."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from checkpoints.delta import WEIGHTS, read_adapter
from commands.lightning.cli import GraftCLI
from commands.merge import merge
from methods import PEFTMethod
from tests.conftest import BACKBONE, TINY

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
