"""Outputs and gradients of the original implementations, to the tolerance of the specs.

``--golden-dir DIR`` runs the same tests on other fixtures: models are built from the ``config`` of each file, and a
file that is not in DIR is not collected. How a method is compared stands in its test file, under ``GOLDEN``.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.facts import FACTS
from tests.support.golden import Golden

CHECKS: dict[str, Callable[[Golden], None]] = {}
for _facts in FACTS.values():
    CHECKS |= getattr(_facts, "GOLDEN", {})


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = Path(metafunc.config.getoption("--golden-dir"))
    names = [name for name in CHECKS if (folder / f"{name}.safetensors").exists()]
    metafunc.parametrize("name", names)


def test_golden(name: str, pytestconfig: pytest.Config) -> None:
    CHECKS[name](Golden(Path(pytestconfig.getoption("--golden-dir")) / f"{name}.safetensors"))
