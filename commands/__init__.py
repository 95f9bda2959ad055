"""Subcommands of ``train.py``: ``lightning`` holds those of Lightning, every other module or package is one command.

A command is a typed function named as its module, whose arguments become options. A command that parses its words
itself has a function ``main`` instead.
"""

import pkgutil

NAMES = sorted(info.name for info in pkgutil.iter_modules(__path__) if info.name != "lightning")
