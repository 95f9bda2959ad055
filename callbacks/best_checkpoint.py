"""Checkpoint of the best epoch, also over a fit that was interrupted."""

import os
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from checkpoints.atomic import write_atomically
from checkpoints.delta import read_checkpoint


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best epoch; a resumed fit starts with the best one before it.

    A resumed fit has a run folder of its own, and Lightning's callback forgets the best epoch when the folder changes:
    the best of the later epochs would count, although an earlier one may be better.
    """

    @property
    def state_key(self) -> str:
        # checkpoints of before this class hold the state under the name of its base
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        before = Path(state_dict["best_model_path"])
        if self.dirpath is not None and self.save_top_k == 1 and os.path.isfile(before):
            own = Path(self.dirpath) / before.name
            if own != before:
                read_checkpoint(before, option="best_model_path")  # refuses a damaged file, or one of another kind
                copy(before, own)
            score = state_dict["best_model_score"]
            state_dict = state_dict | {
                "dirpath": self.dirpath,
                "best_model_path": str(own),
                "best_k_models": {str(own): score},
                "kth_best_model_path": str(own),
                "last_model_path": "",
            }
        super().load_state_dict(state_dict)


@rank_zero_only
def copy(source: Path, target: Path) -> None:
    """Copy a checkpoint, so that the folder of each run is whole."""
    write_atomically(target, lambda temporary: shutil.copyfile(source, temporary), lambda: source.stat().st_size)
