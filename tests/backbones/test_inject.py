"""Ways into a backbone: outputs and parameters that children rewrite, and classes that share weights."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backbones.inject import (
    AdapterModule,
    Parametrized,
    attach,
    attach_before,
    detach,
    merge_parametrized,
    modules_with,
    parametrize_in_place,
    swap_class,
)


class Times(AdapterModule):
    """Multiplies an output, or a parameter, by a trained number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return self.factor * output

    def pre_hook(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.factor * args[0],)

    def forward(self, value: Tensor) -> Tensor:
        return self.factor * value


class Doubled(nn.Linear):
    """A linear layer with twice the output."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).requires_grad_(False)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


# attach


def test_attached_module_rewrites_the_input(model: Any, x: Tensor) -> None:
    plain = model(3.0 * x)
    attach_before(model[0], "times", Times(3.0))
    assert torch.equal(model(x), plain)
    assert torch.equal(copy.deepcopy(model)(x), plain)
    with pytest.raises(ValueError, match="has a child 'times' already"):
        attach_before(model[0], "times", Times(3.0))
    detach(model[0], "times")
    assert torch.equal(model(3.0 * x), plain)


def test_attached_module_rewrites_the_output(model: Any, x: Tensor) -> None:
    plain, keys = model(x), set(model.state_dict())
    attach(model[2], "times", Times(3.0))
    torch.testing.assert_close(model(x), 3 * plain)
    assert set(model.state_dict()) == keys | {"2.times.factor"}
    assert list(modules_with(model, "times")) == [model[2]]


def test_detach_is_the_inverse_of_attach(model: Any, x: Tensor) -> None:
    plain = model(x)
    op = Times(3.0)
    attach(model[2], "times", op)
    other = model[2].register_forward_hook(lambda module, args, output: output + 1)
    assert detach(model[2], "times") is op
    torch.testing.assert_close(model(x), plain + 1)  # the hook of somebody else stays
    other.remove()
    assert torch.equal(model(x), plain)
    attach(model[2], "times", op)  # the name is free again


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_have_their_own_hook(duplicate: Any, model: Any, x: Tensor) -> None:
    attach(model[2], "times", Times(3.0))
    before = model(x)
    other = duplicate(model)
    with torch.no_grad():
        other[2].times.factor.fill_(0.0)
    assert torch.equal(model(x), before)
    assert not other(x).any()


def test_a_name_is_taken_once(model: Any) -> None:
    attach(model[0], "times", Times(1.0))
    for insert in (attach, lambda module, name, op: parametrize_in_place(module, "weight", name, op)):
        with pytest.raises(ValueError, match="Linear has a child 'times' already: was the method applied twice"):
            insert(model[0], "times", Times(1.0))
        with pytest.raises(ValueError, match="has a child 'bias' already"):
            insert(model[0], "bias", Times(1.0))


def test_a_module_without_a_hook_is_refused(model: Any, x: Tensor) -> None:
    attach(model[0], "empty", AdapterModule())
    with pytest.raises(TypeError, match="AdapterModule rewrites no output"):
        model(x)


# swap_class


def test_swapped_class_shares_the_weights(model: Any, x: Tensor) -> None:
    plain, weight = model(x), model[2].weight
    swap_class(model[2], Doubled)
    assert model[2].weight is weight
    assert torch.equal(model(x), 2 * plain)
    swap_class(model[2], nn.Linear)
    assert torch.equal(model(x), plain)


def test_other_classes_are_refused(model: Any) -> None:
    with pytest.raises(TypeError, match="Linear and Conv2d do not share their weights"):
        swap_class(model[0], nn.Conv2d)
    assert type(model[0]) is nn.Linear


# parametrize_in_place


def test_reading_gives_what_the_child_makes(model: Any, x: Tensor) -> None:
    stored, keys = model[0].weight, set(model.state_dict())
    parametrize_in_place(model[0], "weight", "times", Times(3.0))
    parametrize_in_place(model[0], "bias", "more", Times(5.0))
    assert isinstance(model[0], nn.Linear)
    assert torch.equal(model[0].weight, 3 * stored)
    assert dict(model.named_parameters())["0.weight"] is stored, "the frozen weight keeps its name and its values"
    assert set(model.state_dict()) == keys | {"0.times.factor", "0.more.factor"}
    expected = nn.functional.linear(x, 3 * stored, 5 * model[0]._parameters["bias"])
    torch.testing.assert_close(model[0](x), expected)


def test_gradients_reach_the_child_alone(model: Any, x: Tensor) -> None:
    parametrize_in_place(model[0], "weight", "times", Times(3.0))
    model[0](x).sum().backward()
    torch.testing.assert_close(model[0].times.factor.grad, (x @ model[0]._parameters["weight"].T).sum())
    assert model[0]._parameters["weight"].grad is None


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_parametrized_by_their_own_child(duplicate: Any, model: Any, x: Tensor) -> None:
    parametrize_in_place(model[0], "weight", "times", Times(3.0))
    before = model(x)
    other = duplicate(model)
    assert isinstance(other[0], Parametrized)
    assert torch.equal(other(x), before)
    with torch.no_grad():
        other[0].times.factor.fill_(0.0)
    assert not other[0].weight.any()
    assert torch.equal(model(x), before)


@torch.no_grad()
def test_merged_model_is_plain_and_gives_the_same(model: Any, x: Tensor) -> None:
    keys = set(model.state_dict())
    parametrize_in_place(model[0], "weight", "times", Times(3.0))
    parametrize_in_place(model[0], "bias", "more", Times(5.0))
    parametrize_in_place(model[2], "weight", "times", Times(0.5))
    expected = model(x)
    merge_parametrized(model)
    assert torch.equal(model(x), expected)
    assert set(model.state_dict()) == keys
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert pickle.loads(pickle.dumps(model))(x).equal(expected)
