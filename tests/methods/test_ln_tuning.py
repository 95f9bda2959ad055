"""LayerNorm tuning."""

from typing import Any

COUNTS = {"vit_base_patch16_224": 12 * 4 * 768 + 2 * 768}
IDENTITY: dict[str, Any] | None = {}
