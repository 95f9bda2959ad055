"""The page of methods and families."""

from commands.methods.cell import Outcome
from commands.methods.matrix import Cell, page, reasons, run
from methods import METHODS

LACKS = Outcome("refused", "X needs wings, and VGG has none: use a bird")


def test_page() -> None:
    cells = [
        Cell("vgg", "VGG", "ssf", Outcome("merges")),
        Cell("vgg", "VGG", "fly", LACKS),
        Cell("beit", "Beit", "ssf", Outcome("merges")),
        Cell("beit", "Beit", "fly", Outcome("trains", "wings are no weights")),
    ]
    lines = page(cells).splitlines()
    assert lines[lines.index("| family | ssf | fly |") :][:4] == [
        "| family | ssf | fly |",
        "|---|:-:|:-:|",
        "| `vgg` | **m** | - |",
        "| `beit` | **m** | t |",
    ]
    assert "It merges on every family." in lines
    assert "- refused: X needs wings, and the network has none: use a bird. (`vgg`)" in lines
    assert "- trains: wings are no weights. (`beit`)" in lines


def test_equal_reasons_share_a_line() -> None:
    cells = [
        Cell("vgg", "VGG", "fly", LACKS),
        Cell("resnet", "ResNet", "fly", LACKS._replace(message="X needs wings, and ResNet has none: use a bird")),
    ]
    assert reasons(cells) == ["- refused: X needs wings, and the network has none: use a bird. (`vgg`, `resnet`)"]


def test_a_family() -> None:
    found = list(run(["resnet"]))
    assert [cell.method for cell in found] == list(METHODS)
    assert {cell.network for cell in found} == {"ResNet"}
    assert {cell.outcome.state for cell in found} == {"merges", "trains", "refused"}
