"""Numbers printed in papers, from ``benchmarks/printed.yaml``."""

from pathlib import Path
from typing import Any

import yaml

PRINTED = Path(__file__).resolve().parents[2] / "benchmarks" / "printed.yaml"


def printed(dataset: str) -> list[dict[str, Any]]:
    """Rows of papers: ``method``, ``source``, and ``values`` by task."""
    table = yaml.safe_load(PRINTED.read_text())["tables"].get(dataset, {"tasks": [], "rows": []})
    rows = []
    for method, source, *values in table["rows"]:
        rows.append({"method": method, "source": source, "values": dict(zip(table["tasks"], values, strict=True))})
    return rows


def sources() -> dict[str, str]:
    """Papers by their short names."""
    return dict(yaml.safe_load(PRINTED.read_text())["sources"])
