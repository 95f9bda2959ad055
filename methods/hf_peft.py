"""Methods of Hugging Face's package peft (https://github.com/huggingface/peft), such as IA3, LoHa, LoKr, OFT and BOFT.

``y = T(x)`` takes the place of ``y = W x + b`` in chosen layers, where the layer T of peft reads the frozen W and b.
"""

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from backbones.anatomy import call_qkv, ends, weight_layers
from backbones.inject import Backbone
from methods.core.base import PEFTMethod
from methods.layers.peft_layers import import_peft, inject, merge_layers

PROMPTS = "it adds tokens to the input of a language model: use vpt or e2vpt"
# types that need more than layers; each other type of the package is accepted
REFUSED = {
    "ADALORA": "it changes its ranks by calls between the steps of the training: use LORA",
    "ADAPTION_PROMPT": PROMPTS,
    "CARTRIDGE": PROMPTS,
    "CPT": PROMPTS,
    "LN_TUNING": "the method ln_tuning of this project takes its place",
    "MULTITASK_PROMPT_TUNING": PROMPTS,
    "OSF": "its hooks break copies of the model: use the method sara",
    "P_TUNING": PROMPTS,
    "POLY": "its forward pass needs the number of a task: use LORA",
    "PREFIX_TUNING": PROMPTS,
    "PROMPT_TUNING": PROMPTS,
    "PSOFT": "its frozen factors are in no file, and another machine may compute others: use OFT",
    "SHADOW": "it runs a second language model beside the first: use the method last or hst",
    "TRAINABLE_TOKENS": "it trains rows of a table of words, and an image model has none: use vpt",
    "XLORA": "it mixes adapters that were trained before: use LORA",
}
# options that train more than the layers of the package, each with what to do
TRAIN_MORE = {
    "bias": "stack bitfit, as in --method hf_peft+bitfit",
    "modules_to_save": "leave it out, because the classifier trains in any case",
    "target_parameters": "use target_modules",
    "trainable_token_indices": "leave it out, because an image model has no table of words",
}


