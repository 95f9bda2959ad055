"""Loggers of a run: their folder, and the names that W&B shows."""

import importlib
import inspect
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_only

INIT_TIMEOUT = 15  # seconds; W&B's own 90 would hold up a run whose server does not answer
JOB_TYPES = {"fit": "train", "score": "score"}  # by subcommand; all others evaluate


def place_loggers(loggers: Any, folder: Path) -> Any:
    """Let every logger write into the run folder.

    Args:
        loggers: Value of ``trainer.logger``: configs of loggers, False, or None for the default, a CSV logger.
        folder: The run folder.

    Returns:
        The new value of ``trainer.logger``.
    """
    if loggers is False:
        return False
    if loggers is None or loggers is True:
        loggers = [Namespace(class_path="lightning.pytorch.loggers.CSVLogger", init_args=Namespace())]
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        module, _, name = logger.class_path.rpartition(".")
        if "save_dir" in inspect.signature(getattr(importlib.import_module(module), name)).parameters:
            logger.init_args["save_dir"] = str(folder)  # otherwise a logger that writes to a server alone
        if logger.class_path.endswith("CSVLogger"):
            logger.init_args["name"] = logger.init_args["version"] = ""
    return loggers


def wandb_names(subcommand: str, method: str, data: str, seed: Any, backbone: str) -> dict[str, str]:
    """Environment variables with which W&B names a run; options of its logger win over them.

    Args:
        subcommand: Such as ``fit``.
        method: Class of the model.
        data: Name of the data.
        seed: Seed of the run.
        backbone: Name of the backbone, one of the tags; may be empty.
    """
    names = {
        "WANDB_PROJECT": "graft",
        "WANDB_INIT_TIMEOUT": str(INIT_TIMEOUT),
        "WANDB_RUN_GROUP": f"{method}-{data}",
        "WANDB_JOB_TYPE": JOB_TYPES.get(subcommand, "eval"),
        "WANDB_NAME": f"{method}-{data}-s{seed}",
        "WANDB_TAGS": ",".join(tag[:64] for tag in (method, data, backbone) if tag),
    }
    if "WANDB_API_KEY" not in os.environ and not (Path.home() / ".netrc").exists():
        names["WANDB_MODE"] = "offline"
    return names


def wandb_offline(loggers: Any) -> bool:
    """Whether W&B would log online to a server that refuses a connection, so that a run should log offline instead.

    Args:
        loggers: Value of ``trainer.logger`` as ``place_loggers`` returns it.
    """
    loggers = loggers if isinstance(loggers, list) else [loggers] if loggers else []
    online = [logger for logger in loggers if logger.class_path.endswith("WandbLogger")]
    online = [logger for logger in online if not logger.init_args.get("offline") and not logger.init_args.get("mode")]
    if not online or os.environ.get("WANDB_MODE", "online") not in ("online", "shared"):
        return False
    import wandb

    settings = wandb.Settings()
    if hasattr(settings, "update_from_system_settings"):  # of late versions; it reads the server of `wandb login`
        settings.update_from_system_settings()
    url = urlsplit(os.environ.get("WANDB_BASE_URL") or settings.base_url)
    if getproxies().get(url.scheme):
        return False  # only W&B itself can ask the proxy
    try:
        socket.create_connection((url.hostname or "", url.port or 443), timeout=5).close()
    except OSError as error:
        reason = error.strerror or error
        note = f"note: W&B at {url.netloc} cannot be reached ({reason}); logging offline, `wandb sync` uploads later"
        rank_zero_only(print)(note)
        return True
    return False


@contextmanager
def user_environment() -> Iterator[None]:
    """Finish the run of W&B at the end, and restore the variables that W&B reads, so that a next run has its own."""
    before = {name for name in os.environ if name.startswith("WANDB_")}
    try:
        yield
    finally:
        if "wandb" in sys.modules:
            sys.modules["wandb"].finish(exit_code=int(sys.exc_info()[0] is not None))
        for name in {*wandb_names("", "", "", "", ""), "WANDB_MODE"} - before:
            os.environ.pop(name, None)
