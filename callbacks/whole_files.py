"""Checkpoints that are there whole or not at all."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from callbacks.delta_file import write_atomically


class WholeFiles(TorchCheckpointIO):
    """Write a checkpoint beside its place, then rename it: a full disk leaves the one before as it was.

    Lightning writes elsewhere and copies, which leaves half a file under the final name where the space ends.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write one checkpoint.

        Raises:
            OSError: If it cannot be written, with the path and its state.
        """
        try:
            write_atomically(Path(path), lambda temporary: torch.save(checkpoint, temporary))
        except (OSError, RuntimeError) as error:  # torch's own writer says what the system said
            before = "the file before it is as it was" if Path(path).exists() else "no file was left there"
            raise OSError(f"cannot write {path} ({error}); {before}") from error
