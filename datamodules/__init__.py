"""Every datamodule, found by importing the files of this folder: a new file is a new benchmark or form of data.

Its classes are attributes of this package, ``datamodules.VTAB``, and values of ``--data``.
"""

import importlib
import inspect
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datamodules.base import DataModule

__all__ = ["DATAMODULES"]

DATAMODULES: dict[str, type["DataModule"]] = {}
"""Every datamodule that is not abstract, by the name of its class."""


def discover() -> None:
    """Fill ``DATAMODULES``, and make its classes attributes of this package."""
    from datamodules.base import DataModule

    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        if info.ispkg:
            continue
        module = importlib.import_module(f"datamodules.{info.name}")
        for name, value in vars(module).items():
            defined_here = isinstance(value, type) and value.__module__ == module.__name__
            if defined_here and issubclass(value, DataModule) and not inspect.isabstract(value):
                DATAMODULES[name] = value
    globals().update(DATAMODULES)


discover()
