"""NF4: sizes, rounding and code tables."""

import pytest
import torch

from methods.layers import nf4


@pytest.mark.parametrize("count", [1, 63, 64, 65, 129, 64 * 257])
def test_sizes_that_fill_no_block(count: int) -> None:
    weight = torch.randn(count)
    packed, absmax = nf4.quantize(weight)
    assert packed.shape == ((count + 1) // 2,)
    assert absmax.shape == (-(-count // 64),)
    index, absmax2, offset = nf4.quantize_absmax(absmax)
    assert (index.shape, absmax2.shape) == (absmax.shape, (-(-len(absmax) // 256),))
    torch.testing.assert_close(nf4.dequantize_absmax(index, absmax2, offset), absmax, atol=0.05, rtol=0.05)
    # half of the widest step of the code, relative to the block's largest magnitude
    bound = 0.16 * absmax.repeat_interleave(64)[:count]
    assert ((nf4.dequantize(packed, absmax, (count,)) - weight).abs() <= bound).all()


def test_a_second_rounding_changes_nothing() -> None:
    weight = torch.randn(32, 64)
    once = nf4.dequantize(*nf4.quantize(weight), (32, 64))
    assert torch.equal(nf4.dequantize(*nf4.quantize(once), (32, 64)), once)


def test_a_block_of_zeros_stays_one() -> None:
    packed, absmax = nf4.quantize(torch.zeros(128))
    assert torch.equal(nf4.dequantize(packed, absmax, (128,)), torch.zeros(128))
    assert torch.equal(nf4.dequantize_absmax(*nf4.quantize_absmax(absmax)), absmax)
