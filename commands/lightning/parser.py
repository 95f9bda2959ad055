"""Parser of the command line."""

import re
from argparse import _SubParsersAction
from collections.abc import Iterable
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

import datamodules
import methods
from commands.lightning import strict_yaml
from commands.lightning.arguments import arguments
from commands.lightning.names import near

strict_yaml.use()


class GraftParser(LightningArgumentParser):
    """Parser that names the most similar option when one is unknown."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # without abbreviations, because --trainer.max_epoch is a slip and not max_epochs
        super().__init__(*args, **kwargs | {"allow_abbrev": False})
        self.skipped: list[str] = []

    def skip_in_configs(self, options: Iterable[str]) -> None:
        """Skip options in config files, where the config of a fit has options that other subcommands do not have."""
        self.skipped += options

    def add_method_arguments(self, theclass: type, themethod: str, *args: Any, **kwargs: Any) -> list[str]:
        # `score` has the options of `fit`; a group named "score" would clash with --score.*
        return super().add_method_arguments(theclass, "fit" if themethod == "score" else themethod, *args, **kwargs)

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        return super().parse_string(without(content, self.skipped), *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        parsers = [self, *(p for a in self._actions if isinstance(a, _SubParsersAction) for p in a.choices.values())]
        known = {action.dest: action.dest for parser in parsers for action in parser._actions if action.dest}
        for group, module in {"model": methods, "data": datamodules}.items():
            known |= {name: f"{group}.{name}" for name in arguments(module)}
        found = re.findall(r"--([\w.]+)|(?:[Oo]ption|[Kk]ey) ['\"]?([\w.]+)['\"]?", message)
        for flag, key in dict.fromkeys(found):
            word = (flag or key).rpartition("init_args.")[2]
            similar = near(word.removeprefix("model.").removeprefix("data."), known, cutoff=0.7)
            if similar and (flag or word not in known) and word not in known.values():
                message += f"\n{word}: did you mean {' or '.join(f'--{known[name]}' for name in similar)}?"
        super().error(message, ex)


def without(content: str, keys: Iterable[str]) -> str:
    """A config in YAML without some keys of its first level.

    Args:
        content: The config. One that is no YAML or no mapping is returned as it is, so that the parser refuses it.
        keys: Keys to leave out.
    """
    try:
        node = yaml.compose(content, Loader=strict_yaml.Loader)
    except yaml.YAMLError:
        return content
    if not isinstance(node, yaml.MappingNode):
        return content
    kept = [pair for pair in node.value if pair[0].value not in keys]
    if len(kept) == len(node.value):
        return content
    node.value = kept
    return yaml.serialize(node)
