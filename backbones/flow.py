"""Flow of features between the layers of a backbone, found by one forward pass."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from backbones.inject import Backbone

# nodes of autograd that give the values of their input another shape or dtype
RESHAPES = ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "AliasBackward0", "ToCopyBackward0")


@dataclass(frozen=True)
class Flow:
    """What happens to the outputs of layers, by name inside the backbone.

    Args:
        shapes: Shape of the output of each layer that reads features of the inputs and that the output of the network
            depends on.
        overwritten: Layers whose output, or a view of it, is changed in place after the call.
        readers: Layers that alone read the output of a layer. A layer is absent if other operations read it too.
    """

    shapes: dict[str, torch.Size]
    overwritten: frozenset[str]
    readers: dict[str, tuple[str, ...]]


@dataclass
class Calls:
    """Tensors of one layer, one entry for each call."""

    outputs: list[Tensor] = field(default_factory=list)
    nodes: list[Any] = field(default_factory=list)  # of autograd, before a change in place gives the tensor another


class Recorder:
    """Hooks that mark the outputs of layers in autograd's graph.

    A mark is ``output + 0``. Like a trained shift, it gives the output a node of its own.
    """

    def __init__(self) -> None:
        self.zero = torch.zeros((), requires_grad=True)
        self.calls: dict[str, Calls] = defaultdict(Calls)
        self.inputs: dict[Any, list[str]] = defaultdict(list)  # names of the layers that read the output of a node

    def mark(self, name: str) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
            tensors = [arg for arg in args if isinstance(arg, Tensor)]
            if not isinstance(output, Tensor) or not any(tensor.requires_grad for tensor in tensors):
                return None  # the layer reads no feature of an image, but a table of positions, for example
            marked = output + self.zero.to(output)
            calls = self.calls[name]
            calls.outputs.append(marked)
            calls.nodes.append(marked.grad_fn)
            return marked

        return hook

    def read(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor) and args[0].grad_fn is not None:
                self.inputs[args[0].grad_fn].append(name)

        return hook


def trace(backbone: Backbone, names: list[str], forward: Callable[[Any], Any], inputs: Any) -> Flow:
    """Run one forward pass, and follow the outputs of layers through autograd's graph.

    Args:
        backbone: The network, in eval mode; it does not change.
        names: Names of the layers.
        forward: Function of inputs that runs the network.
        inputs: Images (B, C, H, W), or a dict of tensors. Features begin at inputs with a fraction, such as pixels, and
            at the embeddings of the others, such as words.
    """
    recorder = Recorder()
    modules = {name: backbone.get_submodule(name) for name in names}
    handles = [module.register_forward_hook(recorder.mark(name)) for name, module in modules.items()]
    handles += [module.register_forward_pre_hook(recorder.read(name)) for name, module in modules.items()]
    tables = [module for module in backbone.modules() if isinstance(module, nn.Embedding)]
    handles += [table.register_forward_hook(begin) for table in tables]
    try:
        with torch.enable_grad():
            users = graph(forward(tree_map(leaf, inputs)))
    finally:
        for handle in handles:
            handle.remove()
    calls = {name: made for name, made in recorder.calls.items() if any(node in users for node in made.nodes)}
    found = {name: [readers(node, users, recorder.inputs) for node in made.nodes] for name, made in calls.items()}
    return Flow(
        {name: made.outputs[0].shape for name, made in calls.items()},
        frozenset(name for name, made in calls.items() if any(output._version for output in made.outputs)),
        {name: tuple(dict.fromkeys(chain(*lists))) for name, lists in found.items() if all(lists)},
    )


def leaf(inputs: Tensor) -> Tensor:
    """Copy of a tensor, at which a graph of autograd begins if it has a fraction."""
    return inputs.detach().clone().requires_grad_(inputs.is_floating_point())


def begin(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Forward hook of an embedding: a graph of autograd begins at its output."""
    return output if output.requires_grad else output.detach().requires_grad_()


def graph(outputs: Any) -> dict[Any, list[Any]]:
    """Nodes of autograd's graph, each with the nodes that use its result."""
    waiting = [tensor.grad_fn for tensor in tensors_in(outputs) if tensor.grad_fn is not None]
    users: dict[Any, list[Any]] = {node: [] for node in waiting}
    while waiting:
        node = waiting.pop()
        for source, _ in node.next_functions:
            if source is None:
                continue
            if source not in users:
                users[source] = []
                waiting.append(source)
            users[source].append(node)
    return users


def tensors_in(outputs: Any) -> Iterator[Tensor]:
    """Tensors of an output that can be a tensor, a dict or a sequence of outputs."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, (dict, list, tuple)):
        for output in outputs.values() if isinstance(outputs, dict) else outputs:
            yield from tensors_in(output)


def readers(node: Any, users: dict[Any, list[Any]], inputs: dict[Any, list[str]]) -> list[str]:
    """Names of the layers that read the result of a node; none if there are other users."""
    names = inputs.get(node, [])
    if names and len(names) == len(users[node]):
        return names
    if not names and len(users[node]) == 1 and users[node][0].name() in RESHAPES:
        return readers(users[node][0], users, inputs)
    return []
