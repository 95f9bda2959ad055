"""The model that a checkpoint describes, checked before it takes memory. Nothing is imported that a file names."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import isabstract
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from checkpoints.delta import check_delta
from checkpoints.structure import shown
from lightning_modules import TASKS
from lightning_modules.adapted import AdaptedTask

# the models of timm are far below both
LARGEST = 100_000  # number in the arguments of a backbone
MOST = 10_000  # tensors


def saved_class(path: str) -> type[Any]:
    """Class of a checkpoint: a composed class of this project, or a class of the user that is loaded already.

    Args:
        path: Such as ``methods.SSFClassification``.

    Raises:
        ValueError: If there is no such class.
    """
    module, _, name = path.rpartition(".")
    if module == "methods":
        try:
            found = getattr(sys.modules["methods"], name, None)
        except TypeError:  # a method that stands twice in the name
            found = None
    else:
        found = next((c for c in subclasses(AdaptedTask) if f"{c.__module__}.{c.__qualname__}" == path), None)
    if not isinstance(found, type) or not issubclass(found, AdaptedTask) or isabstract(found):
        raise ValueError(
            f"its class {shown(path)} is unknown; expected methods.NAME with the names of methods and a task, such as "
            "methods.SSFClassification. Import your own class first, on the command line by --model"
        )
    return found


def subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    for child in cls.__subclasses__():
        yield child
        yield from subclasses(child)


def described_model(checkpoint: Mapping[str, Any]) -> tuple[type[Any], dict[str, Any]]:
    """Class and options of the model in a checkpoint.

    Args:
        checkpoint: Result of ``read_checkpoint``.

    Raises:
        ValueError: If the class is unknown, an option does not fit it, or the delta is not that of the model.
    """
    options = {name: value for name, value in checkpoint["hyper_parameters"].items() if name != "_instantiator"}
    cls = saved_class(options.pop("_class_path"))
    linked = {option for task in TASKS.values() for option in task.links}
    for option in linked - accepted(cls):  # the command line saves what it links, also for a task without this option
        options.pop(option, None)
    check_options(cls, options)
    if "members" not in checkpoint:
        check_sizes(cls, options, checkpoint)
    return cls, options


def accepted(cls: type) -> set[str]:
    """Names of the options of a class."""
    parser = ArgumentParser(exit_on_error=False)
    return set(parser.add_class_arguments(cls, fail_untyped=False))


def check_options(cls: type, options: Mapping[str, Any]) -> None:
    """Refuse options that a class does not have, or of other types.

    Raises:
        ValueError: With the first of them.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, fail_untyped=False)
    try:
        parser.parse_object(dict(options))
    except (ArgumentError, TypeError, ValueError, KeyError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"its options do not fit {cls.__name__}: {text[:200]}") from error
    check_numbers(options.get("backbone_args"))


def check_numbers(value: Any, name: str = "backbone_args") -> None:
    """Refuse numbers of a backbone with which building alone would take all memory, such as a depth of 100 million.

    Raises:
        ValueError: With the number.
    """
    if isinstance(value, Mapping):
        for key, part in value.items():
            check_numbers(part, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for part in value:
            check_numbers(part, name)
    elif isinstance(value, (int, float)) and not abs(value) <= LARGEST:
        raise ValueError(f"its option {name}={value} is too large; expected at most {LARGEST:,}")


def check_sizes(cls: type[Any], options: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> None:
    """Build a model without memory, on the meta device, and refuse a delta with other tensors than this model has.

    Args:
        cls: Class of the model.
        options: Its options.
        checkpoint: Result of ``read_checkpoint``.

    Raises:
        ValueError: If the model cannot be built, or has another number of parameters or other tensors.
    """
    peft = checkpoint["peft"]
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), few_parameters():
            model = cls(**options)
            model.selection = peft["selection"]
            model.configure_model()
    except FileNotFoundError:
        return  # not an error of the checkpoint: the build that follows names the missing weights and a remedy
    except Exception as error:  # whatever the options of a damaged file lead to
        if isinstance(error, NotImplementedError) or (isinstance(error, RuntimeError) and "meta" in str(error)):
            return  # a method computes with values, which this device lacks; sizes are compared when the delta loads
        raise ValueError(f"its options do not build its model: {' '.join(str(error).split())[:300]}") from error
    if not model.adapted:
        raise ValueError("it has no selection, which its method needs")
    model.take_sizes(checkpoint["state_dict"])
    check_delta(model.delta_state_dict(), checkpoint["state_dict"])
    if peft.get("parameters", model.total_parameters) != model.total_parameters:
        raise ValueError(
            f"its options build a model of {model.total_parameters:,} parameters, and it was trained with "
            f"{shown(peft['parameters'])}"
        )


@contextmanager
def few_parameters() -> Iterator[None]:
    """Stop building a model that has too many tensors.

    Raises:
        ValueError: At the first tensor that is too many.
    """
    number = 0

    def count(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal number
        number += 1
        if number > MOST:
            raise ValueError(f"it has more than {MOST:,} tensors")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
