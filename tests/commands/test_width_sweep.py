"""The width sweep: through the command line, resumed, and what it makes of a table."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands import width_sweep as module
from commands.width_sweep import width_sweep, widths
from commands.width_sweep.outcome import report
from commands.width_sweep.points import KEY, MEASURED
from commands.width_sweep.summary import summarise
from tests.conftest import BACKBONE, TINY
from train import main

SWEEP = ["--widths", "16,32", "--lrs", "1e-3,1e-2", "--parameterizations", "none,mup", "--head_dim", "16"]


@pytest.fixture
def fit_config(images: Path, tmp_path: Path) -> Path:
    """One epoch on the tiny images."""
    args = {name: value for name, value in TINY.items() if name not in ("embed_dim", "num_heads")}
    model = {"backbone": BACKBONE, "pretrained": False, "backbone_args": args}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    content: dict[str, Any] = {
        "model": {"class_path": "methods.FullClassification", "init_args": model},
        "data": {"class_path": "ImageDataset", "init_args": {"root": str(images), "batch_size": 8, "resize": "direct"}},
        "trainer": {"accelerator": "cpu", "max_epochs": 1, **quiet},
        "checkpoint": {"save_top_k": 0, "save_last": False},
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "points.csv").open() as file:
        return list(csv.DictReader(file))


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


def table(losses: dict[int, list[float]], seeds: int = 1) -> list[dict[str, str]]:
    """Points at the rates 1, 2, 4, ... of each width."""
    known = dict.fromkeys([*KEY, *MEASURED], "") | {"parameterization": "mup", "alignment": "full", "chance": "2.0"}
    return [
        known | {"width": str(width), "lr": str(2.0**i), "seed": str(seed), "loss": str(loss + 0.1 * seed)}
        for width, values in losses.items()
        for i, loss in enumerate(values)
        for seed in range(seeds)
    ]


def test_summary_by_hand() -> None:
    points = table({64: [1.0, 0.9, 0.8, 1.1], 128: [0.9, 0.7, 0.8, math.inf], 256: [0.5, 0.6, 2.5, math.inf]})
    found = summarise(points, "mup", "full")
    assert found["best_lr"] == {64: 4.0, 128: 2.0, 256: 1.0}
    assert found["best_loss"] == {64: 0.8, 128: 0.7, 256: 0.5}
    assert found["drift"] == pytest.approx(-1.0)
    assert found["best_at_edge"] == [256]
    assert found["largest_stable_lr"] == {64: 8.0, 128: 4.0, 256: 2.0}
    assert found["transfer_penalty"] == pytest.approx({64: 0.0, 128: 0.1, 256: 2.0})


def test_seeds_are_averaged() -> None:
    found = summarise(table({16: [1.0, 0.5], 32: [1.0, 0.5]}, seeds=2), "mup", "full")
    assert found["best_loss"] == pytest.approx({16: 0.55, 32: 0.55})
    assert found["drift"] == 0


def test_everything_diverged(tmp_path: Path) -> None:
    from rich.console import Console

    points = [point | {"optimizer": "sgd"} for point in table({16: [math.inf] * 2, 32: [math.inf] * 2})]
    summary = summarise(points, "mup", "full")
    report({"mup": summary}, points, tmp_path, Console(quiet=True))
    assert (tmp_path / "sweep.png").exists()
    assert json.loads((tmp_path / "summary.json").read_text())["mup"]["largest_stable_lr"] == {"16": None, "32": None}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--parameterizations", "mub"], "unknown parameterization 'mub'; nearest: mup"),
        (["--optimizer", "muon"], "unknown optimizer 'muon'"),
        (["--alignments", "half"], "unknown alignment 'half'"),
        (["--widths", "16"], "widths='16': expected at least two"),
        (["--widths", "16,24"], "width 24: expected multiples of the heads' size, --head_dim 16"),
        (["--widths", "16,wide"], "widths='16,wide': .* expected numbers separated by commas"),
        (["--lrs", "0"], "lrs='0': expected positive numbers"),
        (["--lrs", ","], "lrs is empty"),
        (["--fit_config", "nowhere.yaml"], r"fit_config='nowhere\.yaml': no such file"),
    ],
)
def test_refused(
    options: list[str], match: str, fit_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    command = ["width_sweep", *SWEEP, "--fit_config", str(fit_config), "--output", str(tmp_path / "sweep")]
    with pytest.raises(SystemExit):
        main([*command, *options])
    assert re.search(match, capsys.readouterr().err)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"backbone": "resnet18", "backbone_args": {}}, "resnet18 has no width to sweep"),
        ({"pretrained": True}, "a sweep over widths trains from random weights"),
    ],
)
def test_backbones_without_a_width_are_refused(change: dict[str, Any], match: str, fit_config: Path) -> None:
    content = yaml.safe_load(fit_config.read_text())
    content["model"]["init_args"] |= change
    fit_config.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=match):
        width_sweep("16,32", head_dim=16, fit_config=fit_config)


def test_a_model_that_only_differs_in_depth_is_refused(fit_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widths, "arguments", lambda width, head_dim: {"depth": width // head_dim})
    with pytest.raises(ValueError, match=f"widths 16 and 32 give {BACKBONE} no other width"):
        width_sweep("16,32", head_dim=16, fit_config=fit_config)


def test_another_table_is_not_overwritten(fit_config: Path, tmp_path: Path) -> None:
    table = tmp_path / "points.csv"
    table.write_text("width,loss\n16,0.5\n")
    with pytest.raises(ValueError, match="is no table of width_sweep"):
        width_sweep("16,32", head_dim=16, fit_config=fit_config, output=tmp_path)
    assert table.read_text() == "width,loss\n16,0.5\n"
