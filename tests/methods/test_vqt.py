"""VQT."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from methods import PEFTMethod
from tests.conftest import TINY, composed
from tests.support.golden import Golden, head_parameters

Build = Callable[..., PEFTMethod]

COUNTS = {"vit_base_patch16_224": 9_216}  # one query of 768 channels for each of 12 blocks
IDENTITY: dict[str, Any] | None = None  # the classifier reads other features


def check_vqt(golden: Golden) -> None:
    model = golden.build("vqt", vqt_length=golden.config["method"]["length"])
    weights, gradients = golden.part("peft"), golden.tensors.pop("grad.query")
    blocks: Any = model.backbone.blocks
    for block, value in zip(blocks, weights["query"], strict=True):
        block.vqt.query.data.copy_(value)
    for name, parameter in head_parameters(model).items():
        parameter.data.copy_(weights[name])
    golden.check_logits(model)
    ours = {f"query.{index}": block.vqt.query for index, block in enumerate(blocks)}
    golden.tensors |= {f"grad.query.{index}": gradient for index, gradient in enumerate(gradients)}
    golden.check_gradients(model, ours | head_parameters(model))


GOLDEN = {"vqt": check_vqt}


def test_no_gradient_enters_the_tokens(build: Build) -> None:
    model = build("vqt")
    model.configure_model()
    outputs: list[Tensor] = []
    for block in model.backbone.blocks:  # type: ignore[union-attr]
        block.register_forward_hook(lambda m, args, output: outputs.append(output))
    model(torch.randn(2, 3, 32, 32))
    assert not any(output.requires_grad for output in outputs)


@pytest.mark.parametrize("backbone", ["vit_small_patch16_dinov3", "beit_base_patch16_224"])
def test_a_query_equal_to_a_token_reads_what_the_token_reads(backbone: str) -> None:
    """On position 0, whose class token has no rotation; the bias of BEiT's positions is off, as for all queries."""
    arguments = TINY if "beit" not in backbone else TINY | {"use_rel_pos_bias": False}
    model = composed("vqt")(backbone=backbone, backbone_args=arguments, pretrained=False, num_classes=3)
    model.configure_model()
    model.eval()
    block = model.backbone.blocks[0]  # type: ignore[index]
    kept: list[Tensor] = []
    with torch.no_grad():
        block.register_forward_pre_hook(lambda m, args: kept.append(args[0][0, :1]))
        handle = block.register_forward_hook(lambda m, args, output: kept.append(output[0, :1]))
        model.features(torch.zeros(1, 3, 32, 32))
        block.vqt.query.copy_(kept[0])
        handle.remove()
        block.register_forward_hook(lambda m, args, output: kept.append(m.vqt.summary[0]))
        model.features(torch.zeros(1, 3, 32, 32))
    torch.testing.assert_close(kept[-1], kept[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vqt_length": 0}, "vqt_length=0: expected at least 1 query"),
        ({"vqt_dropout": 1.0}, "vqt_dropout=1.0: expected a probability"),
        ({"backbone": "deit_tiny_distilled_patch16_224"}, "VQT needs one linear classifier"),
        ({"backbone": "resnet18", "backbone_args": {}}, "read the tokens of a plain ViT"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"backbone": "vit_tiny_patch16_224", "backbone_args": TINY, "pretrained": False}
    with pytest.raises(ValueError, match=message):
        composed("vqt")(**arguments | options).adapt_before_data()
