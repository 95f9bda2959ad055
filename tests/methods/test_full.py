"""Full fine-tuning."""

from typing import Any

COUNTS = {"vit_base_patch16_224": 85_798_656}
IDENTITY: dict[str, Any] | None = {}
