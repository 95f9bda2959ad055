"""Weights from every kind of file, equal to the bit; everything else refused with its reason."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from backbones.timm_models import (
    build_backbone,
    classifier_layers,
    head_modules,
    input_config,
    reset_head,
)
from commands.methods.families import FAMILIES, build
from tests.conftest import BACKBONE, TINY

TAG = f"{BACKBONE}.augreg_in21k"  # its own files are npz, its hub copies safetensors


@pytest.fixture
def state(weights: Path) -> dict[str, Tensor]:
    return load_file(weights)


def augreg(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """A ViT's state dict in the layout of Google's npz releases ("How to train your ViT")."""
    width, heads = TINY["embed_dim"], TINY["num_heads"]
    get = {name: tensor.numpy() for name, tensor in state.items()}.__getitem__
    blocks = "Transformer/encoderblock_"
    out = {
        "cls": get("cls_token"),
        "embedding/kernel": get("patch_embed.proj.weight").transpose(2, 3, 1, 0),  # (H, W, I, O)
        "embedding/bias": get("patch_embed.proj.bias"),
        "Transformer/posembed_input/pos_embedding": get("pos_embed"),
        "Transformer/encoder_norm/scale": get("norm.weight"),
        "Transformer/encoder_norm/bias": get("norm.bias"),
        "head/kernel": get("head.weight").T,
        "head/bias": get("head.bias"),
    }
    for i in range(TINY["depth"]):
        ours, theirs = f"blocks.{i}.", f"{blocks}{i}/"
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        for number, norm in (("0", "norm1"), ("2", "norm2")):
            out[f"{theirs}LayerNorm_{number}/scale"] = get(f"{ours}{norm}.weight")
            out[f"{theirs}LayerNorm_{number}/bias"] = get(f"{ours}{norm}.bias")
        for j, name in enumerate(("query", "key", "value")):
            rows = slice(j * width, (j + 1) * width)
            kernel = get(f"{ours}attn.qkv.weight")[rows].T  # (in, out)
            out[f"{attention}{name}/kernel"] = kernel.reshape(width, heads, width // heads)
            out[f"{attention}{name}/bias"] = get(f"{ours}attn.qkv.bias")[rows].reshape(heads, width // heads)
        out[f"{attention}out/kernel"] = get(f"{ours}attn.proj.weight").T.reshape(heads, width // heads, width)
        out[f"{attention}out/bias"] = get(f"{ours}attn.proj.bias")
        for j in (0, 1):
            out[f"{theirs}MlpBlock_3/Dense_{j}/kernel"] = get(f"{ours}mlp.fc{j + 1}.weight").T
            out[f"{theirs}MlpBlock_3/Dense_{j}/bias"] = get(f"{ours}mlp.fc{j + 1}.bias")
    return out


WRITERS: dict[str, Callable[[dict[str, Tensor], Path], object]] = {
    "model.safetensors": lambda state, path: save_file(state, path),
    "model.pth": lambda state, path: torch.save(state, path),
    "model.bin": lambda state, path: torch.save({"state_dict": state, "epoch": 3}, path),
    "model.npz": lambda state, path: np.savez(path, **augreg(state)),
}


@pytest.mark.parametrize("name", [BACKBONE, TAG])
@pytest.mark.parametrize("file", WRITERS)
def test_every_kind_of_file_gives_the_same_weights(
    file: str, name: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    WRITERS[file](state, tmp_path / file)
    loaded = build_backbone(name, str(tmp_path / file), dict(TINY)).state_dict()
    heads = {key for key in state if key.startswith("head.")}
    if file.endswith(".npz"):  # timm takes a head of the model's own number of classes alone; ours is reset anyway
        loaded = {key: tensor for key, tensor in loaded.items() if key not in heads}
    assert set(loaded) | heads == set(state)
    for key, tensor in loaded.items():
        assert torch.equal(tensor, state[key]), key


def test_file_without_a_classifier(state: dict[str, Tensor], tmp_path: Path) -> None:
    body = {key: tensor for key, tensor in state.items() if not key.startswith("head.")}
    save_file(body, tmp_path / "body.safetensors")
    loaded = build_backbone(TAG, str(tmp_path / "body.safetensors"), dict(TINY)).state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in body.items())


def test_local_dir_round_trip(state: dict[str, Tensor], tmp_path: Path) -> None:
    model = timm.create_model(BACKBONE, num_classes=5, **TINY)
    model.load_state_dict(state)
    save_for_hf(model, tmp_path / "my model", model_args=TINY, safe_serialization=True)
    again = build_backbone(f"local-dir:{tmp_path / 'my model'}", True, {})
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.eval()(images), model.eval()(images))
    assert input_config(again)["mean"] == input_config(model)["mean"]


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weight_file_for_a_local_dir(suffix: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    """The file wins over the weights of the folder, also if its classifier has another number of classes."""
    save_for_hf(timm.create_model(BACKBONE, num_classes=5, **TINY), tmp_path / "model", model_args=TINY)
    file = tmp_path / f"other.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(state, file)
    loaded = build_backbone(f"local-dir:{tmp_path / 'model'}", str(file), {}).state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in state.items())
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"other\.{suffix}' \(\d+ bytes\) is no readable weight file"):
        build_backbone(f"local-dir:{tmp_path / 'model'}", str(file), {})
    save_file({"fc.weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match=r"foreign\.safetensors' does not fit backbone='local-dir:"):
        build_backbone(f"local-dir:{tmp_path / 'model'}", str(tmp_path / "foreign.safetensors"), {})


# damaged, foreign and unsafe files


class Code:
    """Pickled, it creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("file", WRITERS)
