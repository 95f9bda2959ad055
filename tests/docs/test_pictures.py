"""Pictures of what trains."""

from docs.pictures import trained_by_block, trained_picture

TENSORS = (("backbone.blocks.0.attn.qkv.lora.A", 6), ("blocks.10.mlp.fc1.bias", 3), ("blocks.10.norm1.weight", 2))
TENSORS += (("blocks.0.prompts", 4), ("backbone.hst.blocks.0.attn.q", 5))


def test_places() -> None:
    assert trained_by_block(TENSORS) == {
        "attention": {"0": 6},
        "MLP": {"10": 3},
        "norms": {"10": 2},
        "others": {"0": 4, "outside": 5},
    }


def test_the_same_bytes_again() -> None:
    first, second = trained_picture(TENSORS), trained_picture(TENSORS)
    assert first.lstrip().startswith("<?xml")
    assert len(first) == len(second)
    assert all(f"<!-- {word} -->" in first for word in ("outside", "10", "attention"))
