"""A backend of torch.compile that keeps what it gets."""

from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.backends.registry import lookup_backend
from torch.fx import GraphModule


class Graphs:
    """Keeps the graphs that Dynamo makes, and runs them with another backend.

    Args:
        backend: ``aot_eager`` for gradients made by AOTAutograd, as with Inductor; ``eager`` for the random numbers of
            a model that is not compiled.
    """

    def __init__(self, backend: str = "aot_eager") -> None:
        self.backend = lookup_backend(backend)
        self.graphs: list[GraphModule] = []

    def __call__(self, graph: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.graphs.append(graph)
        return self.backend(graph, inputs)

    def __len__(self) -> int:
        return len(self.graphs)

    @property
    def operations(self) -> int:
        """Number of operations of all graphs, with those inside of custom autograd functions and checkpoints."""
        graphs = [module for graph in self.graphs for module in graph.modules() if isinstance(module, GraphModule)]
        return sum(node.op.startswith("call") for graph in graphs for node in graph.graph.nodes)


def compiled(function: Callable[..., Any], graphs: Graphs, **options: Any) -> Callable[..., Any]:
    """A function compiled anew; a graph break is an error."""
    torch._dynamo.reset()
    return torch.compile(function, backend=graphs, fullgraph=True, **options)
