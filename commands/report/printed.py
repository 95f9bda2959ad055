"""Numbers printed in papers and repositories, from ``benchmarks/printed.yaml``."""

from pathlib import Path
from typing import Any

import yaml

PRINTED = Path(__file__).resolve().parents[2] / "benchmarks" / "printed.yaml"


def printed(dataset: str, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """Rows of papers: ``method``, ``source``, ``values`` by task, and ``means`` where the source prints no values.

    ``millions`` is the number of trained parameters without the head in millions, None if it is not printed.

    Args:
        dataset: Name of the datamodule.
        columns: Columns of a report, of which the one of a set without tasks has the name of its folder.
    """
    table = yaml.safe_load(PRINTED.read_text())["tables"].get(dataset, {"tasks": [], "rows": []})
    rows: list[dict[str, Any]] = []
    tasks = columns if columns and len(columns) == 1 and table["tasks"] == [dataset] else table["tasks"]
    for method, source, *values in table["rows"]:
        rows.append({"method": method, "source": source, "values": dict(zip(tasks, values, strict=True)), "means": {}})
    for method, source, of_groups in table.get("means", []):
        rows.append({"method": method, "source": source, "values": {}, "means": {"mean of groups": of_groups}})
    for row in rows:
        row["millions"] = table.get("millions", {}).get(row["source"], {}).get(row["method"])
    return rows


def sources() -> dict[str, str]:
    """Papers by their short names."""
    return dict(yaml.safe_load(PRINTED.read_text())["sources"])
