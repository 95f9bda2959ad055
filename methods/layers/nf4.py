"""NF4: four-bit storage of weights whose values are normally distributed (Dettmers et al., arXiv:2305.14314).

A weight is cut row-major into blocks of 64 values. A block stores its largest magnitude (absmax) and, for each value,
the index of the nearest of 16 quantiles of a normal distribution. Double quantisation stores the absmax values in 8
bits too. The bytes are equal to those of bitsandbytes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.layers.constants import computed_once

BLOCK = 64  # values that share an absmax
NESTED_BLOCK = 256  # absmax values that share a second absmax
# fmt: off
CODE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
# fmt: on


@computed_once
def code(device: torch.device) -> Tensor:
    """Quantiles (16,) of the code."""
    return torch.tensor(CODE, device=device, dtype=torch.float32)


@computed_once
def pairs(device: torch.device) -> Tensor:
    """Two values (256, 2) of each byte; the first has the high four bits."""
    byte = torch.arange(256, device=device)
    return code(device)[torch.stack([byte >> 4, byte & 15], dim=1)]


@computed_once
def nested_code(device: torch.device) -> Tensor:
    """Values (256,) of the 8-bit code for absmax values, ascending from -0.99 to 1.

    The resolution grows with the magnitude: the decade below ``10^-i`` (i = 0 to 6) has ``2^(6-i)`` values of either
    sign, the midpoints of equal steps over 0.1 to 1. The values 0 and 1 are added.
    """
    values = [torch.tensor([0.0, 1.0])]
    for decade in range(7):
        steps = torch.linspace(0.1, 1, 2**decade + 1)
        middles = 10.0 ** (decade - 6) * (steps[:-1] + steps[1:]) / 2
        values += [middles, -middles]
    return torch.cat(values).sort().values.to(device)


def nearest(values: Tensor, table: Tensor) -> Tensor:
    """Index of the nearest entry of an ascending table for each value."""
    return torch.bucketize(values, (table[:-1] + table[1:]) / 2)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes of two values each (ceil(n / 2),) and absmax (ceil(n / 64),) of a weight of n values."""
    values = weight.detach().float().flatten()
    blocks = F.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
    absmax = blocks.abs().amax(dim=1)
    scaled = blocks / absmax.where(absmax > 0, 1)[:, None]  # no division by zero in a block of zeros
    index = nearest(scaled, code(weight.device)).to(torch.uint8).flatten()
    packed = index[0::2] << 4 | index[1::2]
    return packed[: (len(values) + 1) // 2], absmax


def dequantize(packed: Tensor, absmax: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Weight of the given shape from its bytes and absmax."""
    values = F.embedding(packed.int(), pairs(packed.device)).flatten()
    blocks = F.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK) * absmax[:, None]
    return blocks.flatten()[: torch.Size(shape).numel()].view(shape).to(dtype)


def quantize_absmax(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bytes (n,), absmax of their blocks (ceil(n / 256),) and offset (1,) of n absmax values."""
    # in double precision, because an fp32 mean depends on the order of the sum, which differs between devices
    offset = absmax.double().mean().float().view(1)
    blocks = F.pad(absmax - offset, (0, -len(absmax) % NESTED_BLOCK)).view(-1, NESTED_BLOCK)
    absmax2 = blocks.abs().amax(dim=1)
    index = nearest(blocks / absmax2.where(absmax2 > 0, 1)[:, None], nested_code(absmax.device))
    return index.flatten()[: len(absmax)].to(torch.uint8), absmax2, offset


def dequantize_absmax(index: Tensor, absmax2: Tensor, offset: Tensor) -> Tensor:
    """Absmax values (n,) from the results of ``quantize_absmax``."""
    scales = absmax2.repeat_interleave(NESTED_BLOCK)[: len(index)]
    return F.embedding(index.int(), nested_code(index.device)[:, None]).flatten() * scales + offset
