"""What ``train.py`` runs: ``lightning.py`` holds Lightning's own subcommands, every other module one of ours.

A command of ours is a typed function named as its module. One whose only parameter is ``args`` gets the bare words.
"""

import pkgutil

NAMES = sorted(info.name for info in pkgutil.iter_modules(__path__) if info.name != "lightning")