class HFPeft(PEFTMethod):
    """Methods of Hugging Face's package peft, given by a file with the package's own config.

    Frozen weights keep their names, and merging is that of the package. Frozen random tensors of the package, such as
    indices, are saved with the trained ones, unless the config has ``save_projection: false``.

    Args:
        peft_config: JSON or YAML file with ``peft_type``, ``target_modules`` and further options of that type, such as
            an ``adapter_config.json``; or these options themselves. ``target_modules: all-linear`` means all linear
            layers outside stem and classifier.
    """

    unmergeable = "the package peft has no merge for LILY"
    uncompilable = "torch.compile cannot trace some layers of the package peft; use a method such as lora, dora or vera"

    def __init__(self, peft_config: dict[str, Any] | str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # the options and not the path, because a checkpoint must load without the file
        self.peft_config = self.hparams["peft_config"] = read_config(peft_config)
        self.mergeable = build_config(self.peft_config).peft_type != "LILY"

    def adapt(self, backbone: Backbone) -> None:
        super().adapt(backbone)
        config = build_config(self.peft_config)
        config.target_modules = self.find_targets(backbone, config.target_modules)
        call_qkv(backbone)
        before = {name: tensor.detach().clone() for name, tensor in backbone.state_dict().items()}
        names = inject(backbone, config)
        in_head = [name for name in names if any(f"{name}.".startswith(f"{head}.") for head in self.head_names)]
        if in_head:
            raise ValueError(
                f"peft_config: target_modules={self.peft_config['target_modules']!r} names {in_head[0]} of the "
                "classifier, which trains in full: name other layers"
            )
        after = backbone.state_dict()
        changed = [name for name, value in before.items() if not value.is_meta and not torch.equal(value, after[name])]
        if changed:
            raise ValueError(
                f"peft_config: its initial values change the frozen weights, such as {changed[0]}; expected an "
                "initialisation that keeps them, such as init_lora_weights: true"
            )

    def find_targets(self, backbone: Backbone, targets: Any) -> Any:
        """Names of layers, or a regular expression, for the package.

        Args:
            backbone: The backbone.
            targets: ``target_modules`` of the config.

        Raises:
            ValueError: If no layer has one of the names, or there is no linear layer.
        """
        layers = weight_layers(backbone, tuple(self.head_names))
        last = ", ".join(list(dict.fromkeys(name.rpartition(".")[2] for name in layers))[:8])
        if targets == "all-linear":
            linear = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
            if not linear:
                raise ValueError(
                    f"peft_config: {type(backbone).__name__} has no linear layer outside its classifier for "
                    "target_modules all-linear: use names of its convolutions there, or the method lora"
                )
            return linear
        names = [name for name, _ in backbone.named_modules()]
        given = [] if isinstance(targets, str) else sorted(targets)
        missing = [target for target in given if not any(ends(name, target) for name in names)]
        if missing:
            raise ValueError(
                f"peft_config: no layer of {type(backbone).__name__} is called {', '.join(missing)} (target_modules); "
                f"expected names such as {last}"
            )
        return targets

    def merge_into(self, backbone: Backbone) -> None:
        merge_layers(backbone)
        call_qkv(backbone, False)
        super().merge_into(backbone)


def read_config(given: dict[str, Any] | str | None) -> dict[str, Any]:
    """Options of a config file of the package, or the options that were given.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If no options were given, or the file is damaged.
    """
    if given is None:
        raise ValueError(
            "peft_config is missing: pass --model.peft_config FILE, a JSON or YAML file with peft_type, target_modules "
            "and further options of the package peft"
        )
    if isinstance(given, dict):
        return dict(given)
    try:
        text = Path(given).read_text()
        found = json.loads(text) if given.endswith(".json") else yaml.safe_load(text)
    except OSError as error:
        raise FileNotFoundError(f"peft_config={given!r}: no readable file ({error.strerror})") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"peft_config={given!r} is no JSON or YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ValueError(f"peft_config={given!r} holds no options; expected some, such as peft_type: LOHA")
    return found


def build_config(options: dict[str, Any]) -> Any:
    """Config of the package, of the class for its type.

    Args:
        options: Options by name, with ``peft_type``.

    Raises:
        ValueError: If the package is not installed, or the type or an option is unknown or cannot be used here.
    """
    classes = {str(kind.value): cls for kind, cls in import_peft().PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    name = str(options.get("peft_type")).upper()
    if name in REFUSED:
        raise ValueError(f"peft_config: peft_type {name} cannot be used, because {REFUSED[name]}")
    if name not in classes:
        known = ", ".join(sorted(classes.keys() - REFUSED.keys()))
        raise ValueError(f"peft_config: peft_type={options.get('peft_type')!r}; expected one of {known}")
    given = {option: value for option, value in options.items() if option != "peft_type" and value is not None}
    for option, remedy in TRAIN_MORE.items():
        if given.get(option, "none") not in ("none", []):
            raise ValueError(f"peft_config: {option}={given[option]!r} trains more than added layers: {remedy}")
    fields = classes[name].__dataclass_fields__
    unknown = [option for option in given if option not in fields]
    if unknown:
        near = ", ".join(get_close_matches(unknown[0], fields) or fields)
        raise ValueError(f"peft_config: {name} has no option {', '.join(unknown)}; expected {near}")
    if not given.get("target_modules"):
        raise ValueError("peft_config: target_modules is missing; expected names of layers such as [qkv, fc1]")
    if "save_projection" in fields:
        given.setdefault("save_projection", True)  # not the default of every type
    try:
        return classes[name](**given | {"inference_mode": False})
    except (ValueError, TypeError, ImportError) as error:
        raise ValueError(f"peft_config: {name} does not take these options: {error}") from error
