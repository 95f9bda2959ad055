"""Points of a sweep."""

import json
from pathlib import Path
from typing import Any

import pytest

from commands.width_sweep import width_sweep
from tests.support.sweeps import rows


def test_a_run_that_diverges_counts_as_infinite(
    fit_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from commands.lightning.cli import GraftCLI

    run = GraftCLI.run

    def sometimes(args: list[str]) -> Any:
        if "--model.lr=0.01" in args:
            raise FloatingPointError("train/loss is NaN")
        return run(args)

    monkeypatch.setattr(GraftCLI, "run", sometimes)
    width_sweep("16,32", "1e-3,1e-2", "none", head_dim=16, fit_config=fit_config, output=tmp_path / "sweep")
    assert {row["lr"]: row["loss"] for row in rows(tmp_path / "sweep")}["0.01"] == "inf"
    summary = json.loads((tmp_path / "sweep" / "summary.json").read_text())["none"]
    assert summary["best_lr"] == {"16": 1e-3, "32": 1e-3}
    assert summary["loss"]["16"]["0.01"] is None
    assert summary["largest_stable_lr"]["16"] in (1e-3, None)


def test_another_table_is_not_overwritten(fit_config: Path, tmp_path: Path) -> None:
    table = tmp_path / "points.csv"
    table.write_text("width,loss\n16,0.5\n")
    with pytest.raises(ValueError, match="is no table of width_sweep"):
        width_sweep("16,32", head_dim=16, fit_config=fit_config, output=tmp_path)
    assert table.read_text() == "width,loss\n16,0.5\n"
