"""UperNet and its auxiliary head."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_modules.heads.upernet import FCN, UperNet


def size(head: nn.Module) -> int:
    return sum(p.numel() for p in head.parameters())


def test_counts() -> None:
    """Those of transformers' UperNetHead and UperNetFCNHead, which follow mmsegmentation."""
    with torch.device("meta"):
        assert size(UperNet([64, 128, 256, 384], 150)) == 28_826_774
        assert size(UperNet([768] * 4, 150, width=768)) == 67_963_542
        assert size(FCN(256, 150)) == 628_886


def test_same_outputs_as_transformers() -> None:
    upernet = pytest.importorskip("transformers.models.upernet.modeling_upernet")
    torch.manual_seed(0)
    config = SimpleNamespace(hidden_size=16, pool_scales=[1, 2, 3, 6], num_labels=5)
    other, head = upernet.UperNetHead(config, [8, 12, 16, 24]).eval(), UperNet([8, 12, 16, 24], 5, width=16).eval()
    for theirs in other.modules():
        if isinstance(theirs, nn.BatchNorm2d):
            nn.init.normal_(theirs.weight)
            nn.init.normal_(theirs.running_mean)
    # ours in the order of theirs: classifier, pooling, bottleneck, laterals, convolutions, bottleneck of all levels
    order = (
        [head.classifier, *head.pooling.pools, head.pooling.bottleneck],
        [*head.laterals, *head.convs, head.bottleneck],
    )
    state = [tensor for module in [*order[0], *order[1]] for tensor in module.state_dict().values()]
    their = list(other.state_dict().values())
    assert [tensor.shape for tensor in state] == [tensor.shape for tensor in their]
    for ours, value in zip(state, their, strict=True):
        ours.copy_(value)
    maps = [torch.randn(2, c, s, s + 1) for c, s in zip([8, 12, 16, 24], [16, 8, 4, 2], strict=True)]
    torch.testing.assert_close(head(maps), other(maps))


def test_one_image() -> None:
    """Its pooled map has one value a channel, which BatchNorm cannot norm in training."""
    maps = [torch.randn(1, 4, side, side) for side in (8, 4, 2, 1)]
    head = UperNet([4] * 4, 3, width=4)
    with pytest.raises(ValueError, match="batch_size=1: UperNet norms means"):
        head(maps)
    assert head.eval()(maps).shape == (1, 3, 8, 8)
    assert FCN(4, 3, width=5)(torch.randn(2, 4, 3, 2)).shape == (2, 3, 3, 2)
