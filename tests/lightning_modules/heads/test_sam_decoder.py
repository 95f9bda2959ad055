"""Mask decoder of SAM without prompts, against transformers' whole model."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import SamConfig, SamModel

from lightning_modules.heads.sam_decoder import SAMDecoder


def write_sam(folder: Path, channels: int = 32) -> SamModel:
    """Write a small SAM with random weights, whose decoder reads maps of 4 x 4 places."""
    torch.manual_seed(3)
    encoder = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64, "patch_size": 16}
    encoder |= {"output_channels": channels, "window_size": 2, "global_attn_indexes": [0], "mlp_dim": 16}
    encoder |= {"num_pos_feats": channels // 2}
    prompts = {"hidden_size": channels, "image_size": 64, "patch_size": 16, "image_embedding_size": 4}
    decoder = {"hidden_size": channels, "mlp_dim": 24, "num_attention_heads": 2, "iou_head_hidden_dim": channels}
    config = SamConfig(vision_config=encoder, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    model = SamModel(config).eval()
    model.save_pretrained(folder)
    return model


def test_equal_to_the_whole_model(tmp_path: Path) -> None:
    """Without prompts, with one mask, for several images; layers without effect are left out."""
    sam = write_sam(tmp_path)
    decoder, maps = SAMDecoder(32, str(tmp_path)).eval(), torch.randn(2, 32, 4, 4)
    with torch.no_grad():
        expected = sam(image_embeddings=maps, multimask_output=False).pred_masks[:, 0]
        torch.testing.assert_close(decoder(maps), expected, atol=1e-5, rtol=1e-5)
        assert decoder(torch.randn(1, 32, 3, 5)).shape == (1, 1, 12, 20)
    decoder.train()(maps).sum().backward()
    assert all(p.grad is not None for p in decoder.parameters())
    assert decoder.no_mask.weight.grad.any()
    assert len(list(decoder.decoder.output_hypernetworks_mlps)) == 1


@pytest.mark.usefixtures("on_meta")
def test_count_of_vit_b() -> None:
    """The published decoder has 4,058,340 parameters: 132,612 of the rating head and 394,176 of other masks less."""
    decoder = SAMDecoder(256, False)
    rating = 2 * (256 * 256 + 256) + 256 * 4 + 4
    masks = 3 * (2 * (256 * 256 + 256) + 256 * 32 + 32)
    assert sum(p.numel() for p in decoder.decoder.parameters()) == 4_058_340 - rating - masks
    assert decoder.no_mask.weight.numel() == 256


def test_missing_weights(tmp_path: Path) -> None:
    for name in (str(tmp_path), "nobody/no-sam"):
        with pytest.raises(FileNotFoundError, match=r"the mask decoder could not be loaded .*Nothing was trained"):
            SAMDecoder(32, name)
    write_sam(tmp_path / "sam")
    with pytest.raises(ValueError, match="a decoder of maps with 32 channels, and the image encoder gives 64"):
        SAMDecoder(64, str(tmp_path / "sam"))


def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.models.sam", None)
    with pytest.raises(ValueError, match=r"needs transformers: pip install transformers \(or `\.\[sam\]`"):
        SAMDecoder(32, False)
