"""Language modelling: loss, perplexity, methods and files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything
from torch.nn import functional as F

from lightning_modules.batch import Batch
from lightning_modules.language_modeling import LanguageModeling, text_losses, token_losses
from methods import METHODS, PEFTMethod, compose
from tests.conftest import checkpoint_of, perturb
from tests.support.text import GPT2, LLAMA, tokenizer

transformers = pytest.importorskip("transformers")
OPTIONS: dict[str, Any] = {"backbone": "llama", "pretrained": False, "backbone_args": LLAMA}
METHOD = "lora"
MERGED = ("lora", "dora", "qlora", "vera", "ssf", "full", "mixout", "diff_pruning", "glora")


def model(method: str, arch: str = "llama", **options: Any) -> Any:
    seed_everything(0, verbose=False)
    args = {"llama": LLAMA, "gpt2": GPT2 | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}}[arch]
    cls: Any = compose(*(METHODS[name] for name in method.split("+")), task=LanguageModeling)
    return cls(backbone=arch, pretrained=False, backbone_args=args, lr=1e-2, **options)


def batch(rows: int = 3, length: int = 12) -> Batch:
    ids = torch.randint(3, 120, (rows, length), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :6] = -100
    return Batch.of({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels)


def test_losses_by_hand() -> None:
    """Token i is predicted from those before it; a masked prompt has no loss."""
    task, data = model("lora").eval(), batch()
    logits = task(data.inputs)
    rows = [F.cross_entropy(logits[i, :-1], data.targets[i, 1:], reduction="none") for i in range(3)]
    rows[0] = rows[0][5:]  # the first six labels are masked, and the first token of all is never predicted
    by_hand = torch.cat(rows).mean()
    torch.testing.assert_close(task.loss(data), by_hand)
    torch.testing.assert_close(text_losses(logits, data.targets), torch.stack([row.mean() for row in rows]))
    assert token_losses(logits, data.targets)[0, :5].tolist() == [0] * 5


def test_perplexity_counts_tokens_and_not_batches() -> None:
    task, data = model("lora").eval(), batch()
    metrics = task.val_metrics
    logits = task(data.inputs)
    for rows in (slice(0, 1), slice(1, 3)):  # 6 tokens, and 22
        part = Batch({"input_ids": data.inputs["input_ids"][rows]}, data.targets[rows], data.valid[rows])
        task.update(metrics, logits[rows], part)
    padding = data._replace(valid=torch.zeros(3, dtype=torch.bool))
    task.update(metrics, logits, padding)  # samples that only make ranks equally long
    found = metrics.compute()
    torch.testing.assert_close(found["val/perplexity"], task.loss(data).exp())
    torch.testing.assert_close(found["val/loss"], task.loss(data))
    assert task.speed_unit == "token"
    assert int(task.amount(data)) == 36


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("method", MERGED)
def test_methods_train_merge_and_load(method: str, arch: str) -> None:
    """No method has a word about language."""
    options: dict[str, Any] = {"diff_alpha_init": 1.0} if method == "diff_pruning" else {}
    task, data = model(method, arch, **options), batch()
    task.configure_model()
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    trained = {name for name, p in task.named_parameters() if p.requires_grad}
    task.train()
    task.loss(data).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in task.parameters() if p.requires_grad)
    perturb(task)
    after = task.state_dict()
    tied = {"backbone.lm_head.weight"}  # one tensor with the table of words, in GPT-2
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved - tied <= trained
    task.eval()
    outputs = task(data.inputs)
    merged = task.outputs_with(task.merge(), data.inputs)
    torch.testing.assert_close(merged, outputs, atol=2e-4, rtol=1e-3)
    seed_everything(0, verbose=False)  # which draws the frozen weights of this model
    again: Any = PEFTMethod.from_delta(checkpoint_of(task))
    torch.testing.assert_close(again.eval()(data.inputs), outputs, atol=1e-5, rtol=1e-5)


def test_counts_of_lora() -> None:
    """r (in + out) for each of q and v."""
    task = model("lora", lora_rank=4)
    task.configure_model()
    assert task.parameter_counts()["method"] == 2 * 4 * ((64 + 64) + (64 + 32))


def test_velora_saves_less(tmp_path: Path) -> None:
    from callbacks.measures import SavedBytes

    found = {}
    for method in ("lora", "lora+velora"):
        options: dict[str, Any] = {"lora_targets": ["v_proj", "down_proj"], "lora_dropout": 0.1}
        options["lora_dropout_at"] = "input"
        task = model(method, **options | ({"velora_size": 4} if "velora" in method else {}))
        task.configure_model()
        task.train()
        if "velora" in method:
            task.calibrate(batch())
        with SavedBytes(task) as saved:
            task.loss(batch())
        found[method] = saved.bytes
    assert found["lora+velora"] < found["lora"]


def test_export_reads_with_transformers(tmp_path: Path) -> None:
    task = model("lora")
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    task.tokenizer_name = str(tmp_path / "tokenizer")
    task.configure_model()
    perturb(task)
    task.eval()
    task.export(task.merge(), tmp_path / "merged")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    data = batch()
    torch.testing.assert_close(plain(**data.inputs).logits, task(data.inputs), atol=1e-4, rtol=1e-3)
    assert task.input_config["context"] == 64


@pytest.mark.parametrize("method", ["vpt", "dyt", "linear_probe"])
def test_methods_that_cannot_refuse_with_a_reason(method: str) -> None:
    with pytest.raises(ValueError, match="LlamaForCausalLM"):
        model(method).configure_model()
