"""Which task reads which data."""

import re
from types import SimpleNamespace

import pytest

from datamodules import DATAMODULES
from datamodules.fitting import KINDS, check_targets
from lightning_modules import TASKS


@pytest.mark.parametrize(
    ("data", "task", "message"),
    [
        ("image labels", "text labels", "has images, and Task reads texts: pass --data TextTable"),
        ("image labels", "text tokens", "has images, and Task reads texts: pass --data InstructionDataset"),
        ("image labels", "clip labels", "has images, and Task reads clips: pass --data VideoDataset"),
        ("text tokens", "image labels", "has texts, and Task reads images: pass --task language_modeling"),
        ("text labels", "image labels", "has texts, and Task reads images: pass --task text_classification"),
        (
            "text labels",
            "text tokens",
            "has labels of texts, and Task reads tokens that follow: pass --task text_classification, or --data Instr",
        ),
        ("image masks", "image tags", "has masks, and Task reads tags: pass --task segmentation, or --data TagFile"),
        ("image masks", "image sounds", "has masks, and Task reads sounds: pass --task segmentation"),
        ("image masks", "tree rings", "has images, and Task reads trees: pass --task segmentation"),
    ],
)
def test_what_does_not_fit(data: str, task: str, message: str) -> None:
    Data, Task = type("Data", (SimpleNamespace,), {}), type("Task", (SimpleNamespace,), {})
    given, asked = (dict(zip(("unit", "targets"), words.split(), strict=True)) for words in (data, task))
    with pytest.raises(ValueError, match=re.escape(f"Data {message}")):
        check_targets(Data(**given), Task(**asked))
    check_targets(Data(**given), Task(**given))
    check_targets(Data(**given), Task())  # a module from elsewhere


def test_names_are_those_of_the_code() -> None:
    """Every kind of a task is in the table, and every name of the table that is built already is a name."""
    for name, task in TASKS.items():
        assert (task.unit, task.targets) in KINDS, name
    assert {kind.data for kind in KINDS.values()} <= set(DATAMODULES)
