"""Mask decoder of SAM without prompts: Segment Anything (arXiv:2304.02643)."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CHECKPOINT = "facebook/sam-vit-base"  # decoder that was trained with the image encoder ``samvit_base_patch16.sa1b``


class SAMDecoder(nn.Module):
    """Transformers' mask decoder with the learned embedding of "no mask" in the place of prompts, and one mask.

    Layers without effect on this mask are left out: the head that rates masks, and the last layers of the other masks.

    Args:
        channels: Channels C of the map of the image encoder.
        weights: ``True`` for the decoder of SAM ViT-B, ``False`` for random weights, otherwise a folder or a name on
            the hub with a SAM model in the form of transformers.

    Raises:
        FileNotFoundError: If there are no such weights, or no network.
        ValueError: If the decoder reads maps of another number of channels, or transformers is not installed.
    """

    positions: Tensor

    def __init__(self, channels: int, weights: bool | str = True) -> None:
        super().__init__()
        name = CHECKPOINT if weights is True else weights
        self.decoder, self.no_mask, positions = read_parts(name) if name else random_parts(channels)
        width = self.no_mask.embedding_dim
        if width != channels:
            raise ValueError(
                f"decoder_weights={weights!r}: a decoder of maps with {width} channels, and the image encoder gives "
                f"{channels}; use the decoder of the same SAM, or false for random weights"
            )
        self.register_buffer("positions", positions)
        self.decoder.num_mask_tokens = 1
        self.decoder.output_hypernetworks_mlps = self.decoder.output_hypernetworks_mlps[:1]
        self.decoder.iou_prediction_head = nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        """Logits (B, 1, 4 h, 4 w) of the object, for maps (B, C, h, w)."""
        codes = self.codes(maps.shape[2], maps.shape[3]).expand(len(maps), -1, -1, -1)
        # added here, because torch's counter of FLOPs cannot follow a view of a parameter into a module
        maps = maps + self.no_mask.weight[:, :, None, None]
        return self.decoder(maps, codes.to(maps.dtype), None, maps.new_zeros(()), multimask_output=False)[0][:, 0]

    def codes(self, height: int, width: int) -> Tensor:
        """Position codes (1, C, h, w): sine and cosine of random projections of the place, from -1 to 1."""
        y, x = ((2 * torch.arange(n, device=self.positions.device) + 1) / n - 1 for n in (height, width))
        places = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)
        angles = 2 * math.pi * (places.to(self.positions.dtype) @ self.positions)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).permute(2, 0, 1)[None]


Parts = tuple[Any, nn.Embedding, Tensor]
"""Mask decoder, embedding of "no mask", and projections of places (2, C / 2)."""


def random_parts(channels: int) -> Parts:
    """Parts of a decoder with random weights.

    Raises:
        ValueError: If transformers is not installed.
    """
    sam, modeling = library()
    decoder = modeling.SamMaskDecoder(sam.SamMaskDecoderConfig(hidden_size=channels, attn_implementation="sdpa"))
    return decoder, nn.Embedding(1, channels), torch.randn(2, channels // 2)


def read_parts(name: str) -> Parts:
    """Parts of a SAM in the form of transformers.

    Args:
        name: Folder with ``config.json`` and ``model.safetensors``, or a name on the hub.

    Raises:
        FileNotFoundError: If there are no such weights, or no network.
        ValueError: If transformers is not installed.
    """
    modeling = library()[1]
    try:
        if Path(name).exists() and not Path(name, "config.json").is_file():
            raise OSError("no config.json in it")
        model = modeling.SamModel.from_pretrained(name, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(
            f"decoder_weights={name!r}: the mask decoder could not be loaded ({reason}). Nothing was trained. Download "
            f"config.json and model.safetensors of huggingface.co/{CHECKPOINT} into a folder and pass "
            "--model.decoder_weights FOLDER, or false for random weights"
        ) from error
    projections = model.shared_image_embedding.positional_embedding.detach().clone()
    return model.mask_decoder, model.prompt_encoder.no_mask_embed, projections


def library() -> tuple[Any, Any]:
    """Transformers' settings and layers of SAM.

    Raises:
        ValueError: If transformers is not installed, with the command that installs it.
    """
    try:
        from transformers.models.sam import configuration_sam, modeling_sam
    except ImportError as error:
        raise ValueError(
            "the mask decoder of SAM needs transformers: pip install transformers (or `.[sam]` of this project)"
        ) from error
    return configuration_sam, modeling_sam
