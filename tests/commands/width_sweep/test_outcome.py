"""Report of a sweep."""

import json
import math
from pathlib import Path

from commands.width_sweep.outcome import report
from commands.width_sweep.summary import summarise
from tests.support.sweeps import table


def test_everything_diverged(tmp_path: Path) -> None:
    from rich.console import Console

    points = [point | {"optimizer": "sgd"} for point in table({16: [math.inf] * 2, 32: [math.inf] * 2})]
    summary = summarise(points, "mup", "full")
    report({"mup": summary}, points, tmp_path, Console(quiet=True))
    assert (tmp_path / "sweep.png").exists()
    assert json.loads((tmp_path / "summary.json").read_text())["mup"]["largest_stable_lr"] == {"16": None, "32": None}
