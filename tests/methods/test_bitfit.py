"""BitFit."""

from typing import Any

COUNTS = {
    "vit_base_patch16_224": 102_912,
    "swin_base_patch4_window7_224": 137_216,
    "convnext_base": 130_304,
}
IDENTITY: dict[str, Any] | None = {}
