"""Several adapters in one forward pass: for every method equal to each alone, or refused by its name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.delta import write_adapter
from methods import METHODS, PEFTMethod
from methods.core.adapters import Adapters
from tests.conftest import TINY, checkpoint_of
from tests.methods.test_contract import adapt

Build = Callable[..., PEFTMethod]
REFUSED = {"bi_adapter": "cannot serve several adapters in one pass"}  # no batched search in a codebook
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def written(model: PEFTMethod, folder: Path, number: int, method: str = "") -> Path:
    """Adapter folder of a model whose trained tensors are far from those of other numbers."""
    adapt(method, model)
    draw = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    write_adapter(folder, checkpoint_of(model))
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_mixed_batch_is_each_alone(method: str, build: Build, tmp_path: Path) -> None:
    models: list[Any] = [build(method), build(method)]
    paths = {name: written(model, tmp_path / name, ord(name), method) for name, model in zip("ab", models, strict=True)}
    if method in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[method]):
            Adapters.load(paths)
        return
    adapters = Adapters.load(paths)
    mixed = adapters(IMAGES, ["b", "a", "b"])
    with torch.no_grad():
        for model in models:
            model.eval().fix_shapes()
        first, second = (model(IMAGES) for model in models)
    torch.testing.assert_close(mixed, torch.stack([second[0], first[1], second[2]]), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(adapters(IMAGES, ["b"] * 3), second, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(first, second, atol=1e-2), "the adapters would be alike"


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lora", {}, "'a' and 'b' differ in method: SSF and LoRA"),
        ("ssf", {"pretrained": False, "backbone_args": TINY | {"depth": 1}}, "differ in frozen weights"),
        ("ssf", {"num_classes": 4, "class_names": ["w", "x", "y", "z"]}, r"differ in classes: .* one method, backbone"),
        ("ssf", {"num_classes": 4}, r"of SSF have other sizes of backbone.head.bias: \(3,\) and \(4,\)"),
    ],
    ids=["method", "backbone", "classes", "number of classes"],
)
def test_what_cannot_share_a_pass(
    method: str, options: dict[str, Any], message: str, build: Build, tmp_path: Path
) -> None:
    names = options.pop("class_names", [])
    first = written(build("ssf"), tmp_path / "a", 0)
    other: Any = build(method, **options)
    other.adopt({"class_names": names})
    with pytest.raises(ValueError, match=message):
        Adapters.load({"a": first, "b": written(other, tmp_path / "b", 1, method)})


def test_names(build: Build, tmp_path: Path) -> None:
    path = written(build("linear_probe"), tmp_path / "a", 0)
    adapters = Adapters.load([path])
    assert adapters.names == [str(path)]
    with pytest.raises(ValueError, match=r"no adapter 'b' is loaded; there are .*a"):
        adapters(IMAGES, ["b"] * 3)
    with pytest.raises(ValueError, match="1 names of adapters for 3 images"):
        adapters(IMAGES, [str(path)])
    with pytest.raises(ValueError, match="expected at least one adapter"):
        Adapters.load([])
