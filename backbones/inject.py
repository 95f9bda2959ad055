"""The ways into a backbone: a child that rewrites an output or a parameter, and a subclass that shares the weights."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import Tensor, nn

Backbone = Any
"""A timm model: an ``nn.Module`` whose children's types a checker cannot know."""


class Op(nn.Module):
    """A child module that rewrites the output of the module it is attached to."""

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """New output of ``module``, given its positional ``args`` and its own ``output``."""
        raise TypeError(f"{type(self).__name__} rewrites no output")


def attach(module: nn.Module, name: str, op: Op) -> None:
    """Add ``op`` as the child ``name`` of a module, whose output it rewrites from now on.

    Raises:
        ValueError: If the module has something of that name already.
    """
    check_free(module, name)
    module.add_module(name, op)
    # a bound method, not a closure: a deep copy binds it to the copied op
    module.register_forward_hook(op.hook)


def detach(module: nn.Module, name: str) -> Op:
    """Take an attached op away again and return it."""
    op = module._modules.pop(name)
    assert isinstance(op, Op)
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [k for k, hook in hooks.items() if getattr(hook, "__self__", None) is op]:
            del hooks[key]
    return op


def become(module: nn.Module, cls: type[nn.Module]) -> None:
    """Turn a module into another class that shares its weights: a subclass, or its plain class again."""
    if not (issubclass(cls, type(module)) or issubclass(type(module), cls)):
        raise TypeError(f"{type(module).__name__} and {cls.__name__} do not share their weights")
    module.__class__ = cls


class Rewritten(nn.Module):
    """A module of any class in which reading a parameter gives what a child makes of it.

    The parameter itself keeps its name and its values; ``rewrites`` says which child rewrites which parameter.
    """

    plain: type[nn.Module]
    rewrites: dict[str, str]

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        child = self.__dict__.get("rewrites", {}).get(name)
        return value if child is None else self._modules[child](value)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return blank, (type(self).plain,), self.__dict__  # no module has this class under its name


@cache
def rewritten(plain: Any) -> type[Rewritten]:
    """The subclass of a class whose parameters can be rewritten."""
    return type(f"Rewritten{plain.__name__}", (Rewritten, plain), {"plain": plain})


def blank(plain: type[nn.Module]) -> Rewritten:
    cls = rewritten(plain)  # type: ignore[arg-type]
    return cls.__new__(cls)


def rewrite(module: Any, parameter: str, name: str, op: nn.Module) -> None:
    """Add ``op`` as the child ``name`` of a module; reading ``parameter`` gives ``op(parameter)`` from now on."""
    check_free(module, name)
    if not isinstance(module, Rewritten):
        become(module, rewritten(type(module)))  # type: ignore[arg-type]
        module.rewrites = {}
    module.rewrites[parameter] = name
    module.add_module(name, op)


def fold_rewritten(backbone: Backbone) -> None:
    """Write into every rewritten parameter what its child makes of it in evaluation, and make the modules plain."""
    for module in [m for m in backbone.modules() if isinstance(m, Rewritten)]:
        for parameter, child in module.rewrites.items():
            weight: Any = module._parameters[parameter]
            op: Any = module._modules.pop(child)
            weight.copy_(op.eval()(weight))
        del module.rewrites
        become(module, module.plain)


def check_free(module: nn.Module, name: str) -> None:
    if hasattr(module, name):
        raise ValueError(f"{type(module).__name__} has a child {name!r} already: was the method applied twice?")


def holders(backbone: Backbone, name: str) -> Iterator[Any]:
    """Every module of the backbone that has a child called ``name``."""
    yield from [module for module in backbone.modules() if name in module._modules]
