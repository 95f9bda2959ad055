"""Model card beside the adapter of a run."""

import json
from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from checkpoints.model_card import write_card

LOAD = """# inside a checkout of Graft
from methods import PEFTMethod
model = PEFTMethod.from_delta("adapter")  # the path of this folder"""


class ModelCard(Callback):
    """Writes ``adapter/README.md`` from ``result.json`` after a complete fit, and again after a test that follows."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = Path(str(trainer.log_dir))
        result = folder / "result.json"
        if trainer.is_global_zero and (folder / "adapter").is_dir() and result.is_file():
            license = (getattr(pl_module.backbone, "pretrained_cfg", None) or {}).get("license")
            write_card(folder / "adapter", json.loads(result.read_text()), "graft", LOAD, license)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_fit_end(trainer, pl_module)
