"""A norm with other outputs than torch's; the others are tested with their models."""

import pytest
import torch
from torch import Tensor, nn

from backbones.transformers_layers import library_layers, linear_of, rms_norm_of

pytest.importorskip("transformers")


def test_a_norm_with_other_outputs_stays() -> None:
    """Gemma's norm multiplies by 1 + weight."""

    class OtherRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.zeros(8)), 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.rms_norm(x, (8,), 1 + self.weight, self.eps)

    assert rms_norm_of(OtherRMSNorm()) is None


def test_transposed_layers() -> None:
    """There and back."""
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    layer, x = Conv1D(6, 4), torch.rand(2, 4)
    linear = linear_of(layer)
    torch.testing.assert_close(linear(x), layer(x))
    back = library_layers(nn.Sequential(linear), nn.Sequential(Conv1D(6, 4)))
    assert type(back[0]) is Conv1D
    assert torch.equal(back[0].weight, layer.weight)
