"""Every fault of the list has its test: here by number, or with the part of the project that it belongs to."""

import re

import pytest

from tests.conftest import ROOT

FAULTS = range(1, 46)
ELSEWHERE = {
    1: "commands/lightning/test_shortcuts.py::test_refused_by_this_project",
    7: "commands/test_check_data.py::test_half_an_archive",
    14: "commands/lightning/test_conflicts.py::test_checkpoint_on_another_backbone",
    19: "commands/lightning/test_conflicts.py::test_conflict_with_the_checkpoint",
    20: "commands/lightning/test_folders.py::test_the_same_command_again",
    24: "commands/lightning/test_cli.py::test_a_terminated_fit_says_so",
    41: "commands/grid/test_queue.py::test_failed_cells_are_tried_again_and_not_forever",
}


def numbers() -> set[int]:
    """Numbers of the faults whose tests lie in this folder."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "tests/faults").glob("test_*.py")))
    return {int(number) for number in re.findall(r"^def test_(\d\d)_", text, re.MULTILINE)}


def test_every_fault_has_a_test() -> None:
    here = numbers()
    assert here | ELSEWHERE.keys() == set(FAULTS)
    assert not here & ELSEWHERE.keys(), "one test each"


@pytest.mark.parametrize("place", ELSEWHERE.values(), ids=map(str, ELSEWHERE))
def test_the_test_elsewhere_exists(place: str) -> None:
    file, _, name = place.partition("::")
    assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), place
