"""Every fault of the list has its test: here by number, or with the part of the project that it belongs to."""

import re

import pytest

from tests.conftest import ROOT

FAULTS = range(1, 46)
ELSEWHERE = {
    1: "commands/lightning/test_shortcuts.py::test_refused_by_this_project",
    7: "commands/test_check_data.py::test_half_an_archive",
    12: "backbones/test_timm_models.py::test_without_a_network",
    14: "commands/lightning/test_conflicts.py::test_checkpoint_on_another_backbone",
    19: "commands/lightning/test_conflicts.py::test_conflict_with_the_checkpoint",
    20: "commands/lightning/test_folders.py::test_the_same_command_again",
    23: "commands/lightning/test_folders.py::test_run_root_that_is_a_file",
    24: "commands/lightning/test_cli.py::test_a_terminated_fit_says_so",
    25: "methods/test_contract.py::test_resume_is_exact",
    28: "callbacks/test_scoring_refusals.py::test_scores_that_are_not_finite_are_named",
    30: "methods/test_contract.py::test_ddp",
    31: "datamodules/test_items.py::test_padding_evens_out_the_ranks",
    34: "methods/core/test_base.py::test_merge_leaves_the_model_as_it_is",
    41: "commands/grid/test_queue.py::test_failed_cells_are_tried_again_and_not_forever",
    42: "datamodules/test_files.py::test_rows_that_are_refused",
    45: "checkpoints/test_format_1.py::test_load",
}
NOT_HERE = {35: "no command writes ONNX, so there is no dynamic model to refuse"}


def numbers() -> set[int]:
    """Numbers of the faults whose tests lie in this folder."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "tests/faults").glob("test_*.py")))
    return {int(number) for number in re.findall(r"^def test_(\d\d)_", text, re.MULTILINE)}


def test_every_fault_has_a_test() -> None:
    here = numbers()
    assert here | ELSEWHERE.keys() | NOT_HERE.keys() == set(FAULTS)
    assert not here & ELSEWHERE.keys(), "one test each"


@pytest.mark.parametrize("place", ELSEWHERE.values(), ids=map(str, ELSEWHERE))
def test_the_test_elsewhere_exists(place: str) -> None:
    file, _, name = place.partition("::")
    assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), place
