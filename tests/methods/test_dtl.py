"""DTL."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from callbacks.measures import SavedBytes
from methods import PEFTMethod
from tests.conftest import composed, perturb
from tests.support.golden import Golden, head_parameters

Build = Callable[..., PEFTMethod]

COUNTS = {"vit_base_patch16_224": 43_776}  # 12 layers of rank 2 and a 3 x 3 convolution; the paper prints 0.04M
IDENTITY: dict[str, Any] | None = {}


def check_dtl(golden: Golden) -> None:
    options = {f"dtl_{name}": value for name, value in golden.config["method"].items()}
    model = golden.build("dtl", **options)
    side: Any = model.side
    names = {"lora_fusion.weight": side.conv.weight}
    for index, layer in enumerate(side.layers):
        names |= {f"lora_dict.{index}.lora_A": layer.A, f"lora_dict.{index}.lora_B": layer.B}
    for name, value in golden.part("peft").items():
        names[name].data.copy_(value)
    golden.check_logits(model)
    golden.check_gradients(model, names | head_parameters(model))


GOLDEN = {"dtl": check_dtl}


def test_equation(build: Build) -> None:
    """By hand, on two blocks with feedback behind the second one."""
    model = build("dtl", dtl_beta=2.0, dtl_kernel=0)
    model.configure_model()
    perturb(model.eval(), 0.3)
    backbone, layers, images = model.backbone, model.side.layers, torch.randn(2, 3, 32, 32)  # type: ignore[union-attr]

    def blocks(x: Tensor) -> Tensor:
        for block in backbone.blocks:  # type: ignore[union-attr]
            for hooks in (block._forward_hooks, block._forward_pre_hooks):
                hooks.clear()
        first = backbone.blocks[0](x)  # type: ignore[index, operator]
        h = x @ layers[0].A.T @ layers[0].B.T + first @ layers[1].A.T @ layers[1].B.T  # type: ignore[index, union-attr]
        return backbone.blocks[1](first) + h * torch.sigmoid(2 * h)  # type: ignore[index, operator]

    with torch.no_grad():
        found = model(images)
        start = backbone._pos_embed(backbone.patch_embed(images))  # type: ignore[operator]
        expected = model.predict_from(backbone.norm(blocks(start)))  # type: ignore[operator]
    torch.testing.assert_close(found, expected)


def test_blocks_before_the_feedback_keep_nothing(build: Build) -> None:
    model = build("dtl")
    model.configure_model()
    outputs: list[Tensor] = []
    for block in model.backbone.blocks:  # type: ignore[union-attr]
        block.register_forward_hook(lambda m, args, output: outputs.append(output))
    model(torch.randn(2, 3, 32, 32))
    assert [output.requires_grad for output in outputs] == [False, True]


def test_other_sizes_of_images() -> None:
    options: dict[str, Any] = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model = composed("dtl")(
        backbone="vit_tiny_patch16_224", backbone_args=options | {"dynamic_img_size": True}, pretrained=False
    )
    model.configure_model()
    assert model(torch.randn(2, 3, 32, 48)).shape == model(torch.randn(2, 3, 64, 32)).shape == (2, 1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtl_rank": 0}, "dtl_rank=0: expected a positive rank"),
        ({"dtl_beta": 0.0}, "expected a positive slope"),
        ({"dtl_kernel": 2}, "dtl_kernel=2: expected an odd size"),
        ({"dtl_feedback": 3}, "dtl_feedback=3: expected the number of a block, 1 to 2"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str, build: Build) -> None:
    with pytest.raises(ValueError, match=message):
        build("dtl", **options).configure_model()


def test_recomputed_blocks_give_equal_gradients(build: Build) -> None:
    found = []
    for enabled in (False, True):
        model = build("dtl", dtl_feedback=1, drop_path=0.2)
        model.configure_model()
        perturb(model.train())
        model.recompute(enabled)
        torch.manual_seed(1)
        with SavedBytes(model) as saved:
            loss = model(torch.ones(2, 3, 32, 32)).square().sum()
        loss.backward()
        found.append((saved.bytes, [p.grad for p in model.side.parameters()]))  # type: ignore[union-attr]
        model.recompute(False)
    (before, plain), (after, gradients) = found
    assert all(map(torch.equal, plain, gradients))  # type: ignore[arg-type]
    assert after < before
    assert not any("forward" in vars(block) for block in model.backbone.blocks)  # type: ignore[union-attr]
