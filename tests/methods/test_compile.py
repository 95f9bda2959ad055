"""Every method under torch.compile: one graph without breaks, and equal results."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from methods import METHODS, PEFTMethod
from methods.layers import divisors
from tests.conftest import perturb
from tests.methods.test_contract import adapt, batch
from tests.support.compiling import Graphs, compiled

Build = Callable[..., PEFTMethod]
# options under which other code runs than by default
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"lora_dropout": 0.1, "lora_targets": ["proj"]}),
    ("ssf+velora", {}),
    ("lora", {"lora_dropout": 0.1, "lora_targets": ["qkv"]}),
    ("lora+velora", {"lora_dropout": 0.1}),
    ("lora+velora", {"velora_init": "batch_average"}),
    ("full+velora", {}),
    ("qlora", {"lora_dropout": 0.1}),
    ("qlora+dora", {}),
    ("qlora+velora", {}),
    ("dora", {"lora_dropout": 0.1}),
    ("vera", {"vera_dropout": 0.1}),
    ("bi_adapter", {"bi_form": "lora"}),
    ("dyt", {"dyt_place": "attention_mlp"}),
    ("dyt", {"dyt_place": "layer", "dyt_experts": 2}),
]


def cases(pairs: list[tuple[str, dict[str, Any]]], quick: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    """Parameters of a test; those that are not quick run with ``-m matrix``, because a graph takes seconds to trace."""
    return [
        pytest.param(*pair, id="-".join([pair[0], *map(str, pair[1].values())]), marks=() if pair in quick else MATRIX)
        for pair in pairs
    ]


MATRIX = pytest.mark.matrix
DEFAULTS: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in METHODS]
GRAPHS = {"dyt": 2}  # the pass of its teacher is another graph
BACKENDS = {"diff_pruning": "eager"}  # AOTAutograd draws its noise in another order


def ready(method: str, build: Build, **options: Any) -> PEFTMethod:
    """A method whose trained values have moved."""
    model = build(method, **options)
    adapt(method, model)
    perturb(model)
    return model


def step(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of a batch."""
    model.zero_grad()
    torch.manual_seed(5)
    if hasattr(model, "velora_moves"):
        for direction in model.directions().values():
            direction.v.fill_(len(direction.v) ** -0.5)
            direction.observes_next = model.velora_moves
    loss = model.loss(batch())
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("method", "options"), cases([*DEFAULTS, *OTHERS], [("bi_adapter", {}), *OTHERS[:2]]))
def test_training(method: str, options: dict[str, Any], build: Build) -> None:
    """Gradients are equal, and a second step makes no graph."""
    model, graphs = ready(method, build, **options).train(), Graphs(BACKENDS.get(method, "aot_eager"))
    loss, plain = step(model)
    model.forward = compiled(model.forward, graphs)  # type: ignore[method-assign]
    compiled_loss, gradients = step(model)
    torch.testing.assert_close(compiled_loss, loss)
    assert plain.keys() == gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in plain.values())
    for name, gradient in plain.items():
        # HST has gradients that are zero but for rounding: of the biases of keys, and of a norm before a BatchNorm
        scale = max(float(gradient.abs().max()), 0.01 * largest)
        error = float((gradients[name] - gradient).abs().max())
        assert error <= 1e-4 * scale, name
    step(model)
    assert len(graphs) == GRAPHS.get(method, 1)


@pytest.mark.parametrize(("method", "options"), cases(DEFAULTS, [("bi_adapter", {})]))
def test_evaluation(method: str, options: dict[str, Any], build: Build) -> None:
    """One graph for all sizes of a batch after the first; its outputs are those of the model."""
    model, graphs, images = ready(method, build, **options).eval(), Graphs(), batch().inputs
    with torch.inference_mode():
        outputs = model(images)
        function = compiled(model.forward, graphs)
        torch.testing.assert_close(function(images), outputs, atol=1e-4, rtol=1e-4)
        function(images)
        assert len(graphs) == 1
        for size in (4, 3, 5):
            torch.testing.assert_close(function(images[:size]), outputs[:size], atol=1e-4, rtol=1e-4)
    assert len(graphs) == 2


@pytest.mark.parametrize(("method", "name"), [("ssf", "scale"), pytest.param("dora", "magnitude", marks=MATRIX)])
def test_small_divisors_make_no_graph(method: str, name: str, build: Build) -> None:
    """Gradients are right for numbers near 0, which change from step to step, also outside a trainer."""
    model, graphs = ready(method, build).train(), Graphs()
    trained = [p for n, p in model.named_parameters() if n.endswith(name)]
    function = compiled(model.forward, graphs)
    for chosen in (None, 0, 1):
        if chosen is not None:
            with torch.no_grad():
                trained[chosen][0] = divisors.SMALLEST / 10
        vars(model).pop("forward", None)
        _, plain = step(model)
        model.forward = function  # type: ignore[method-assign]
        _, gradients = step(model)
        for key, gradient in plain.items():
            torch.testing.assert_close(gradients[key], gradient, atol=1e-5, rtol=1e-3)
    assert len(graphs) == 1


@pytest.mark.parametrize(("method", "most"), [("bi_adapter", 2.5), pytest.param("qlora", 12, marks=MATRIX)])
def test_tables_are_constants(method: str, most: float, build: Build) -> None:
    """Graphs are not much larger than that of a plain adapter, although the levels take 500 passes to compute."""
    sizes = []
    for name in ("adapter", method):
        model, graphs = ready(name, build).train(), Graphs("eager")
        compiled(model.forward, graphs)(batch().inputs)
        sizes.append(graphs.operations)
    assert sizes[1] < most * sizes[0]
