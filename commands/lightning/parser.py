"""Parser of the command line."""

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
from commands.lightning.short_errors import ShortErrors

strict_yaml.use()


class GraftParser(ShortErrors, LightningArgumentParser):
    """Parser of the subcommands of Lightning."""

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

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Namespace:
        try:
            return super().parse_path(cfg_path, *args, **kwargs)
        except UnicodeDecodeError as error:
            return self.error(f"{cfg_path}: expected a config, a text in UTF-8, and the file is none", error)

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        return super().parse_string(without(content, self.skipped), *args, **kwargs)

    def known_options(self) -> dict[str, str]:
        """Options, by their names and by those of the arguments of methods and data without their group."""
        parsers = [self, *(p for a in self._actions if isinstance(a, _SubParsersAction) for p in a.choices.values())]
        known = {action.dest: action.dest for parser in parsers for action in parser._actions if action.dest}
        for group, module in {"model": methods, "data": datamodules}.items():
            own = arguments(module)
            known |= {name: f"{group}.{name}" for name in own} | {f"{group}.{name}": f"{group}.{name}" for name in own}
        return known


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