def test_empty_and_truncated_files(file: str, share: float, state: dict[str, Tensor], tmp_path: Path) -> None:
    WRITERS[file](state, tmp_path / file)
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=rf"pretrained='.*{file}' .*(no readable weight file|does not fit)"):
        build_backbone(TAG, str(tmp_path / file), dict(TINY))


@pytest.mark.parametrize("file", ["code.pth", "code.npz"])
def test_code_in_a_file_is_not_run(file: str, tmp_path: Path) -> None:
    code = Code(tmp_path / "was run")
    if file.endswith(".npz"):
        np.savez(tmp_path / file, **{"embedding/kernel": np.array([code], dtype=object)})  # type: ignore[arg-type]
    else:
        torch.save({"head.weight": code}, tmp_path / file)
    with pytest.raises(ValueError, match=r"weights_only=True blocked|allow_pickle=False"):
        build_backbone(TAG, str(tmp_path / file), dict(TINY))
    assert not (tmp_path / "was run").exists()


def changed(state: dict[str, Tensor], **other: Any) -> dict[str, Tensor]:
    return timm.create_model(BACKBONE, num_classes=5, **TINY | other).state_dict()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda s: changed(s, depth=3), r"Unexpected key.*blocks\.2"),
        (lambda s: changed(s, depth=1), r"Missing key.*blocks\.1"),
        (lambda s: changed(s, embed_dim=24), r"size mismatch for cls_token"),
        (lambda s: {k: t for k, t in s.items() if k != "norm.bias"}, r'Missing key.*"norm\.bias"'),
        (lambda s: s | {"extra": torch.zeros(1)}, r'Unexpected key.*"extra"'),
        (lambda s: {}, "Missing key"),
    ],
    ids=["deeper", "shallower", "narrower", "a key less", "a key more", "nothing"],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_foreign_weights(content: Any, reason: str, suffix: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / f"foreign.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(content(state), path)  # type: ignore[operator]
    with pytest.raises(ValueError, match=rf"pretrained='.*foreign.*' does not fit backbone='{TAG}': .*{reason}"):
        build_backbone(TAG, str(path), dict(TINY))


def test_messages_stay_short(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "resnet.safetensors")
    with pytest.raises(ValueError) as error:
        build_backbone(TAG, str(tmp_path / "resnet.safetensors"), dict(TINY))
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), "text"], ids=["list", "tensor", "text"])
def test_torch_file_of_something_else(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd\.pth"):
        build_backbone(TAG, str(tmp_path / "odd.pth"), dict(TINY))


def test_npz_of_something_else(state: dict[str, Tensor], tmp_path: Path) -> None:
    np.savez(tmp_path / "odd.npz", weights=np.zeros(3))
    with pytest.raises(ValueError, match=r"odd\.npz' does not fit"):
        build_backbone(TAG, str(tmp_path / "odd.npz"), dict(TINY))
    np.savez(tmp_path / "vit.npz", **augreg(state))
    with pytest.raises(ValueError, match=r"vit\.npz' does not fit backbone='resnet18.a1_in1k'"):
        build_backbone("resnet18.a1_in1k", str(tmp_path / "vit.npz"), {})


# names


def test_unknown_name_names_its_neighbours() -> None:
    with pytest.raises(ValueError, match=r"timm has no such model\. Nearest: .*vit_tiny_patch16_224"):
        build_backbone("vit_tinny_patch16_224", False, {})
    with pytest.raises(ValueError, match=r"no weights with this tag\. Known: augreg_in21k, augreg_in21k_ft_in1k"):
        build_backbone(f"{BACKBONE}.augreg_in22k", False, {})


def test_bare_name_with_pretrained_weights_is_refused() -> None:
    with pytest.raises(ValueError, match=rf"names no weights .* expected one of: {TAG}"):
        build_backbone(BACKBONE, True, {})
    build_backbone(BACKBONE, False, dict(TINY))


def test_without_a_network() -> None:
    source = f"model.safetensors of huggingface.co/timm/{TAG}"
    with pytest.raises(FileNotFoundError, match=rf"Nothing was trained\. Download {source} .*--model.pretrained PATH"):
        build_backbone(TAG, True, {})
    with pytest.raises(FileNotFoundError, match=r"Nothing was trained\. Put its config.json .*local-dir:PATH"):
        build_backbone("hf-hub:timm/some_model", True, {})


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"nothing.pth': no such file\. Download .*{TAG}"):
        build_backbone(TAG, str(tmp_path / "nothing.pth"), {})
    for pretrained in (True, False):
        with pytest.raises(FileNotFoundError, match=r"no such folder, or no config\.json in it\. Put its config\.json"):
            build_backbone(f"local-dir:{tmp_path}", pretrained, {})


