"""Linear probe."""

from typing import Any

COUNTS = {"vit_base_patch16_224": 0}
IDENTITY: dict[str, Any] | None = {}
