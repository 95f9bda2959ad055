"""What papers print, from ``benchmarks/printed.yaml``."""

from pathlib import Path
from typing import Any

import yaml

PRINTED = Path(__file__).resolve().parents[2] / "benchmarks" / "printed.yaml"


def printed(dataset: str) -> list[dict[str, Any]]:
    """Rows of papers: ``method``, ``source`` and ``accuracy`` of each task."""
    table = yaml.safe_load(PRINTED.read_text())["tables"].get(dataset, {"tasks": [], "rows": []})
    rows = []
    for method, source, *values in table["rows"]:
        accuracy = dict(zip(table["tasks"], values, strict=True))
        rows.append({"method": method, "source": source, "accuracy": accuracy})
    return rows


def sources() -> dict[str, str]:
    return dict(yaml.safe_load(PRINTED.read_text())["sources"])
