"""Adapters that HF peft has written, as adapter folders of this project."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from commands.export import export
from commands.import_peft import import_peft
from methods import PEFTMethod
from tests.commands.test_export import OPTIONS, images, plain_model, trained
from tests.conftest import BACKBONE, TINY

Build = Callable[..., PEFTMethod]


def peft_adapter(folder: Path, weights: Path, **options: Any) -> Any:
    """Train-like weights of a real peft model, saved by peft."""
    torch.manual_seed(2)
    options = {"r": 4, "lora_alpha": 6, "target_modules": ["qkv", "attn.proj"], "modules_to_save": ["head"]} | options
    plain = plain_model(weights, 3 if options["modules_to_save"] else 5)
    model = peft.get_peft_model(plain, peft.LoraConfig(**options)).eval()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (nn.init.uniform_(parameter, 0.5, 1.5) if "magnitude" in name else nn.init.normal_(parameter, std=0.1))
    model.save_pretrained(str(folder))
    return model


def convert(folder: Path, weights: Path, output: Path, **options: Any) -> None:
    import_peft(folder, BACKBONE, output, pretrained=str(weights), backbone_args=TINY, **options)


PEFT_OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rank-stabilised": {"use_rslora": True},
    "dora": {"use_dora": True, "target_modules": ["fc1", "fc2"]},
    "patterns": {
        "target_modules": r"blocks\.\d\.(attn\.qkv|mlp\.fc1)",
        "rank_pattern": {"qkv": 3},
        "alpha_pattern": {"blocks.1.mlp.fc1": 11, r"blocks.\d.attn.qkv": 9},
    },
    "one layer": {"target_modules": ["blocks.1.mlp.fc2"], "layers_to_transform": None},
    "own classifier": {"modules_to_save": None},
}


@pytest.mark.parametrize("options", PEFT_OPTIONS.values(), ids=PEFT_OPTIONS)
def test_computes_what_peft_computes(options: dict[str, Any], weights: Path, tmp_path: Path) -> None:
    expected = peft_adapter(tmp_path / "peft", weights, **options)
    convert(tmp_path / "peft", weights, tmp_path / "adapter")
    model = PEFTMethod.from_delta(tmp_path / "adapter")
    assert model.method_name() == ("DoRA" if options.get("use_dora") else "LoRA")
    with torch.no_grad():
        torch.testing.assert_close(model(images()), expected(images()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_there_and_back(method: str, options: dict[str, Any], build: Build, weights: Path, tmp_path: Path) -> None:
    model = trained(build(method, **options), tmp_path / "first")
    export(tmp_path / "first", tmp_path / "peft")
    convert(tmp_path / "peft", weights, tmp_path / "second", class_names=["a", "b", "c"])
    again: Any = PEFTMethod.from_delta(tmp_path / "second")
    assert again.class_names == ["a", "b", "c"]
    with torch.no_grad():
        torch.testing.assert_close(again(images()), model(images()), atol=1e-5, rtol=0)
    export(tmp_path / "second", tmp_path / "third")
    first, third = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("peft", "third"))
    assert first.keys() == third.keys()
    assert all(first[name].shape == third[name].shape for name in first)


def test_targets_are_short_where_they_can_be(weights: Path, tmp_path: Path) -> None:
    peft_adapter(tmp_path / "peft", weights)
    convert(tmp_path / "peft", weights, tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["hyper_parameters"]
    assert saved["lora_targets"] == ["proj", "qkv"]
    assert (saved["lora_rank"], saved["lora_alpha"], saved["lora_scaling"]) == (4, 1.5, "alpha")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; expected 'LORA'"),
        ({"bias": "lora_only"}, "has bias='lora_only'"),
        ({"fan_in_fan_out": True}, "has fan_in_fan_out=True"),
        ({"init_lora_weights": "pissa_niter_4"}, "has init_lora_weights='pissa_niter_4'"),
        ({"use_dora": True}, "use_dora is True, but .* holds a layer without a magnitude"),
        ({"lora_alpha": 0}, r"lora_alpha=0\.0: expected a positive number"),
        ({"alpha_pattern": {"(": 2}}, r"alpha_pattern has '\(', which is no regular expression"),
    ],
    ids=str,
)
def test_configs_that_say_more_are_refused(change: dict[str, Any], message: str, weights: Path, tmp_path: Path) -> None:
    peft_adapter(tmp_path / "peft", weights)
    path = tmp_path / "peft" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "peft", weights, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


LAYER = "base_model.model.blocks.0.attn.qkv"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{LAYER}.lora_B.weight": None}, r"blocks\.0\.attn\.qkv has no fitting pair"),
        ({f"{LAYER}.lora_A.weight": torch.zeros(4, 48, 1, 1)}, r"blocks\.0\.attn\.qkv has no fitting pair"),
        (
            {f"{LAYER}.lora_embedding_A": torch.zeros(4, 48)},
            r"holds blocks\.0\.attn\.qkv\.lora_embedding_A: it is no LoRA",
        ),
        (
            {f"{LAYER}.lora_A.weight": torch.zeros(4, 32)},
            r"backbone\.blocks\.0\.attn\.qkv\.lora\.A has shape \(4, 32\)",
        ),
        ({f"{LAYER}.lora_A.weight": torch.full((4, 48), torch.nan)}, r"blocks\.0\.attn\.qkv\.lora\.A holds NaN"),
        ({"base_model.model.norm.weight": torch.zeros(48)}, r"unknown backbone\.norm\.weight"),
        (
            {
                "base_model.model.x.lora_A.weight": torch.zeros(4, 48),
                "base_model.model.x.lora_B.weight": torch.zeros(48, 4),
            },
            "no linear layer's or convolution's name ends with 'x'",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_tensors_that_do_not_fit_are_refused(
    change: dict[str, Any], message: str, weights: Path, tmp_path: Path
) -> None:
    peft_adapter(tmp_path / "peft", weights)
    path = tmp_path / "peft" / "adapter_model.safetensors"
    tensors = load_file(path) | change
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "peft", weights, tmp_path / "adapter")


def test_missing_and_damaged_files_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="a peft adapter holds"):
        convert(tmp_path, weights, tmp_path / "adapter")
    peft_adapter(tmp_path / "peft", weights)
    file = tmp_path / "peft" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="is empty or damaged"):
        convert(tmp_path / "peft", weights, tmp_path / "adapter")


def test_a_classifier_must_be_somewhere(weights: Path, tmp_path: Path) -> None:
    headless = tmp_path / "headless.pth"
    torch.save(timm.create_model(BACKBONE, num_classes=0, **TINY).state_dict(), headless)
    peft_adapter(tmp_path / "peft", weights, modules_to_save=None)
    with pytest.raises(ValueError, match="has a classifier; save it with modules_to_save"):
        convert(tmp_path / "peft", headless, tmp_path / "adapter")
    peft_adapter(tmp_path / "other", weights)
    with pytest.raises(ValueError, match="class_names has 2 entries, and the classifier 3 outputs"):
        convert(tmp_path / "other", weights, tmp_path / "adapter", class_names=["a", "b"])


def test_from_the_command_line(weights: Path, tmp_path: Path) -> None:
    from train import main

    expected = peft_adapter(tmp_path / "peft", weights)
    arguments = {
        "adapter": tmp_path / "peft",
        "backbone": BACKBONE,
        "output": tmp_path / "adapter",
        "pretrained": weights,
    }
    options = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    main(["import_peft", *options, f"--backbone_args={json.dumps(TINY)}", "--class_names=[daisy,rose,tulip]"])
    with torch.no_grad():
        found = PEFTMethod.from_delta(tmp_path / "adapter")(images())
        torch.testing.assert_close(found, expected(images()), atol=1e-5, rtol=0)
