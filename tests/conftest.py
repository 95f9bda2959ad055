"""Options and fixtures of the whole suite."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir", default=str(ROOT / "tests/golden"), help="Folder of reference outputs of the original codes."
    )
