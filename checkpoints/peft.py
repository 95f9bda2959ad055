"""Adapter folder of HF peft for LoRA and DoRA: ``adapter_model.safetensors`` and ``adapter_config.json``."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoints.delta import CONFIG, WEIGHTS

PREFIX = "base_model.model."
# with these options, the output of a layer depends on more than A and B; each with its value for "not in use"
REFUSED: dict[str, Any] = {
    "bias": "none",
    "fan_in_fan_out": False,
    "lora_bias": False,
    "use_qalora": False,
    "layer_replication": None,
    "target_parameters": None,
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "kasa_config": None,
    "monteclora_config": None,
}
# initialisations that change the weights of the backbone, by the first word of init_lora_weights
CHANGES_BACKBONE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")


@dataclass
class LowRankLayer:
    """Tensors of one linear layer in peft: A (r, in), B (out, r) and, for DoRA, a magnitude (out,)."""

    A: Tensor
    B: Tensor
    scale: float
    magnitude: Tensor | None = None

    def merge_into(self, weight: Tensor) -> Tensor:
        """Weight ``W + scale B A``; for DoRA, each row is scaled to the norm ``magnitude``."""
        weight = weight + self.scale * self.B @ self.A
        return weight if self.magnitude is None else weight * (self.magnitude / weight.norm(dim=1))[:, None]


def write_peft(folder: Path, layers: Mapping[str, LowRankLayer], saved: Mapping[str, Tensor]) -> None:
    """Write an adapter that ``peft.PeftModel.from_pretrained`` loads onto the plain model.

    Args:
        folder: Existing folder for the two files.
        layers: Layers by their full names in the plain model.
        saved: Tensors of modules that trained in full, by their full names.
    """
    tensors = {f"{PREFIX}{name}": tensor for name, tensor in saved.items()}
    for name, layer in layers.items():
        tensors |= {f"{PREFIX}{name}.lora_A.weight": layer.A, f"{PREFIX}{name}.lora_B.weight": layer.B}
        if layer.magnitude is not None:
            tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = layer.magnitude
    ranks = {name: layer.A.shape[0] for name, layer in layers.items()}
    alphas = {name: layer.scale * ranks[name] for name, layer in layers.items()}  # peft multiplies by alpha / r
    rank, alpha = most_common(ranks), most_common(alphas)
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "r": rank,
        "lora_alpha": alpha,
        # a full name is a pattern too: it matches each layer whose name ends with it
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "target_modules": list(layers),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in saved}) or None,
        "use_dora": any(layer.magnitude is not None for layer in layers.values()),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2))


def most_common(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def read_peft(folder: Path) -> tuple[dict[str, LowRankLayer], dict[str, Tensor]]:
    """Read a LoRA or DoRA adapter: its layers, and the tensors of modules that were saved in full.

    Raises:
        FileNotFoundError: If one of the two files is missing.
        ValueError: If a file is damaged, or its layers are not of the form ``W + scale B A``.
    """
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: no such file; a peft adapter holds {WEIGHTS} and {CONFIG}")
    try:
        config = json.loads((folder / CONFIG).read_text())
        tensors = {n.removeprefix(PREFIX): t.float() for n, t in load_file(folder / WEIGHTS).items()}
    except (json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"{folder}: one of {CONFIG} and {WEIGHTS} is empty or damaged: {error}") from error
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{folder / CONFIG}: peft_type is {config.get('peft_type')!r}; expected 'LORA'")
    used = [name for name, unused in REFUSED.items() if config.get(name, unused) not in (unused, None)]
    start = str(config.get("init_lora_weights", True)).lower()
    if used or start.startswith(CHANGES_BACKBONE):
        reason = ", ".join(f"{name}={config[name]!r}" for name in used) or f"init_lora_weights={start!r}"
        raise ValueError(f"{folder / CONFIG} has {reason}, so its A and B alone are not the adapter")

    layers: dict[str, LowRankLayer] = {}
    for key in [key for key in tensors if key.endswith(".lora_A.weight")]:
        name = key.removesuffix(".lora_A.weight")
        A, B = tensors.pop(key), tensors.pop(f"{name}.lora_B.weight", None)
        if B is None or A.dim() != 2 or B.dim() != 2 or A.shape[0] != B.shape[1]:
            raise ValueError(f"{folder / WEIGHTS}: {name} has no fitting pair of two-dimensional lora_A and lora_B")
        rank = A.shape[0]
        divisor = sqrt(rank) if config.get("use_rslora") else rank
        magnitude = tensors.pop(f"{name}.lora_magnitude_vector", None)
        layers[name] = LowRankLayer(A, B, alpha_of(name, config) / divisor, magnitude)
    rest = sorted(name for name in tensors if ".lora_" in name)
    if rest or not layers:
        found = ", ".join(rest[:3]) or "no lora_A and lora_B"
        raise ValueError(f"{folder / WEIGHTS} holds {found}: it is no LoRA of linear layers")
    uses_dora = bool(config.get("use_dora"))
    if any((layer.magnitude is not None) is not uses_dora for layer in layers.values()):
        wrong = "a layer without a magnitude" if uses_dora else "a magnitude"
        raise ValueError(f"{folder}: use_dora is {uses_dora}, but {WEIGHTS} holds {wrong}")
    return layers, tensors


def alpha_of(name: str, config: Mapping[str, Any]) -> float:
    """Alpha of a layer: the value of the first pattern that matches the end of its name, or the common value."""
    for pattern, alpha in (config.get("alpha_pattern") or {}).items():
        try:
            found = re.match(rf"(.*\.)?({pattern})$", name)
        except re.error as error:
            raise ValueError(f"alpha_pattern has {pattern!r}, which is no regular expression: {error}") from error
        if found:
            return float(alpha)
    return float(config.get("lora_alpha", 8))  # peft's own default
