"""Every fault of the list has its test in this folder, by number."""

import re

from tests.conftest import ROOT

FAULTS = range(1, 46)


def test_every_fault_has_a_test() -> None:
    text = "\n".join(path.read_text() for path in sorted((ROOT / "tests/faults").glob("test_*.py")))
    assert {int(number) for number in re.findall(r"^def test_(\d\d)_", text, re.MULTILINE)} == set(FAULTS)
