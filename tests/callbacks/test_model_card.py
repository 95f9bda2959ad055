"""The card of a run appears beside its adapter, and follows a test."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from callbacks.model_card import ModelCard

RESULT: dict[str, object] = {
    "method": "SSF",
    "backbone": "vit",
    "task": "Classification",
    "metric": {"name": "top1"},
    "data": "flowers",
    "pretrained": True,
}


@pytest.mark.parametrize(("rank_zero", "written"), [(True, True), (False, False)])
def test_card_follows_the_result(rank_zero: bool, written: bool, tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(log_dir=tmp_path, is_global_zero=rank_zero)
    model: Any = SimpleNamespace(backbone=SimpleNamespace(pretrained_cfg={"license": "mit"}))
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    ModelCard().on_test_end(trainer, model)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"], "no adapter, no card"
    (tmp_path / "adapter").mkdir()
    ModelCard().on_fit_end(trainer, model)
    assert (tmp_path / "adapter/README.md").exists() == written
    if written:
        assert "license: mit" in (tmp_path / "adapter/README.md").read_text()
        (tmp_path / "result.json").write_text(json.dumps(RESULT | {"test/top1": 0.5}))
        ModelCard().on_test_end(trainer, model)
        assert "| test/top1 | 0.5 |" in (tmp_path / "adapter/README.md").read_text()
