"""Models of text from transformers: loading, refusals, layers and files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from backbones.transformers_models import (
    build_text_model,
    context_of,
    head_names,
    logits_of,
    place,
    read_tokenizer,
    reset_heads,
    save_model,
)
from tests.support.text import BERT, GPT2, LLAMA, tokenizer

transformers = pytest.importorskip("transformers")
IDS = torch.arange(1, 13)[None]


def plain(name: str, args: dict[str, Any]) -> Any:
    """A model as transformers makes it, with drawn weights of norms too."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(name, **args))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.rand(parameter.shape)
    return model.eval()


@pytest.mark.parametrize(("name", "args"), [("llama", LLAMA), ("gpt2", GPT2)])
def test_layers_of_torch_give_equal_outputs(name: str, args: dict[str, Any], tmp_path: Path) -> None:
    """The RMSNorm of LLaMA and the transposed layers of GPT-2; the files of the model are those of transformers."""
    model = plain(name, args)
    model.save_pretrained(tmp_path / "plain")
    built = build_text_model(str(tmp_path / "plain"), True, {}).eval()
    kinds = {type(module).__name__ for module in built.modules()}
    assert not kinds & {"LlamaRMSNorm", "Conv1D"}
    expected = model(input_ids=IDS).logits
    torch.testing.assert_close(logits_of(built, {"input_ids": IDS}), expected, atol=1e-5, rtol=1e-5)
    save_model(built, tokenizer(), tmp_path / "saved")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(again(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)
    assert len(read_tokenizer(str(tmp_path / "saved"), built)) == len(tokenizer())


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    """A new classifier may be missing, and no other weight."""
    model = transformers.BertModel(transformers.BertConfig(**BERT))
    model.save_pretrained(tmp_path)
    torch.manual_seed(3)
    built = build_text_model(str(tmp_path), True, {"num_labels": 3}, "sequence_classification")
    assert head_names(built) == ["classifier"]
    assert torch.equal(built.bert.pooler.dense.weight, model.pooler.dense.weight)
    torch.manual_seed(3)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    build_text_model(str(tmp_path), True, {"num_labels": 3}, "sequence_classification")
    assert torch.equal(torch.rand(1), drawn), "reading weights must not advance the RNG"
    before = built.classifier.weight.clone()
    reset_heads(built)
    assert built.classifier.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert not torch.equal(before, built.classifier.weight)
    assert not built.classifier.bias.any()
    with pytest.raises(ValueError, match=r"lack \d+ of the weights of Bert"):
        build_text_model(str(tmp_path), True, {"is_decoder": True})


def test_models_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"could not be read .* Nothing was trained"):
        build_text_model(str(tmp_path), True, {})
    with pytest.raises(FileNotFoundError, match="no such file"):
        build_text_model(str(tmp_path / "model.gguf"), True, {})
    with pytest.raises(ValueError, match="LlamaConfig has no 'depth'"):
        build_text_model("llama", False, {"depth": 3})


def test_a_tokenizer_with_more_tokens_than_the_model(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path)
    small = build_text_model("llama", False, LLAMA | {"vocab_size": 8})
    with pytest.raises(ValueError, match="the model knows 8"):
        read_tokenizer(str(tmp_path), small)


def test_context() -> None:
    assert context_of(build_text_model("llama", False, LLAMA)) == 64
    assert context_of(build_text_model("gpt2", False, GPT2)) == 64
    roberta = build_text_model("roberta", False, BERT | {"pad_token_id": 1}, "sequence_classification")
    assert context_of(roberta) == 62


def test_tensors_that_the_library_has_no_place_for(tmp_path: Path) -> None:
    """LLaMA's config has options for biases of linear layers, and none for biases of norms."""
    model = build_text_model("llama", False, LLAMA).eval()
    for module in model.model.layers.modules():
        if isinstance(module, nn.Linear):
            module.bias = nn.Parameter(torch.rand(module.out_features))
    expected = logits_of(model, {"input_ids": IDS})
    save_model(model, tokenizer(), tmp_path / "biases")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "biases").eval()
    torch.testing.assert_close(again(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)
    model.model.norm.register_parameter("shift", nn.Parameter(torch.zeros(64)))
    with pytest.raises(TypeError, match=r"has no model\.norm\.shift"):
        save_model(model, tokenizer(), tmp_path / "shift")


def test_models_in_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package is found without being imported; a missing one, and a missing file, are named."""
    (tmp_path / "held_model/model").mkdir(parents=True)
    (tmp_path / "held_model/__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert place("package:held_model/model") == (str(tmp_path / "held_model/model"), {})
    with pytest.raises(FileNotFoundError, match=r"no such file or folder in the package; found __init__.py, model"):
        place("package:held_model/other")
    with pytest.raises(FileNotFoundError, match="no Python package 'not_held' is installed"):
        build_text_model("package:not_held/model", True, {})


def test_packed_weights_are_refused(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**LLAMA)
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"weights are packed \(.*bitsandbytes.*pass the plain model"):
        build_text_model(str(tmp_path), True, {})
