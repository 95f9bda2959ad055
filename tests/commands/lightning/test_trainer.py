"""Scoring without a fit."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.support.command_line import Answer, folders


def test_score_then_fit(gps: list[str], base: list[str], call: Callable[..., Answer], tmp_path: Path) -> None:
    answer = call("score", *gps, *base, "--run_root", tmp_path / "first")
    assert answer.code == 0, answer.err
    (folder,) = folders(tmp_path / "first")
    assert folder.name.startswith("score-")
    assert f"picture and table are in {folder}" in answer.out
    assert f"--score.cache_dir {folder}" in answer.out
    left = {path.name.partition("-")[0] for path in folder.iterdir()} - {"hparams.yaml", "metrics.csv"}
    assert left == {"config.yaml", "result.json", "scores.csv", "scores.png", "gps"}, "no checkpoint, no curves"
    summary = json.loads((folder / "result.json").read_text())
    assert (summary["score/images"], summary["steps"]) == (24, 0)

    # from the files alone: a fit with another k, and the same fit from the config of the pass
    for options in (
        [*gps, *base, "--model.gps_k=2", "--score.cache_dir", folder],
        ["--config", folder / "config.yaml"],
    ):
        root = tmp_path / str(len(options))
        assert call("fit", *options, "--run_root", root).code == 0
        fitted = json.loads((folders(root)[0] / "result.json").read_text())
        assert (fitted["score/images"], fitted["steps"]) == (0, 2)
        factor = 2 if "--method" in options else 1
        assert fitted["score/selected"] == factor * summary["score/selected"]


def test_score_takes_the_config_of_a_fit(
    gps: list[str], base: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    assert call("fit", *gps, *base, "--run_root", tmp_path / "fit").code == 0
    (fitted,) = folders(tmp_path / "fit")
    assert call("score", "--config", fitted / "config.yaml", "--run_root", tmp_path / "score").code == 0
    (folder,) = folders(tmp_path / "score")
    assert (folder / "scores.csv").read_text() == (fitted / "scores.csv").read_text()
    answer = call("score", "--ckpt_path", fitted / "checkpoints/last.ckpt", *base, "--run_root", tmp_path / "again")
    assert answer.code == 1
    assert "holds a selection: leave it out to score anew" in answer.err
