"""What the paper of each method says, read from the method's own test file."""

import importlib
from pathlib import Path
from types import ModuleType

from methods import METHODS

FOLDER = Path(__file__).resolve().parent.parent / "methods"


def facts_of(method: str) -> ModuleType | None:
    """The test file of a method; None if it is missing or lacks ``COUNTS`` or ``IDENTITY``."""
    if not (FOLDER / f"test_{method}.py").exists():
        return None
    module = importlib.import_module(f"tests.methods.test_{method}")
    return module if hasattr(module, "COUNTS") and hasattr(module, "IDENTITY") else None


FACTS = {method: facts for method in METHODS if (facts := facts_of(method)) is not None}
"""Test files by method. A method without one is missing here, and ``test_contract.py`` has one failure for it."""
