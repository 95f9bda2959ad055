"""The adapter folder of HF peft, written and read without peft; tests/commands compare with peft itself."""

import json
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from checkpoints.delta import CONFIG
from checkpoints.peft import LowRankLayer, alpha_of, read_peft, write_peft


def draw(rank: int, scale: float, dora: bool = False) -> LowRankLayer:
    return LowRankLayer(torch.randn(rank, 6), torch.randn(8, rank), scale, torch.rand(8) if dora else None)


def change_config(folder: Path, **change: Any) -> None:
    config = json.loads((folder / CONFIG).read_text()) | change
    (folder / CONFIG).write_text(json.dumps(config))


@pytest.mark.parametrize("dora", [False, True])
def test_layers_come_back(dora: bool, tmp_path: Path) -> None:
    """Also where ranks and scales differ between layers."""
    torch.manual_seed(0)
    layers = {
        "blocks.0.attn.qkv": draw(4, 2.0, dora),
        "blocks.1.attn.qkv": draw(4, 2.0, dora),
        "blocks.1.mlp.fc1": draw(4, 0.3, dora),
        "blocks.11.mlp.fc1": draw(3, 2.0, dora),
    }
    saved = {"head.weight": torch.randn(3, 6), "head.bias": torch.randn(3)}
    write_peft(tmp_path, layers, saved)
    read, rest = read_peft(tmp_path)
    assert read.keys() == layers.keys()
    for name, layer in layers.items():
        assert torch.equal(read[name].A, layer.A)
        assert torch.equal(read[name].B, layer.B)
        assert read[name].scale == pytest.approx(layer.scale)
        weight = torch.randn(8, 6)
        torch.testing.assert_close(read[name].merge_into(weight), layer.merge_into(weight))
    assert rest.keys() == saved.keys()
    assert all(torch.equal(rest[name], tensor) for name, tensor in saved.items())


def test_merged_weight() -> None:
    """LoRA adds an update of the rank; DoRA also sets the norm of every row to its magnitude."""
    torch.manual_seed(0)
    weight, layer = torch.randn(8, 6), draw(2, 0.5)
    update = layer.merge_into(weight) - weight
    torch.testing.assert_close(update, 0.5 * layer.B @ layer.A)
    assert torch.linalg.matrix_rank(update, rtol=1e-5) == 2
    layer.magnitude = torch.rand(8) + 0.1
    merged = layer.merge_into(weight)
    torch.testing.assert_close(merged.norm(dim=1), layer.magnitude)
    torch.testing.assert_close(torch.cosine_similarity(merged, weight + update), torch.ones(8))


def test_rank_stabilised_scale(tmp_path: Path) -> None:
    write_peft(tmp_path, {"fc": draw(4, 2.0)}, {})
    change_config(tmp_path, use_rslora=True)
    assert read_peft(tmp_path)[0]["fc"].scale == pytest.approx(2.0 * 4 / sqrt(4))


@pytest.mark.parametrize(
    ("name", "alpha"),
    [("blocks.1.fc", 3.0), ("blocks.11.fc", 5.0), ("x.blocks.1.fc", 3.0), ("blocks.1.fc.inner", 5.0), ("head", 5.0)],
)
def test_a_pattern_stands_for_the_end_of_a_name(name: str, alpha: float) -> None:
    assert alpha_of(name, {"lora_alpha": 5, "alpha_pattern": {"blocks.1.fc": 3}}) == alpha


def test_other_patterns() -> None:
    assert alpha_of("blocks.7.fc", {"alpha_pattern": {r"blocks\.\d\.fc": 2, "fc": 9}}) == 2, "the first that fits"
    assert alpha_of("fc", {}) == 8, "peft's own default"
    with pytest.raises(ValueError, match="alpha_pattern has '\\(', which is no regular expression"):
        alpha_of("fc", {"alpha_pattern": {"(": 2}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; expected 'LORA'"),
        ({"bias": "all"}, "bias='all', so its A and B alone are not the adapter"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4', so"),
        ({"use_dora": True}, "use_dora is True, but .* holds a layer without a magnitude"),
    ],
)
def test_what_a_and_b_do_not_hold_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_peft(tmp_path, {"fc": draw(2, 1.0)}, {})
    change_config(tmp_path, **change)
    with pytest.raises(ValueError, match=message):
        read_peft(tmp_path)


@pytest.mark.parametrize("saved", [{"fc.lora_embedding_A": torch.ones(2, 2)}, {"fc.lora_B.weight": torch.ones(2, 2)}])
def test_tensors_of_no_pair_are_refused(saved: dict[str, Tensor], tmp_path: Path) -> None:
    write_peft(tmp_path, {"other": draw(2, 1.0)}, saved)
    with pytest.raises(ValueError, match=r"holds fc\.lora_.*: it is no LoRA of linear layers"):
        read_peft(tmp_path)
