"""Export of the delta as an adapter folder (safetensors and JSON)."""

from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from checkpoints.delta import one_member, read_checkpoint, write_adapter


class DeltaExport(Callback):
    """Writes the delta of the best checkpoint to ``adapter/`` in the run folder at the end of a complete fit."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = Path(str(trainer.log_dir)) / "adapter"
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        if not trainer.is_global_zero or not best or trainer.interrupted:
            return
        checkpoint = read_checkpoint(best)
        if "members" in checkpoint:
            checkpoint = one_member(checkpoint, pl_module.export_member)  # type: ignore[arg-type]
        write_adapter(folder, checkpoint)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                self.log_artifacts(logger, folder)

    def log_artifacts(self, logger: WandbLogger, folder: Path) -> None:
        import wandb

        for kind, path in {"adapter": folder, "config": folder.parent / "config.yaml"}.items():
            if path.exists():
                artifact = wandb.Artifact(f"{logger.experiment.id}-{kind}", type=kind)
                (artifact.add_dir if path.is_dir() else artifact.add_file)(str(path))
                logger.experiment.log_artifact(artifact)
