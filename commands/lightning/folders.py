"""Folders of runs."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

ENTRY = Path(__file__).resolve().parents[2] / "train.py"
# options that tell where a run writes, which does not change what it computes
PLACES = ("trainer.logger", "trainer.default_root_dir", "checkpoint.dirpath", "run_root", "config")


def data_name(options: Any) -> str:
    """Name of the data in run folders: the last folder of ``data.root``, and ``data.task``.

    Args:
        options: Parsed options of the subcommand.
    """
    root = str(options.data.init_args.get("root", options.data.class_path))
    name = re.sub(r"\W+", "_", Path(root.rpartition(".")[2] or root).name)
    task = options.data.init_args.get("task")
    return f"{name}-{task}" if task else name


def digest(options: Any) -> str:
    """Digest of the options of a run, which is equal for runs that compute the same."""
    identity = options.clone()
    for place in PLACES:
        identity.pop(place, None)
    return hashlib.sha256(json.dumps(identity.as_dict(), default=str, sort_keys=True).encode()).hexdigest()[:8]


def new_run_folder(options: Any, subcommand: str) -> Path:
    """Make the folder RUN_ROOT/METHOD/DATA/ID of a run, whose ID is the digest of its options."""
    if not options.run_root.strip():  # otherwise the folder from which the command was started
        raise ValueError(f"run_root={options.run_root!r}: expected a folder")
    name = digest(options) if subcommand == "fit" else f"{subcommand}-{digest(options)}"
    return run_folder(Path(options.run_root) / options.model.class_path.rpartition(".")[2] / data_name(options) / name)


def run_folder(folder: Path) -> Path:
    """Make a folder that no other run has: ``id``, or ``id-2`` if that exists. Rank 0 makes it, the others use it.

    Raises:
        ValueError: If the folder cannot be made.
    """
    from lightning.pytorch.utilities import rank_zero_only

    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return Path(os.environ.get("GRAFT_RUN_DIR", folder))
    candidate, number = folder, 1
    while True:
        try:
            candidate.mkdir(parents=True)
            break
        except FileExistsError:
            number += 1
            candidate = folder.with_name(f"{folder.name}-{number}")
        except OSError as error:  # a file in its place, no permission, no space
            raise ValueError(f"run_root: cannot make the folder {candidate}: {error.strerror}") from error
    os.environ["GRAFT_RUN_DIR"] = str(candidate)
    return candidate
