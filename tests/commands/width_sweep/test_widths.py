"""Models of other widths."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from commands.width_sweep import width_sweep, widths
from tests.conftest import BACKBONE


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
