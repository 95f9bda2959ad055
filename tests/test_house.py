"""The structure of the sources: what imports what, how long files are, which names stand where.

Each rule gets the sources as text, so that a rule can be tried on made-up files as well.
"""

from pathlib import PurePosixPath

import pytest

from tests.conftest import ROOT
from tests.support import house
from tests.support.house import Source

MAX_CLASS, MAX_FILE, MAX_IGNORED_TYPES = 200, 300, 39
CLASSIFICATION = "lightning_modules/classification.py"
SEED = "lightning_modules/seed.py"
SOURCES = house.read_sources(ROOT)


def shown(rule: str, offenders: list[str]) -> str:
    """Message of a failed test: the rule, then one offender a line."""
    return "\n".join([f"{rule}; {len(offenders)} offenders:", *offenders])


def outside(*places: str) -> list[Source]:
    """Sources that lie in none of the files or folders."""
    return [source for source in SOURCES if not source.path.startswith(places)]


def test_all_folders_have_a_floor() -> None:
    folders = {source.folder for source in SOURCES}
    assert folders == set(house.FLOOR_OF), "FLOORS in tests/support/house.py is the order of the folders"


def test_imports_run_down() -> None:
    offenders = house.imports_up(SOURCES)
    order = " < ".join(", ".join(floor) for floor in house.FLOORS)
    assert not offenders, shown(f"a file imports its own folder and lower floors ({order})", offenders)


def test_no_import_circle() -> None:
    circle = house.import_circle(SOURCES)
    assert not circle, f"these modules import each other: {' -> '.join(circle)}"


def test_length_of_classes() -> None:
    offenders = house.long_classes(SOURCES, MAX_CLASS)
    assert not offenders, shown(f"a class has at most {MAX_CLASS} lines", offenders)


def test_length_of_files() -> None:
    offenders = [f"{s.path} has {s.lines} lines" for s in SOURCES if s.lines > MAX_FILE]
    assert not offenders, shown(f"a source file has at most {MAX_FILE} lines", offenders)


def test_names_of_files() -> None:
    words = ("util", "utils", "helper", "helpers", "misc", "common")
    offenders = [
        source.path for source in SOURCES if set(words) & set(PurePosixPath(source.path.removesuffix(".py")).parts)
    ]
    assert not offenders, shown(f"no file and no folder is called {', '.join(words)}", offenders)


def test_headline_of_classification() -> None:
    offenders = house.lines_with(outside(CLASSIFICATION), r"\bacc1\b")
    assert not offenders, shown(f"acc1 stands in {CLASSIFICATION} alone; others use task.headline", offenders)


def test_parts_of_a_batch_have_names() -> None:
    offenders = house.parts_by_position(outside("datamodules/"))
    assert not offenders, shown("a batch has inputs, targets and valid; no batch[0] outside datamodules", offenders)


def test_families_of_networks() -> None:
    # small_models.py makes a small member of each family for the matrix
    offenders = house.lines_with(outside("backbones/", "commands/methods/small_models.py"), r"timm\.models\.\w")
    assert not offenders, shown("classes of network families stand in backbones/ alone", offenders)


def test_type_of_the_module_in_callbacks() -> None:
    offenders = house.arguments_of_any(SOURCES, "pl_module")
    assert not offenders, shown("pl_module has a type: LightningModule, Task or PEFTMethod", offenders)


def test_ignored_types() -> None:
    offenders = house.ignored_types(SOURCES)
    assert len(offenders) <= MAX_IGNORED_TYPES, shown(f"at most {MAX_IGNORED_TYPES} 'type: ignore'", offenders)


def test_reader_of_the_seed() -> None:
    offenders = house.lines_with(outside(SEED), "PL_GLOBAL_SEED")
    assert not offenders, shown(f"PL_GLOBAL_SEED is read in {SEED} alone", offenders)


def test_mirrored_test_files() -> None:
    missing = [f"{s.path}: write {s.test_path}" for s in SOURCES if s.needs_test and not (ROOT / s.test_path).exists()]
    assert not missing, shown("every source file has its test file", missing)


# the rules on made-up files


def test_every_kind_of_import_is_found() -> None:
    text = (
        "import checkpoints.delta\n"
        "from checkpoints import peft\n"
        "from checkpoints.atomic import write_atomically, current_umask\n"
        "import torch\n"
        "if TYPE_CHECKING:\n"
        "    from methods.ssf import SSF\n"
        "def function():\n"
        "    from methods.lora import LoRA\n"
    )
    modules = ["checkpoints.delta", "checkpoints.peft", "checkpoints.atomic", "methods.ssf", "methods.lora"]
    assert house.imports(Source("commands/a.py", text), modules) == [
        ("checkpoints.delta", 1, True),
        ("checkpoints.peft", 2, True),
        ("checkpoints.atomic", 3, True),
        ("methods.lora", 8, False),
    ]


@pytest.mark.parametrize(
    ("path", "text", "allowed"),
    [
        ("methods/a.py", "from callbacks.cost import Cost", True),
        ("methods/a.py", "from methods.core.base import PEFTMethod", True),
        ("callbacks/a.py", "from methods.core.base import PEFTMethod", False),
        ("callbacks/a.py", "def f():\n    from methods.core.base import PEFTMethod", False),
        ("callbacks/a.py", "from datamodules.samples import Samples", True),
        ("datamodules/a.py", "from callbacks.cost import Cost", False),
        ("commands/a.py", "from train import main", False),
    ],
)
def test_direction_of_an_import(path: str, text: str, allowed: bool) -> None:
    others = ("callbacks/cost", "methods/core/base", "datamodules/samples", "train")
    sources = [Source(path, text), *(Source(f"{name}.py", "") for name in others)]
    offenders = house.imports_up(sources)
    assert bool(offenders) != allowed
    assert all(offender.startswith(f"{path}:") for offender in offenders)


def test_a_circle_is_found() -> None:
    first = Source("methods/a.py", "from methods.b import B")
    second = Source("methods/b.py", "def f():\n    from methods import a")
    assert house.import_circle([first, Source("methods/b.py", "")]) == []
    assert set(house.import_circle([first, second])) == {"methods.a", "methods.b"}


def test_other_rules_find_their_offenders() -> None:
    text = (
        "class A:\n    x = 1\n\n    def f(self, pl_module: Any, batch):\n        return batch[1]  # type: ignore[x]\n"
    )
    source = [Source("callbacks/a.py", text)]
    assert house.long_classes(source, 5) == []
    assert house.long_classes(source, 4) == ["callbacks/a.py:1 A has 5 lines"]
    assert house.arguments_of_any(source, "pl_module") == ["callbacks/a.py:4"]
    assert house.parts_by_position(source) == house.ignored_types(source) == ["callbacks/a.py:5"]
    assert house.lines_with(source, r"\bself\b") == ["callbacks/a.py:4"]


@pytest.mark.parametrize(
    ("path", "text", "test_path", "needed"),
    [
        ("train.py", "", "tests/test_train.py", True),
        ("methods/ssf.py", "", "tests/methods/test_ssf.py", True),
        ("methods/__init__.py", "def discover(): ...", "tests/test_methods.py", False),
        ("commands/grid/__init__.py", "def grid(): ...", "tests/commands/test_grid.py", True),
        ("commands/grid/plan.py", "", "tests/commands/grid/test_plan.py", True),
    ],
)
def test_place_of_a_test_file(path: str, text: str, test_path: str, needed: bool) -> None:
    source = Source(path, text)
    assert (source.test_path, source.needs_test) == (test_path, needed)
