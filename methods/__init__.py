"""The methods, found by importing every file of this folder: a new file is a new method."""

import importlib
import pkgutil

from methods.base import PEFTMethod

__all__ = ["METHODS", "PEFTMethod"]

METHODS: dict[str, type[PEFTMethod]] = {}
"""Every method by the name of its file, ``ssf`` -> ``SSF``."""

for _info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
    _module = importlib.import_module(f"methods.{_info.name}")
    for _value in vars(_module).values():
        _defined_here = isinstance(_value, type) and _value.__module__ == _module.__name__
        if _defined_here and issubclass(_value, PEFTMethod) and _value is not PEFTMethod:
            METHODS[_info.name] = _value
