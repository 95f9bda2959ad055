"""A shared backbone: read once, copied for each run."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor

from backbones import timm_models as backbone
from backbones.shared import shared_backbone
from backbones.timm_models import build_backbone
from tests.conftest import BACKBONE, TINY


def test_a_shared_backbone_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [f"local-dir:{tmp_path / name}" for name in ("one", "two")]
    for folder in folders:
        model = timm.create_model(BACKBONE, num_classes=5, **TINY)
        save_for_hf(model, folder.removeprefix("local-dir:"), model_args=TINY, safe_serialization=True)
    read: list[str] = []
    original = backbone.read_backbone

    def count(name: str, *args: Any) -> Any:
        read.append(name)
        return original(name, *args)

    monkeypatch.setattr(backbone, "read_backbone", count)

    def build_and_draw(folder: str) -> tuple[Any, Tensor]:
        torch.manual_seed(0)
        return build_backbone(folder, True, {}), torch.rand(1)

    alone, drawn = build_and_draw(folders[0])
    with shared_backbone():
        for _ in range(2):
            model, again = build_and_draw(folders[0])
            assert torch.equal(drawn, again)
            assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), model.parameters(), strict=True))
            model.requires_grad_(False)
            next(iter(model.parameters())).zero_()  # a run's own
        build_and_draw(folders[1])
        build_and_draw(folders[1])
    build_and_draw(folders[1])
    assert read == [folders[0], folders[0], folders[1], folders[1]]
