"""Merged models, and what has no merged model (faults 33 to 35 of the list)."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from methods import PEFTMethod
from tests.support.command_line import Answer

Call = Callable[..., Answer]


def fit(method: str, base: list[str], model: list[str], call: Call, folder: Path) -> Path:
    """Adapter folder of a fit of a method on the tiny backbone."""
    options = [method if word == "ssf" else word for word in model]
    assert call("fit", *options, *base, "--run_root", folder).code == 0
    (adapter,) = folder.glob("*/*/*/adapter")
    return adapter


def test_33_a_method_that_cannot_be_merged(base: list[str], model: list[str], call: Call, tmp_path: Path) -> None:
    adapter = fit("adapter", base, model, call, tmp_path / "runs")
    answer = call("merge", "--ckpt_path", adapter, "--output", tmp_path / "merged")
    assert answer.code == 1
    assert "error: Adapter cannot be merged because its adapters are not linear" in answer.err
    assert not (tmp_path / "merged").exists()


def test_34_merged_twice(fitted: Path, call: Call, tmp_path: Path) -> None:
    """A second merge gives the same bytes, and leaves a folder that has files; a merged model has no delta."""
    for name in ("merged", "again"):
        answer = call("merge", "--ckpt_path", fitted / "adapter", "--output", tmp_path / name)
        assert answer.code == 0, answer.err
        assert "largest difference of a logit, merged against unmerged" in answer.out
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("merged", "again"))
    assert first == second
    answer = call("merge", "--ckpt_path", fitted / "adapter", "--output", tmp_path / "merged")
    assert (answer.code, "exists and is not empty; nothing was written" in answer.err) == (1, True)
    assert (tmp_path / "merged/model.safetensors").read_bytes() == first
    for command in ("merge", "export"):
        answer = call(command, "--ckpt_path", tmp_path / "merged", "--output", tmp_path / "third")
        assert (answer.code, answer.err.count("error: ")) == (1, 1)
        assert "adapter_model.safetensors: no such file; an adapter folder holds" in answer.err
        assert not (tmp_path / "third").exists()


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_35_a_graph_of_a_merged_model(fitted: Path, call: Call, batch: torch.Tensor, tmp_path: Path) -> None:
    """The graph that ONNX is made of, for any number of images."""
    assert call("merge", "--ckpt_path", fitted / "adapter", "--output", tmp_path / "merged").code == 0
    plain = timm.create_model(f"local-dir:{tmp_path / 'merged'}", pretrained=True).eval()
    number = torch.export.Dim("number", min=1, max=64)
    graph = torch.export.export(plain, (batch[:2],), dynamic_shapes=({0: number},)).module()
    trained = PEFTMethod.from_delta(fitted / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(graph(batch), trained(batch), atol=1e-5, rtol=1e-4)
    assert load_file(tmp_path / "merged/model.safetensors").keys() == plain.state_dict().keys()


def test_35_a_method_whose_graph_depends_on_the_image(
    base: list[str], model: list[str], call: Call, batch: torch.Tensor, tmp_path: Path
) -> None:
    """No plain model exists, and the graph of the trained one is static: it computes all tokens and masks them."""
    adapter = fit("dyt", base, model, call, tmp_path / "runs")
    answer = call("merge", "--ckpt_path", adapter, "--output", tmp_path / "merged")
    assert answer.code == 1
    assert "error: DyT cannot be merged because which tokens skip an MLP depends on the image" in answer.err
    trained = PEFTMethod.from_delta(adapter)
    graph = torch.export.export(trained, (batch,)).module()
    with torch.no_grad():
        torch.testing.assert_close(graph(batch), trained(batch), atol=1e-5, rtol=1e-4)