# heads and input


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224", "mixer_s32_224"])
def test_heads_of_other_families(name: str) -> None:
    model = timm.create_model(name)
    reset_head(model, 7, "trunc_normal")
    (head,) = head_modules(model).values()
    assert head.weight.shape[0] == 7
    assert model.get_submodule(*head_modules(model)) is head
    assert model.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 7)


def test_two_heads_of_a_distilled_model() -> None:
    model = timm.create_model("deit_tiny_distilled_patch16_224")
    reset_head(model, 7, "zero")
    assert list(head_modules(model)) == ["head", "head_dist"]
    assert not any(head.weight.any() for head in head_modules(model).values())


@pytest.mark.parametrize("name", [n for n, family in FAMILIES.items() if not family.slow])
def test_classifier_is_all_that_timm_resets(name: str) -> None:
    model: Any = build(name)
    old = list(model.parameters())
    model.reset_classifier(7)
    new = {key for key, p in model.named_parameters() if not any(p is q for q in old)}
    layers = classifier_layers(model)
    assert new == {f"{n}.{key}" for n, m in layers.items() for key, p in m._parameters.items() if p is not None}
    reset_head(model, 7, "zero")
    assert len(layers) == len(classifier_layers(model))


@pytest.mark.parametrize("name", ["test_vit3", "resnet50_clip"])
def test_attention_pooling_is_a_part_of_the_head(name: str) -> None:
    with torch.device("meta"):
        model: Any = timm.create_model(name)
    heads = head_modules(model)
    pool = "attn_pool" if name == "test_vit3" else "head"
    inside = {key for key, _ in model.named_parameters() if key.startswith((f"{pool}.", "head."))}
    assert inside == {f"{n}.{key}" for n, m in heads.items() for key, p in m._parameters.items() if p is not None}
    kept = next(iter(model.get_submodule(pool).parameters()))
    model.reset_classifier(7)
    assert any(kept is p for p in model.parameters()), "its pretrained weights stay"


def test_backbone_without_a_classifier() -> None:
    with pytest.raises(ValueError, match="FeatureListNet has no classifier that can be replaced"):
        reset_head(timm.create_model("resnet10t", features_only=True), 7, "zero")


def test_head_initialisation() -> None:
    model: Any = timm.create_model(BACKBONE, **TINY)
    heads: dict[str, Any] = {}
    for init in ("trunc_normal", "linear", "zero", "vpt", "adaptformer"):
        torch.manual_seed(0)
        reset_head(model, 400, init)
        heads[init] = model.head.requires_grad_(False)
        assert model.head.out_features == 400
    assert heads["trunc_normal"].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert heads["linear"].weight.abs().max() <= TINY["embed_dim"] ** -0.5
    assert heads["linear"].weight.std().item() == pytest.approx((3 * TINY["embed_dim"]) ** -0.5, rel=0.05)
    assert not heads["zero"].weight.any()
    assert heads["vpt"].weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.05)
    assert heads["vpt"].bias.sigmoid().tolist() == pytest.approx([0.01] * 400)
    assert [bool(heads[init].bias.any()) for init in heads] == [False, True, False, True, False]
    assert heads["adaptformer"].weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_input_config_follows_the_model() -> None:
    config = input_config(timm.create_model(BACKBONE, **TINY))
    assert config["input_size"] == (3, 32, 32)
    assert config["mean"] == (0.5, 0.5, 0.5)
    assert input_config(timm.create_model("resnet18.a1_in1k"))["mean"] == (0.485, 0.456, 0.406)
    built = timm.models.vision_transformer.VisionTransformer(**TINY)
    assert input_config(built)["input_size"] == (3, 32, 32)
    assert isinstance(built, nn.Module)


def test_input_size_of_sam() -> None:
    """timm keeps 1024 pixels for every ``img_size``."""
    args = {"img_size": 64, "depth": 1, "embed_dim": 32, "num_heads": 2}
    assert input_config(build_backbone("samvit_base_patch16", False, args))["input_size"] == (3, 64, 64)
