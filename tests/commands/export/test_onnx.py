"""ONNX files in onnxruntime: any batch size, equal logits, the masked form of DyT, weights of 8 bits."""

import json
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import timm
import torch
from safetensors.torch import save_file

from commands.export import export
from commands.export.onnx import export_onnx
from datamodules import ImageDataset
from tests.commands.test_export import Build, trained
from tests.conftest import BACKBONE, TINY, perturb, random_tiny

IMAGES = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def outputs(path: Path) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(path))
    return torch.from_numpy(session.run(None, {"images": IMAGES.numpy()})[0])


def test_merged_and_in_8_bits(
    build: Build, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from commands.export import onnx as module

    args = TINY | {"depth": 1}
    save_file(timm.create_model(BACKBONE, num_classes=5, **args).state_dict(), tmp_path / "weights.safetensors")
    plain = random_tiny("ssf", backbone_args=args, pretrained=str(tmp_path / "weights.safetensors"))
    model = trained(plain, tmp_path / "adapter")
    export(tmp_path / "adapter", tmp_path / "model.onnx", format="onnx")
    with torch.no_grad():
        expected = model(IMAGES)
    torch.testing.assert_close(outputs(tmp_path / "model.onnx"), expected, atol=1e-4, rtol=0)
    file: Any = onnx.load(tmp_path / "model.onnx")
    metadata = {entry.key: entry.value for entry in file.metadata_props}
    assert metadata["merged"] == "True"
    assert json.loads(metadata["mean"]) == list(model.input_config["mean"])  # type: ignore[operator, index]
    assert not [tensor.name for tensor in file.graph.initializer if "ssf" in tensor.name]

    # the same graph again in 8 bits, without a second trace
    written = (tmp_path / "model.onnx").read_bytes()
    monkeypatch.setattr(module, "save", lambda network, path, *_: path.write_bytes(written))
    capsys.readouterr()
    export(tmp_path / "adapter", tmp_path / "int8.onnx", format="onnx", quantize="int8")
    assert "largest difference of a logit, int8 against fp32:" in capsys.readouterr().out
    quantized: Any = onnx.load(tmp_path / "int8.onnx")
    assert [node.op_type for node in quantized.graph.node].count("MatMulInteger") == 5, "qkv, proj, fc1, fc2, head"
    assert (tmp_path / "int8.onnx").stat().st_size < 0.7 * len(written)
    data = ImageDataset(root=str(images), batch_size=4, resize="direct", normalization="imagenet")
    export(tmp_path / "adapter", tmp_path / "data.onnx", format="onnx", quantize="int8", data=data)
    assert "top-1 (%) of 15 test images: fp32 " in capsys.readouterr().out
    eight = outputs(tmp_path / "data.onnx")
    assert 0 < (eight - expected).abs().max() < 0.1 * expected.abs().max()


def test_not_merged(build: Build, tmp_path: Path) -> None:
    """DyT in its masked form: which tokens skip depends on the values of any image."""
    depth = {"backbone_args": TINY | {"depth": 1}, "pretrained": False, "dyt_drop_last": False}
    model = random_tiny("dyt", **depth)
    model.configure_model()
    perturb(model)
    seen = model.eval()
    export_onnx(model, tmp_path / "model.onnx", None, None, None)
    with torch.no_grad():
        torch.testing.assert_close(outputs(tmp_path / "model.onnx"), seen(IMAGES), atol=1e-4, rtol=0)


def test_an_operation_that_onnx_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise RuntimeError("no such operation\nand pages of text")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    model = random_tiny("linear_probe")
    with pytest.raises(ValueError, match=r"cannot write LinearProbe as ONNX \(no such operation\); nothing was"):
        export_onnx(model, tmp_path / "model.onnx", None, None, None)
    assert not list(tmp_path.iterdir())


def test_a_file_with_other_outputs_gets_no_name(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from commands.export import onnx as module

    trained(build("linear_probe"), tmp_path / "adapter")
    monkeypatch.setattr(module, "save", lambda network, path, *_: path.touch())
    monkeypatch.setattr(module, "session", lambda path: None)
    monkeypatch.setattr(module, "run", lambda session, images: torch.ones(len(images), 3))
    with pytest.raises(ValueError, match=r"differs by .* in its logits; nothing was written"):
        export(tmp_path / "adapter", tmp_path / "model.onnx", format="onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_refusals(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(build("vpt"), tmp_path / "adapter")
    with pytest.raises(TypeError, match="VPT cannot be merged because"):
        export(tmp_path / "adapter", tmp_path / "model.onnx", format="onnx", merged=True)
    with pytest.raises(ValueError, match="quantize is an option of format=onnx"):
        export(tmp_path / "adapter", tmp_path / "model", quantize="int8")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r'format=onnx needs onnxscript: pip install -e ".\[onnx\]"'):
        export(tmp_path / "adapter", tmp_path / "model.onnx", format="onnx")
