"""Chosen entries of frozen tensors."""

import copy
import pickle
from typing import Any

import pytest
import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from methods.layers.sparse import CHUNK, EntriesLinear, merge_entries, product_entries, train_entries
from tests.conftest import perturb


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), LayerNorm2d(8), nn.Flatten(2), nn.Linear(16, 40), nn.LayerNorm(40)]
    return nn.Sequential(*layers, nn.Linear(40, 5, bias=False)).requires_grad_(False)


def choose(model: nn.Module, share: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randperm(p.numel(), generator=generator)[: max(1, int(share * p.numel()))].sort().values
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("share", [0.001, 0.3])  # entry by entry, and through the whole gradient
def test_gradients_are_those_of_the_dense_model(share: float) -> None:
    model, dense = network(), network().requires_grad_(True)
    chosen = choose(model, share)
    train_entries(model, chosen)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    y, expected = model(x), dense(x)
    assert torch.equal(y, expected)  # nothing has moved yet
    d_x = torch.autograd.grad(expected.square().sum(), [x, *dense.parameters()])
    y.square().sum().backward()
    torch.testing.assert_close(x.grad, d_x[0])
    for (name, indices), gradient in zip(chosen.items(), d_x[1:], strict=True):
        path, _, kind = name.rpartition(".")
        entries: Any = model.get_submodule(f"{path}.{kind}_entries")
        torch.testing.assert_close(entries.values.grad, gradient.flatten()[indices], atol=1e-4, rtol=1e-4)


def test_merge_is_exact_and_leaves_plain_modules() -> None:
    model = network()
    train_entries(model, choose(model, 0.2))
    perturb(model, 1.0)
    x = torch.randn(2, 3, 4, 4)
    expected = model(x)
    with torch.no_grad():
        merge_entries(model)
    assert torch.equal(model(x), expected)
    assert [type(a) for a in model.modules()] == [type(b) for b in network().modules()]
    assert set(model.state_dict()) == set(network().state_dict())


class Table(nn.Module):
    """A module that reads parameters of its own, as class tokens and layer scales are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.scale = nn.Parameter(torch.randn(1, 4, 6)), nn.Parameter(torch.randn(6))
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x * self.scale + self.table, self.linear.weight)


def test_parameters_of_any_module() -> None:
    """Read as they are named, with gradients of the chosen entries; copies and merges like all others."""
    dense, model = Table(), Table().requires_grad_(False)
    chosen = {"table": torch.tensor([0, 3, 17]), "scale": torch.tensor([5])}
    train_entries(model, chosen)
    x = torch.randn(2, 4, 6)
    assert torch.equal(model(x), dense(x))
    assert set(Table().state_dict()) <= set(model.state_dict())
    model(x).square().sum().backward()
    dense(x).square().sum().backward()
    for name, indices in chosen.items():
        torch.testing.assert_close(
            model._modules[f"{name}_entries"].values.grad, dense.get_parameter(name).grad.flatten()[indices]
        )
    with torch.no_grad():
        for values in [p for p in model.parameters() if p.requires_grad]:
            values += 1
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), expected)
        with torch.no_grad():
            merge_entries(other)
            assert torch.equal(other(x), expected)
        assert type(other) is Table
        assert set(other.state_dict()) == set(Table().state_dict())
        assert vars(other).keys() == vars(Table()).keys()
    assert torch.equal(model(x), expected)


def test_entry_by_entry_is_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHUNK, "cpu", 64)  # several chunks
    g, x = torch.randn(30, 7), torch.randn(30, 11)
    rows, columns = torch.randint(7, (20,)), torch.randint(11, (20,))
    torch.testing.assert_close(product_entries(g, x, rows, columns), (g.t() @ x)[rows, columns])


def test_few_entries_keep_few_columns() -> None:
    """What autograd keeps of the input is one column per entry, not the input."""
    layer = nn.Linear(1000, 4)
    saved: list[int] = []
    x = torch.randn(50, 1000, requires_grad=True)
    values = layer.weight.detach().flatten()[:3].clone().requires_grad_(True)

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = EntriesLinear.apply(x, layer.weight.detach(), None, values, torch.arange(3, dtype=torch.int32))
    assert 50 * 3 in saved
    assert x.numel() not in saved
    y.sum().backward()
    torch.testing.assert_close(values.grad, x.detach().sum(0)[:3])


def test_bf16_autocast_keeps_fp32_values() -> None:
    model = network()
    train_entries(model, choose(model, 0.2))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(2, 3, 4, 4)).float().square().sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained
    assert all(p.dtype is torch.float32 and p.grad is not None and p.grad.dtype is torch.float32 for p in trained)


def test_convolution_with_named_padding() -> None:
    """``padding="same"``, as in ConvMixer."""
    dense, model = nn.Conv2d(2, 4, 3, padding="same"), nn.Sequential(nn.Conv2d(2, 4, 3, padding="same"))
    model[0].load_state_dict(dense.state_dict())
    model.requires_grad_(False)
    indices, x = torch.tensor([1, 30]), torch.randn(1, 2, 5, 5)
    train_entries(model, {"0.weight": indices})
    model(x).square().sum().backward()
    dense(x).square().sum().backward()
    values: Any = model[0].get_submodule("weight_entries").values
    torch.testing.assert_close(values.grad, dense.weight.grad.flatten()[indices])


def test_bad_choices_are_refused() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"3\.weight: an index lies outside its 640 entries"):
        train_entries(model, {"3.weight": torch.tensor([640])})
    packed = nn.Sequential(nn.ReLU())
    packed[0].weight = nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"0\.weight: single entries of packed bytes cannot train"):
        train_entries(packed, {"0.weight": torch.tensor([1])})
    train_entries(model, {"3.weight": torch.tensor([], dtype=torch.long)})
    assert not any(p.requires_grad for p in model.parameters())
