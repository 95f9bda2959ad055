"""Adapters written for HF peft, loaded by peft itself on the plain timm model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import timm
import torch
from torch import Tensor

from checkpoints.delta import write_adapter
from commands.export import export, low_rank_layers
from lightning_modules.classification import Classification
from methods import METHODS, PEFTMethod, compose
from tests.conftest import BACKBONE, TINY, checkpoint_of, perturb

Build = Callable[..., PEFTMethod]


def trained(model: PEFTMethod, folder: Path) -> PEFTMethod:
    """Move everything that trains away from its start, and write the adapter folder of a run."""
    model.configure_model()
    perturb(model)
    write_adapter(folder, checkpoint_of(model))
    return model.eval()


def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def plain_model(weights: Path, num_classes: int = 3) -> Any:
    overlay = {"file": str(weights), "num_classes": 5}
    return timm.create_model(
        BACKBONE, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=num_classes, **TINY
    ).eval()


OPTIONS: dict[str, dict[str, Any]] = {
    "q and v": {"lora_alpha": 2.5},
    "k alone": {"lora_targets": ["k"], "lora_scaling": "alpha/r", "lora_alpha": 16.0},
    "fused": {"lora_targets": ["qkv", "attn.proj", "fc1", "fc2"], "lora_scaling": "alpha/sqrt(r)"},
    "start": {"lora_init": "pissa", "lora_rank": 4, "lora_scaling": "alpha/r"},  # of rank 2 r in peft
    "mixed": {"lora_targets": ["q", "v", "proj", "fc1"], "lora_dropout": 0.1},
    "ranks": {
        "lora_targets": ["qkv", "fc2"],
        "lora_ranks": {"blocks.1.mlp.fc2": 2, "qkv": 5},
        "lora_scaling": "alpha/r",
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("method", ["lora", "dora", "lora+velora"])
def test_peft_computes_the_same(
    method: str, options: dict[str, Any], build: Build, weights: Path, tmp_path: Path
) -> None:
    model = trained(build(method, **options), tmp_path / "adapter")
    export(tmp_path / "adapter", tmp_path / "peft")
    assert {path.name for path in (tmp_path / "peft").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    loaded = peft.PeftModel.from_pretrained(plain_model(weights), str(tmp_path / "peft")).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(images()), model(images()), atol=1e-5, rtol=0)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(images()), model(images()), atol=1e-5, rtol=0)
    assert set(merged.state_dict()) == model.plain_keys


def test_config_of_q_and_v_beside_proj(build: Build, tmp_path: Path) -> None:
    """Two updates of qkv are one of rank 2 r; the strength alpha / r of every layer stays."""
    trained(build("lora", lora_targets=["q", "v", "proj"], lora_rank=4, lora_alpha=3.0), tmp_path / "adapter")
    export(tmp_path / "adapter", tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["modules_to_save"]) == (8, 24.0, ["head"])
    layers = ["blocks.0.attn.proj", "blocks.1.attn.proj"]
    assert config["rank_pattern"] == dict.fromkeys(layers, 4)
    assert config["alpha_pattern"] == dict.fromkeys(layers, 12.0)
    assert sorted(config["target_modules"]) == sorted([*layers, "blocks.0.attn.qkv", "blocks.1.attn.qkv"])


def test_deep_models_do_not_confuse_layers_1_and_11(weights: Path, tmp_path: Path) -> None:
    arguments = TINY | {"depth": 12}
    torch.manual_seed(0)
    file = tmp_path / "deep.pth"
    torch.save(timm.create_model(BACKBONE, num_classes=5, **arguments).state_dict(), file)
    model = compose(METHODS["lora"], task=Classification)(
        backbone=BACKBONE,
        backbone_args=arguments,
        pretrained=str(file),
        num_classes=3,
        lora_targets=["qkv"],
        lora_ranks={"blocks.1.attn.qkv": 3},
    )
    trained(model, tmp_path / "adapter")
    export(tmp_path / "adapter", tmp_path / "peft")
    overlay = {"file": str(file), "num_classes": 5}
    plain = timm.create_model(BACKBONE, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3, **arguments)
    loaded = peft.PeftModel.from_pretrained(plain, str(tmp_path / "peft")).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(images()), model(images()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["ssf", "fact", "qlora"])
def test_other_methods_are_refused(method: str, build: Build, tmp_path: Path) -> None:
    trained(build(method), tmp_path / "adapter")
    with pytest.raises(ValueError, match=f"the method of this checkpoint is {METHODS[method].__name__}, and"):
        export(tmp_path / "adapter", tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_a_layer_that_plain_timm_never_calls_is_refused(tmp_path: Path) -> None:
    """An update of peft would have no effect on BEiT's qkv."""
    arguments = {"img_size": 32, "depth": 1, "embed_dim": 48, "num_heads": 3}
    model = compose(METHODS["lora"], task=Classification)(
        backbone="beit_base_patch16_224", backbone_args=arguments, pretrained=False, num_classes=3
    )
    model.configure_model()
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.qkv: timm reads the weight of this layer without calling"):
        low_rank_layers(model)


def test_what_trains_beside_it_is_refused(weights: Path, tmp_path: Path) -> None:
    model = compose(METHODS["lora"], METHODS["bitfit"], task=Classification)(
        backbone=BACKBONE, backbone_args=TINY, pretrained=str(weights), num_classes=3
    )
    trained(model, tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"trained blocks\.0\.attn\.proj\.bias, .* the peft format has no place for"):
        export(tmp_path / "adapter", tmp_path / "peft")


def test_output_is_not_overwritten(build: Build, tmp_path: Path) -> None:
    trained(build("lora"), tmp_path / "adapter")
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "mine").touch()
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        export(tmp_path / "adapter", tmp_path / "peft")


def test_from_the_command_line(build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from train import main

    trained(build("lora"), tmp_path / "adapter")
    main(["export", "--ckpt_path", str(tmp_path / "adapter"), "--output", str(tmp_path / "peft"), "--format", "peft"])
    said = capsys.readouterr().out
    assert "largest difference of a logit, exported against trained:" in said
    # the two lines that it prints are Python, and work
    lines = [line for line in said.splitlines() if line.startswith(("base =", "model ="))]
    names: dict[str, Any] = {"timm": timm, "peft": peft}
    exec("\n".join(lines), names)
    assert names["model"].eval()(images()).shape == (4, 3)
