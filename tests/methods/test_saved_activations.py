"""What autograd keeps for the backward pass, against the least that the shapes allow."""

from typing import Any

import pytest
import torch

from callbacks.measures import SavedBytes
from tests.conftest import composed
from tests.support.batches import as_batch

BATCH, TOKENS, WIDTH, DEPTH = 2, 197, 192, 12  # of ViT-Ti/16
BLOCK = 10  # values of width C a token and block: inputs of two norms and of the GELU (4), q, k, v, attention's output

# values beyond those: inputs of the layers that learn from them, which gradients alone would not need
MINIMUM: dict[str, tuple[dict[str, Any], float]] = {
    "bitfit": ({}, BLOCK),
    "ln_tuning": ({}, BLOCK),
    "ssf": ({}, BLOCK + 2),  # outputs of proj and fc2; the others' are kept anyway
    "lora": ({}, BLOCK + 1),  # input of qkv
    "dora": ({}, BLOCK + 1),
    "qlora": ({}, BLOCK + 1),
    "adapter": ({"adapter_dim": 64}, BLOCK + 2 * 64 / WIDTH),  # before and after its GELU
    "adaptformer": ({"adaptformer_dim": 64}, BLOCK + 64 / WIDTH),
    "vpt": ({}, BLOCK * (TOKENS + 10) / TOKENS),
    "e2vpt": ({}, BLOCK * (TOKENS + 10) / TOKENS + 2 * 5 / TOKENS),  # keys and values of 5 more
    "fact": ({}, BLOCK + 6),  # inputs of qkv, fc1 and fc2 (4)
    "repadapter": ({}, BLOCK + 2 + 2 * 8 / WIDTH),  # its two inputs, and what stands between its layers
    "convpass": ({}, BLOCK + 2 + 2 * 3 * 8 / WIDTH),  # and before and after each non-linearity
    "full": ({}, BLOCK + 6),
    "ssf+velora": ({}, BLOCK + 2 / 32),
    "full+velora": ({}, BLOCK + 2 + 4 / 32),  # without the input of fc2
}


@pytest.mark.parametrize("method", MINIMUM)
def test_at_most_a_tenth_more_than_the_shapes_ask_for(method: str) -> None:
    options, least = MINIMUM[method]
    model: Any = composed(method)(backbone="vit_tiny_patch16_224", pretrained=False, num_classes=10, **options)
    model.configure_model()
    model.train()
    with SavedBytes(model) as saved:
        model.loss(as_batch(torch.randn(BATCH, 3, 224, 224), torch.zeros(BATCH, dtype=torch.long)))
    assert saved.bytes <= 1.1 * least * BATCH * TOKENS * WIDTH * DEPTH * 4


# percent of the kept bytes that are fp32 under bf16-true; the reasons stand in docs/precision.md
FP32 = {"full": 21, "mixout": 20, "vera": 18, "fact": 6, "bi_adapter": 6, "hst": 2}
FP32 |= dict.fromkeys(["lora", "ssf", "velora", "gps", "last", "dyt", "diff_pruning", "adapter"], 1)


@pytest.mark.parametrize("method", FP32)
def test_share_of_fp32_under_bf16(method: str) -> None:
    model: Any = composed(method)(
        backbone="vit_tiny_patch16_224", backbone_args={"depth": 2}, pretrained=False, num_classes=10
    )
    model.configure_model()
    model.to(torch.bfloat16).train()
    images = torch.randn(4, 3, 224, 224, dtype=torch.bfloat16)
    with SavedBytes(model) as saved:
        model.loss(as_batch(images, torch.zeros(4, dtype=torch.long)))
    assert saved.bytes_of(torch.float32) / saved.bytes <= FP32[method] / 100
