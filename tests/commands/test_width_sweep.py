"""The width sweep through the command line, and resumed."""

import json
import math
from pathlib import Path

import pytest
import yaml

from commands import width_sweep as module
from commands.width_sweep.points import KEY, MEASURED
from tests.support.sweeps import SWEEP, rows
from train import main


def test_sweep_and_going_on(
    fit_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "sweep"
    command = ["width_sweep", *SWEEP, "--fit_config", str(fit_config), "--output", str(output)]
    main(command)
    first = rows(output)
    assert len({tuple(row[column] for column in KEY) for row in first}) == len(first) == 8
    assert all(math.isfinite(float(row["loss"])) for row in first)
    assert (output / "sweep.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((output / "summary.json").read_text())
    assert set(summary) == {"none", "mup, full alignment"}
    assert set(summary["none"]["best_lr"]) == {"16", "32"}
    # at the base width muP is the plain model; at the other it is not
    loss = {(row["parameterization"], row["width"], row["lr"]): row["loss"] for row in first}
    assert loss["none", "16", "0.01"] == loss["mup", "16", "0.01"]
    assert loss["none", "32", "0.01"] != loss["mup", "32", "0.01"]
    # the run folder says what ran, through the ordinary fit
    config = yaml.safe_load((Path(first[-1]["folder"]) / "config.yaml").read_text())
    options = config["model"]["init_args"]
    assert config["model"]["class_path"] == "methods.FullWidthScalingClassification"
    assert (options["width_parameterization"], options["width_base"], options["lr"]) == ("mup", 16, 1e-2)
    assert options["backbone_args"]["embed_dim"] == 32

    # one point is missing: only that one runs
    lines = (output / "points.csv").read_text().splitlines()
    (output / "points.csv").write_text("\n".join(lines[:-1]) + "\n")
    trained: list[dict[str, str]] = []
    measured = {column: first[-1][column] for column in MEASURED}
    monkeypatch.setattr(module, "train", lambda point, *args: trained.append(point) or measured)
    capsys.readouterr()
    main(command)
    assert "8 points, 7 of them in" in capsys.readouterr().out.replace("\n", "")
    assert [point["lr"] for point in trained] == ["0.01"]
    assert rows(output) == first
    # another rate adds its own points alone; another config repeats none of this one's
    main([*command, "--lrs", "1e-2,0.1", "--parameterizations", "none"])
    assert [point["lr"] for point in trained[1:]] == ["0.1", "0.1"]
    fit_config.write_text(fit_config.read_text() + "seed_everything: 3\n")
    main(command)
    assert len(trained) == 3 + 8
