"""Low-bit matrices: levels, gradients and bytes."""

from collections.abc import Callable

import pytest
import torch

from checkpoints import packed
from methods.layers import low_bit

CPU = torch.device("cpu")


CODEBOOKS: tuple[low_bit.Codebook, ...] = ("l1_optimal", "official")


@pytest.mark.parametrize(
    ("bits", "levels", "thresholds"),
    [
        (1, [0.674490], []),
        (2, [0.377754, 1.265720], [0.821737]),
        (
            4,
            [0.105550, 0.319036, 0.540072, 0.775192, 1.034006, 1.333107, 1.707738, 2.265491],
            [0.212293, 0.429554, 0.657632, 0.904599, 1.183556, 1.520422, 1.986614],
        ),
    ],
)
@pytest.mark.parametrize("kind", CODEBOOKS)
def test_codebooks(kind: low_bit.Codebook, bits: int, levels: list[float], thresholds: list[float]) -> None:
    """The upper halves; below they mirror."""
    for found, expected in zip(low_bit.codebook(bits, kind, CPU), (levels, thresholds), strict=True):
        torch.testing.assert_close(found, -found.flip(0), atol=1e-6, rtol=0)
        torch.testing.assert_close(found[-len(expected) or len(found) :], torch.tensor(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("bits", "kind", "error"),
    [
        (1, "l1_optimal", 0.473),
        (2, "l1_optimal", 0.266),
        (4, "l1_optimal", 0.0746),
        (8, "l1_optimal", 0.00487),
        (8, "official", 0.0223),
    ],
)
def test_mean_error_over_the_normal_distribution(bits: int, kind: low_bit.Codebook, error: float) -> None:
    """The published iteration stops at 8 bits where 4.6 times less would be possible."""
    x = torch.special.ndtri((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000).float()
    levels, thresholds = low_bit.codebook(bits, kind, CPU)
    snapped = low_bit.NearestLevel.apply(x, levels, thresholds)
    assert float((x - snapped).abs().mean()) == pytest.approx(error, rel=0.02)
    torch.testing.assert_close(snapped, -snapped.flip(0), atol=1e-6, rtol=0)


def test_the_last_levels_of_eight_bits() -> None:
    """The published loop ends at 2.81 instead of about 3.79, its inner levels collapse around 0."""
    assert float(low_bit.codebook(8, "official", CPU)[0][-1]) == pytest.approx(2.81, abs=0.01)
    optimal = low_bit.codebook(8, "l1_optimal", CPU)[0]
    assert float(optimal[-1]) == pytest.approx(3.79, abs=0.01)
    assert (optimal.diff() > 1e-3).all()


def test_a_value_on_a_threshold_takes_the_lower_level() -> None:
    levels, thresholds = low_bit.codebook(2, "l1_optimal", CPU)
    assert torch.equal(low_bit.NearestLevel.apply(thresholds, levels, thresholds), levels[:3])


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", CODEBOOKS)
def test_the_gradient_is_that_of_the_formula(bits: int, kind: low_bit.Codebook) -> None:
    torch.manual_seed(bits)
    latent = (0.3 * torch.randn(5, 7) + 0.1).double().requires_grad_()
    g = torch.randn(5, 7, dtype=torch.float64)
    (found,) = torch.autograd.grad(low_bit.effective(latent, bits, kind), latent, g)
    with torch.no_grad():
        mean, std, eps = latent.mean(), latent.std(), 1e-5
        u = latent - mean
        levels, thresholds = low_bit.codebook(bits, kind, CPU)
        q = levels.double()[(u[..., None] / (std + eps) > thresholds).sum(-1)]
        through = std / (std + eps) * (g - g.mean()) + g.mean()
        expected = through + u / (34 * std) * (g * (q - std * u / (std + eps) ** 2)).sum()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_few_values_and_one_entry_moves_all(bits: int) -> None:
    torch.manual_seed(0)
    latent = torch.randn(24, 32)
    matrix = low_bit.effective(latent, bits, "l1_optimal")
    assert len(matrix.unique()) <= 2**bits
    moved = latent.clone()
    moved[3, 4] += 0.5
    assert (low_bit.effective(moved, bits, "l1_optimal") != matrix).all()


def test_zeros_have_no_scale() -> None:
    """Why the projection back does not start at zero: only the mean of the gradient would reach it."""
    latent = torch.zeros(4, 5, requires_grad=True)
    matrix = low_bit.effective(latent, 1, "l1_optimal")
    assert not matrix.any()
    g = torch.randn(4, 5)
    matrix.backward(g)
    assert latent.grad is not None
    torch.testing.assert_close(latent.grad, g.mean().expand(4, 5))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 32])
@pytest.mark.parametrize("shape", [(6, 16), (1, 7), (3, 5), (8, 1)], ids=str)
def test_a_record_is_what_it_was(bits: int, shape: tuple[int, int]) -> None:
    latent = torch.randn(shape)
    record = packed.Record("matrix", shape, bits)
    data = low_bit.write_record(latent, bits, "l1_optimal")
    assert len(data) == record.nbytes
    expected = latent if bits == 32 else low_bit.effective(latent, bits, "l1_optimal")
    assert torch.equal(low_bit.read_record(data, record, "l1_optimal"), expected)


def test_bytes_begin_with_the_lowest_bits() -> None:
    assert low_bit.pack(torch.tensor([1, 0, 0, 0, 0, 0, 0, 0, 1, 1]), 1) == bytes([0b1, 0b11])
    assert low_bit.pack(torch.tensor([3, 0, 1, 2, 2]), 2) == bytes([0b10_01_00_11, 0b10])
    assert low_bit.pack(torch.tensor([[15, 1], [2, 7]]), 4) == bytes([0x1F, 0x72])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "truncated, or of other settings: 12 bytes of weights, and these settings have 13"),
        (lambda data: data + b"x", "too long, or of other settings: 14 bytes"),
        (lambda data: b"", "truncated, or of other settings: 0 bytes"),
        (lambda data: data[:4] + b"\xff" + data[5:], "matrix is damaged: its last byte is not padded with zeros"),
        (lambda data: data[:-1] + b"\xff", "matrix is damaged: its standard deviation is (nan|-)"),
        (lambda data: data[:5] + b"\x00\x00\x80\x7f" + data[9:], "matrix is damaged: it holds NaN or infinity"),
    ],
)
def test_damaged_payload(change: Callable[[bytes], bytes], message: str) -> None:
    torch.manual_seed(0)
    records = [packed.Record("matrix", (5, 7), 1)]  # 35 bits: the last five of five bytes are padding
    data = low_bit.write_payload({"matrix": torch.randn(5, 7)}, records, "l1_optimal")
    with pytest.raises(ValueError, match=message):
        low_bit.read_payload(change(data), records, "l1_optimal")
