"""Classification of texts: loss, metrics, methods and files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything
from torch.nn import functional as F

from lightning_modules.batch import Batch
from lightning_modules.text_classification import TextClassification
from methods import METHODS, PEFTMethod, compose
from tests.conftest import checkpoint_of, perturb
from tests.support.text import BERT, tokenizer

transformers = pytest.importorskip("transformers")
ARGS = BERT | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

OPTIONS: dict[str, Any] = {"backbone": "bert", "pretrained": False, "backbone_args": ARGS}


def model(method: str, **options: Any) -> Any:
    seed_everything(0, verbose=False)
    cls: Any = compose(METHODS[method], task=TextClassification)
    return cls(backbone="bert", pretrained=False, backbone_args=ARGS, lr=1e-2, **options)


def batch() -> Batch:
    ids = torch.randint(3, 120, (4, 12), generator=torch.Generator().manual_seed(0))
    return Batch.of({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.tensor([0, 1, 1, 0]))


def test_loss_and_metrics_by_hand() -> None:
    task, data = model("lora", class_weights=[1.0, 3.0]).eval(), batch()
    logits = task(data.inputs)
    weights = torch.tensor([1.0, 3.0])
    torch.testing.assert_close(task.loss(data), F.cross_entropy(logits, data.targets, weights))
    outputs = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1], [1, 0]])  # right, right, wrong, wrong, padding
    labels = torch.tensor([0, 1, 1, 0, 0])
    padded = Batch(None, labels, torch.tensor([True] * 4 + [False]))
    task.update(task.val_metrics, outputs, padded)
    found = {name: float(value) for name, value in task.val_metrics.compute().items()}
    assert found["val/accuracy"] == 0.5
    assert found["val/F1"] == 0.5  # one hit, one missed, one too many
    assert found["val/matthews"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("method", ["lora", "bitfit", "ssf", "ln_tuning", "linear_probe", "full", "vera"])
def test_methods_train_merge_and_load(method: str) -> None:
    task, data = model(method), batch()
    task.configure_model()
    perturb(task)
    task.eval()
    outputs = task(data.inputs)
    torch.testing.assert_close(task.outputs_with(task.merge(), data.inputs), outputs, atol=1e-4, rtol=1e-3)
    seed_everything(0, verbose=False)  # which draws the frozen weights of this model
    again: Any = PEFTMethod.from_delta(checkpoint_of(task))
    torch.testing.assert_close(again.eval()(data.inputs), outputs, atol=1e-5, rtol=1e-5)
    assert task.parameter_counts()["head"] == 64 * 2 + 2


def test_export_reads_with_transformers(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    task, data = model("lora", tokenizer=str(tmp_path / "tokenizer")), batch()
    task.configure_model()
    perturb(task)
    task.eval()
    task.export(task.merge(), tmp_path / "merged")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(plain(**data.inputs).logits, task(data.inputs), atol=1e-4, rtol=1e-3)


def test_features_cannot_be_kept() -> None:
    with pytest.raises(ValueError, match="no features apart from its classifier"):
        model("linear_probe").frozen_layers()


def test_options_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="num_classes=1"):
        model("lora", num_classes=1)
    with pytest.raises(ValueError, match="judged_by='F1': expected 2 classes and not 3"):
        model("lora", num_classes=3, judged_by="F1")


@pytest.mark.parametrize("metric", ["accuracy", "F1", "matthews"])
def test_metric_that_judges(metric: str) -> None:
    """Models of one process may differ in it."""
    task, other = model("lora", judged_by=metric), model("lora")
    assert task.headline.name == metric
    assert f"val/{metric}" in list(task.val_metrics.keys())
    assert other.headline.name == "accuracy"
