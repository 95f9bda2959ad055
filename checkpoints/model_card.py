"""Model cards: README.md files beside trained weights, with metadata that hubs of models read."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints.atomic import write_atomically

CARD = "README.md"
PIPELINES: dict[str, str] = {  # hub's names of tasks
    "Classification": "image-classification",
    "Detection": "object-detection",
    "LanguageModeling": "text-generation",
    "Segmentation": "image-segmentation",
    "TextClassification": "text-classification",
}
TEXT_TASKS = ("LanguageModeling", "TextClassification", "TextRegression")  # their backbones are those of transformers
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")  # an id of a model on the hub, and not a file or a package
PROTOCOL = {
    "dataset": "form of the data",
    "images": "images",
    "texts": "texts",
    "max_length": "tokens of a text at most",
    "image_size": "image size",
    "resize": "resizing",
    "interpolation": "filter",
    "normalization": "normalisation",
    "augmentation": "augmentation",
    "epochs": "epochs",
    "steps": "steps",
    "effective_batch_size": "effective batch size",
    "selection": "kept epoch",
    "precision": "precision",
    "seed": "seed",
    "fingerprint": "sha256 of the frozen weights",
    "code": "commit of Graft",
}


def read_result(ckpt_path: Path) -> dict[str, Any]:
    """Results of the run that a checkpoint file or an adapter folder belongs to; empty if it lies in no run folder."""
    inside = ckpt_path if ckpt_path.is_dir() else ckpt_path.parent
    file = inside.resolve().parent / "result.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def write_card(folder: Path, result: Mapping[str, Any], library: str, load: str, license: str | None = None) -> None:
    """Write the model card of a folder of weights.

    Args:
        folder: Folder of the weights.
        result: Content of ``result.json``; at least ``method``, ``backbone`` and ``task``.
        library: Library that loads the weights, under its name on the hub.
        load: Lines of Python that load them.
        license: Licence of the weights of the backbone's tag under its name on the hub, if it is known. Without the
            weights of the tag it does not count.
    """
    license = license if result.get("pretrained") is True else None
    text = f"---\n{metadata(result, library, license)}\n---\n\n{body(result, load, license)}"
    write_atomically(folder / CARD, lambda path: path.write_text(text))


def metadata(result: Mapping[str, Any], library: str, license: str | None) -> str:
    """Metadata of a card in YAML."""
    from huggingface_hub import EvalResult, ModelCardData

    name, data, pipeline = title(result), data_name(result), PIPELINES.get(result["task"])
    headline = result.get("metric", {}).get("name")
    score = result.get(f"test/{headline}")
    found = None
    if score is not None and pipeline is not None:
        kind = {"dataset_type": data.lower(), "dataset_name": data, "metric_type": headline}
        found = [EvalResult(task_type=pipeline, metric_value=score, dataset_split="test", **kind)]
    backbone = result["backbone"]
    if result["task"] in TEXT_TASKS:
        source, base = "transformers", backbone
        hub = (
            result.get("pretrained") is True
            and HUB_ID.fullmatch(backbone)
            and not backbone.endswith(".gguf")
            and not Path(backbone).exists()
        )
    else:
        source, base = "timm", f"timm/{backbone}"
        hub = result.get("pretrained") is True and ":" not in backbone
    return ModelCardData(
        library_name=library,
        license=license or "unknown",
        pipeline_tag=pipeline,
        tags=[*([pipeline] if pipeline else []), *dict.fromkeys([source, "graft", *methods(result)])],
        base_model=base if hub else None,
        model_name=name if found else None,
        eval_results=found,
    ).to_yaml()


def body(result: Mapping[str, Any], load: str, license: str | None) -> str:
    """Text of a card: how to load the weights, results, costs and protocol."""
    parts = [f"# {title(result)}", f"{result['method']} on `{result['backbone']}`, trained with Graft.", "## Load"]
    parts.append(f"```python\n{load}\n```")
    scores = {name: value for name, value in result.items() if name.startswith(("test/", "best/"))}
    costs = {name: value for name, value in result.items() if name.startswith("cost/")}
    protocol = {text: result[name] for name, text in PROTOCOL.items() if result.get(name) not in (None, "")}
    if "data" in result:
        protocol = {"data": data_name(result)} | protocol
    for heading, rows in {"Results": scores, "Costs": costs, "Protocol": protocol}.items():
        if rows:
            parts.append(f"## {heading}")
            parts.append("\n".join(["| | |", "|---|---|", *(f"| {name} | {shown(v)} |" for name, v in rows.items())]))
    parts.append("## Licence")
    owner = f"The weights of the backbone have the licence {license}." if license else "Not known to Graft."
    parts.append(f"{owner} Check the licences of the backbone and of the data before you pass this model on.")
    return "\n\n".join(parts) + "\n"


def title(result: Mapping[str, Any]) -> str:
    where = f" for {data_name(result)}" if "data" in result else ""
    return f"{Path(result['backbone'].removeprefix('local-dir:')).name} with {result['method']}{where}"


def data_name(result: Mapping[str, Any]) -> str:
    """Last folder of the data, because the whole path is nobody else's business."""
    return Path(str(result.get("data", "unknown"))).name


def methods(result: Mapping[str, Any]) -> list[str]:
    return [name.lower() for name in result["method"].split("+")]


def shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(inner)}" for name, inner in value.items())
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
