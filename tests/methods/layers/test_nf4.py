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


def test_tables_are_ascending_and_reach_one() -> None:
    """The 4-bit code holds 0 and both ends; the 8-bit code has its resolution near 0."""
    code, nested = nf4.code(torch.device("cpu")), nf4.nested_code(torch.device("cpu"))
    assert (len(code), len(nested)) == (16, 256)
    assert (code.diff() > 0).all()
    assert (nested.diff() > 0).all()
    assert (float(code[0]), float(code[7]), float(code[-1])) == (-1, 0, 1)
    assert float(nested[-1]) == 1
    assert 0 in nested
    assert float(nested[nested > 0].min()) < 1e-6


def test_nearest_is_the_nearest() -> None:
    values = torch.linspace(-1.2, 1.2, 999)
    for table in (nf4.code(torch.device("cpu")), nf4.nested_code(torch.device("cpu"))):
        distance = (values[:, None] - table).abs()
        found = distance.gather(1, nf4.nearest(values, table)[:, None]).squeeze(1)
        torch.testing.assert_close(found, distance.amin(dim=1), atol=1e-7, rtol=0)


def test_the_first_value_of_a_byte_stands_in_the_high_bits() -> None:
    code = nf4.code(torch.device("cpu"))
    packed, absmax = nf4.quantize(torch.cat([code[[0, 15]], code[[3, 9]], torch.zeros(60)]))
    assert packed[:3].tolist() == [0x0F, 0x39, 0x77]
    assert absmax.tolist() == [1.0]
    assert nf4.pairs(torch.device("cpu"))[0x39].tolist() == code[[3, 9]].tolist()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_rounding_follows_the_scale(scale: float) -> None:
    weight = torch.randn(64, generator=torch.Generator().manual_seed(0))
    packed, absmax = nf4.quantize(weight * scale)
    assert torch.equal(packed, nf4.quantize(weight)[0])
    torch.testing.assert_close(absmax, nf4.quantize(weight)[1] * scale)
