"""Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning (arXiv:2205.05638).

``softmax(q (l_k k)^T / sqrt(d)) (l_v v)`` in each attention and ``W2 (l_ff gelu(W1 x))`` in each MLP, where only the
vectors l_k, l_v and l_ff train.
"""

from typing import Any

import torch
from torch import Tensor, nn

from backbones.anatomy import call_qkv, output_names, weight_layers
from backbones.blocks import MLP_OUTPUTS, attention_blocks, layers_named
from backbones.inject import AdapterModule, Backbone, attach, attach_before, detach, modules_with
from backbones.projections import attention_rows
from methods.core.base import PEFTMethod


class ChannelScale(AdapterModule):
    """Factors l of channels, which start at 1: of some output channels of a layer, or of all its input channels.

    Args:
        channels: Number of channels C that the feature has.
        rows: Scaled output channels (n,); None for all input channels.
        spatial: Whether the feature is (B, C, H, W) instead of (B, ..., C).
    """

    rows: Tensor | None

    def __init__(self, channels: int, rows: Tensor | None, spatial: bool) -> None:
        super().__init__()
        self.channels, self.spatial = channels, spatial
        self.register_buffer("rows", rows, persistent=False)
        self.l = nn.Parameter(torch.ones(channels if rows is None else len(rows)))

    def factors(self) -> Tensor:
        """Factors (C,) of all channels, 1 for those that are not scaled."""
        return self.l if self.rows is None else self.l.new_ones(self.channels).index_copy(0, self.rows, self.l)

    def scaled(self, x: Tensor) -> Tensor:
        """Feature x times the factors of its channels."""
        factors = self.factors().to(x.dtype)  # otherwise a bf16 feature would become fp32
        return x * (factors[:, None, None] if self.spatial else factors)

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return self.scaled(output)

    def pre_hook(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return self.scaled(args[0]), *args[1:]


class IA3(PEFTMethod):
    """Scales of keys, values and hidden channels, (IA)^3 (Liu et al., NeurIPS 2022, arXiv:2205.05638).

    Where a layer computes keys or values and the network adds their bias afterwards, as in BEiT, the bias is not
    scaled.

    Args:
        ia3_attention: Whether keys and values are scaled.
        ia3_mlp: Whether the inputs of the last layer of each MLP are scaled.
    """

    def __init__(self, ia3_attention: bool = True, ia3_mlp: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not (ia3_attention or ia3_mlp):
            raise ValueError("ia3_attention and ia3_mlp are both false: expected one of them, otherwise nothing trains")
        self.ia3_attention, self.ia3_mlp = ia3_attention, ia3_mlp

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        keys_values = self.keys_values(backbone) if self.ia3_attention else {}
        outputs = mlp_outputs(backbone) if self.ia3_mlp else []
        if not keys_values and not outputs:
            raise ValueError(
                f"(IA)^3 scales keys, values and MLPs of transformers, and {type(backbone).__name__} has none whose "
                "layers are known: use ssf, which scales all layers, or lora or bitfit"
            )
        call_qkv(backbone)
        for name, rows in keys_values.items():
            layer: Any = backbone.get_submodule(name)
            rows = rows.to(layer.weight.device)
            attach(layer, "ia3", ChannelScale(len(layer.weight), rows, isinstance(layer, nn.Conv2d)))
        for layer in outputs:
            attach_before(layer, "ia3", ChannelScale(layer.weight.shape[1], None, isinstance(layer, nn.Conv2d)))

    def keys_values(self, backbone: Backbone) -> dict[str, Tensor]:
        """Output channels that are keys or values, by the name of the layer that computes them."""
        layers = weight_layers(backbone, tuple(self.head_names))
        found = {}
        for name, parts in attention_rows(backbone).items():
            rows = [parts[part] for part in ("k", "v") if part in parts]
            if rows and name in layers and linear_in_weight(layers[name]):
                found[name] = torch.cat(rows)
        return found

    def merge_into(self, backbone: Backbone) -> None:
        for layer in modules_with(backbone, "ia3"):
            op: Any = detach(layer, "ia3")
            factors = op.factors()
            if op.rows is None:
                layer.weight.mul_(factors.view(1, -1, *[1] * (layer.weight.dim() - 2)))
            else:
                layer.weight.mul_(factors.view(-1, *[1] * (layer.weight.dim() - 1)))
                if layer.bias is not None:
                    layer.bias.mul_(factors)
        call_qkv(backbone, False)
        super().merge_into(backbone)


def mlp_outputs(backbone: Backbone) -> list[Any]:
    """Last layer of the MLP of each transformer block."""
    last = [layer for block in attention_blocks(backbone) for layer in layers_named(block.mlp, MLP_OUTPUTS)[-1:]]
    return [layer for layer in last if linear_in_weight(layer) and getattr(layer, "groups", 1) == 1]


def linear_in_weight(layer: nn.Module) -> bool:
    """Whether the output of a layer is linear in its weight and bias, which is not so if it standardises the weight."""
    return output_names(layer) == ("weight", "bias")
