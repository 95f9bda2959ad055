"""Three ways to modify a backbone in place: ``attach``, ``parametrize_in_place`` and ``swap_class``."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

Backbone = Any
"""A timm model: an ``nn.Module``; a type checker cannot find the types of its children."""


class AdapterModule(nn.Module):
    """A child module with hooks for the module it is attached to.

    Its methods have the same names everywhere. ``hook`` is a forward hook that rewrites an output. ``pre_hook`` is a
    forward pre-hook that rewrites an input. ``keep_input`` and ``keep_output`` keep a tensor for a later ``hook``.
    """

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """New output of ``module``, given its positional ``args`` and its own ``output``."""
        raise TypeError(f"{type(self).__name__} rewrites no output")


class Tap(AdapterModule):
    """Tap that keeps the input or output of a module of the backbone until ``take`` returns it."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: Tensor | None = None

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        self.kept = output
        return output

    def keep_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.kept = args[0]

    def take(self) -> Tensor:
        """Return the kept tensor and drop it."""
        output, self.kept = self.kept, None
        assert output is not None
        assert not output.requires_grad, "a gradient would enter the backbone"
        return output


def attach(module: nn.Module, name: str, op: AdapterModule) -> None:
    """Add ``op`` as the child ``name`` of a module. From now on, it rewrites the module's output.

    Raises:
        ValueError: If the module already has an attribute of this name.
    """
    check_free(module, name)
    module.add_module(name, op)
    # a bound method and not a closure, because a deep copy binds it to the copied op
    module.register_forward_hook(op.hook)


def attach_before(module: nn.Module, name: str, op: Any) -> None:
    """Add ``op`` as the child ``name`` of a module. From now on, its ``pre_hook`` rewrites the module's input.

    Raises:
        ValueError: If the module already has an attribute of this name.
    """
    check_free(module, name)
    module.add_module(name, op)
    module.register_forward_pre_hook(op.pre_hook)


def detach(module: nn.Module, name: str) -> AdapterModule:
    """Remove an attached module with its hooks, and return it."""
    op = module._modules.pop(name)
    assert isinstance(op, AdapterModule)
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [k for k, hook in hooks.items() if getattr(hook, "__self__", None) is op]:
            del hooks[key]
    return op


def swap_class(module: nn.Module, cls: type[nn.Module]) -> None:
    """Change the class of a module to a subclass that shares its weights, or back to the plain class.

    Raises:
        TypeError: If neither class is a subclass of the other.
    """
    if not (issubclass(cls, type(module)) or issubclass(type(module), cls)):
        raise TypeError(f"{type(module).__name__} and {cls.__name__} do not share their weights")
    module.__class__ = cls


class Parametrized(nn.Module):
    """A module whose parameters are replaced on reading by the output of child modules.

    The stored parameter keeps its name and its values. ``parametrizations`` maps a parameter to its child module.
    """

    plain: type[nn.Module]
    parametrizations: dict[str, str]

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        child = self.__dict__.get("parametrizations", {}).get(name)
        # FSDP2 looks for its shards by name; in the forward pass the parameter is a plain tensor
        return value if child is None or isinstance(value, DTensor) else self._modules[child](value)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return blank, (type(self).plain,), self.__dict__  # pickle cannot import this class, which is made at run time


@cache
def parametrized(plain: Any) -> type[Parametrized]:
    """Subclass of ``plain`` with parameters that can be replaced on reading."""
    return type(f"Parametrized{plain.__name__}", (Parametrized, plain), {"plain": plain})


def blank(plain: type[nn.Module]) -> Parametrized:
    """Module of the subclass without attributes, which pickle and deepcopy fill in."""
    cls = parametrized(plain)  # type: ignore[arg-type]
    return cls.__new__(cls)


def parametrize_in_place(module: Any, parameter: str, name: str, op: nn.Module) -> None:
    """Add ``op`` as the child ``name`` of a module. From now on, reading ``parameter`` gives ``op(parameter)``.

    Raises:
        ValueError: If the module has an attribute of this name, or another child replaces the parameter already.
    """
    check_free(module, name)
    if not isinstance(module, Parametrized):
        swap_class(module, parametrized(type(module)))  # type: ignore[arg-type]
        module.parametrizations = {}
    if parameter in module.parametrizations:
        other = module.parametrizations[parameter]
        raise ValueError(f"two methods replace the {parameter} of one {module.plain.__name__}: {other} and {name}")
    module.parametrizations[parameter] = name
    module.add_module(name, op)


def plain_parameter(module: nn.Module, parameter: str) -> nn.Parameter:
    """Parameter as it is stored, also where reading it gives what a child makes of it."""
    stored = module._parameters[parameter]
    assert stored is not None
    return stored


def unparametrize(module: Any, parameter: str) -> None:
    """Let reading a parameter give its stored value again; its child must be removed already."""
    del module.parametrizations[parameter]
    if not module.parametrizations:
        del module.parametrizations
        swap_class(module, module.plain)


def merge_parametrized(backbone: Backbone) -> None:
    """Store the output of every parametrization in its parameter, and make the modules plain again."""
    for module in [m for m in backbone.modules() if isinstance(m, Parametrized)]:
        for parameter, child in list(module.parametrizations.items()):
            weight = plain_parameter(module, parameter)
            op: Any = module._modules.pop(child)
            weight.copy_(op.eval()(weight))
            unparametrize(module, parameter)


def check_free(module: nn.Module, name: str) -> None:
    """Refuse a name that a module uses already.

    Raises:
        ValueError: With the class of the module and the name.
    """
    if hasattr(module, name):
        raise ValueError(f"{type(module).__name__} has a child {name!r} already: was the method applied twice?")


def modules_with(backbone: Backbone, name: str) -> Iterator[Any]:
    """Modules of the backbone that have a child called ``name``."""
    yield from [module for module in backbone.modules() if name in module._modules]
