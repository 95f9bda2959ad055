"""LightningCLI of this project: --method, --recipe, a folder per run, no silent change of hyper-parameters."""

import logging
import os
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import LightningDataModule, Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import CheckpointIO

from callbacks.save_config import SaveConfig
from checkpoints.atomic import AtomicCheckpointIO
from commands.lightning.callbacks import run_callbacks
from commands.lightning.checks import check_options
from commands.lightning.conflicts import refuse_conflicts, refuse_names, refuse_to_score
from commands.lightning.failures import run_failures, trainer_refusals
from commands.lightning.folders import ENTRY, data_name, digest, new_run_folder
from commands.lightning.loggers import place_loggers, user_environment, wandb_names, wandb_offline
from commands.lightning.options import add_options
from commands.lightning.origins import Value, values_of_run
from commands.lightning.parser import GraftParser
from commands.lightning.saved import LIGHTNING_NAMES, Saved, read_saved
from commands.lightning.shortcuts import Expanded, expand
from commands.lightning.slurm import checkpoint_before_restart, requeued_on_signal
from commands.lightning.trainer import GraftTrainer
from datamodules.base import DataModule
from methods import PEFTMethod
from methods.core.parallel_settings import ParallelSettings

# advertisements of Lightning 2.6 in every run, and a warning of torch 2.13 and newer about Lightning
logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip: " not in record.getMessage())
warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
# without a network it prints several lines for each try, although the error of this project is enough
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


class GraftCLI(LightningCLI):
    """LightningCLI with a run folder; see ``run``.

    Args:
        command: The command line.
    """

    def __init__(self, command: Expanded) -> None:
        self.command = command
        super().__init__(
            model_class=PEFTMethod,
            datamodule_class=LightningDataModule,
            trainer_class=GraftTrainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            parser_class=GraftParser,
            trainer_defaults={"max_epochs": 100, "log_every_n_steps": 10},
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
        )

    @classmethod
    def run(cls, args: list[str]) -> "GraftCLI":
        """Parse a command line (without the program's name) and run its subcommand."""
        command = expand(args)
        # DDP restarts the script from sys.argv, so the expanded flags must be there
        argv, sys.argv = sys.argv, [str(ENTRY), *command.args]
        try:
            with user_environment():
                return cls(command)
        finally:
            sys.argv = argv

    @property
    def options(self) -> Namespace:
        """The parsed options of the subcommand."""
        return self.config[self.config.subcommand]

    @property
    def ckpt_path(self) -> str | None:
        """Checkpoint file or adapter folder of the command line, if any."""
        path = self.options.get("ckpt_path")
        return path if path and path not in LIGHTNING_NAMES else None

    # parser

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The subcommand of the command line alone, because each costs a second of looking at signatures."""
        name = self.command.subcommand
        return {name: LightningCLI.subcommands()["fit" if name == "score" else name]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        assert isinstance(parser, GraftParser)
        add_options(parser, self.command.subcommand)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        check_options(self.options, self.command.subcommand)

    def _parse_ckpt_path(self) -> None:
        """Replaced by ``expand``, because here the checkpoint would silently win over the user's flags."""

    # before the objects exist

    def before_instantiate_classes(self) -> None:
        options, name = self.options, self.command.subcommand
        # before this project changes some, such as folders
        self.save_config_kwargs["values"] = [(v.option, v.text, v.source, v.place) for v in self.values()] or None
        refuse_names(options.get("ckpt_path"))
        self.run_digest = digest(options)
        before = checkpoint_before_restart(Path(options.run_root), self.run_digest) if name == "fit" else None
        if before is not None:
            print(f"SLURM has started this job again: the fit goes on from {before}")
            options.ckpt_path = str(before)
        if self.ckpt_path and not options.get("override_checkpoint") and Path(self.ckpt_path).exists():
            saved, model = self.saved(self.ckpt_path), options.model
            average = options.ema.decay if name == "fit" else saved.ema_decay
            refuse_conflicts(saved, model.class_path, model.init_args.as_dict(), average)
        folder = new_run_folder(options, name)
        options.trainer.default_root_dir = str(folder)
        options.trainer.logger = place_loggers(options.trainer.logger, folder)
        if name == "score":
            options.score.cache_dir = options.score.cache_dir or str(folder)
        method, backbone = options.model.class_path.rpartition(".")[2], options.model.init_args.get("backbone") or ""
        names = wandb_names(name, method, data_name(options), options.seed_everything, str(backbone))
        os.environ.update(names | dict(os.environ))  # variables of the user win
        if wandb_offline(options.trainer.logger):
            os.environ["WANDB_MODE"] = "offline"

    def values(self) -> list[Value]:
        """All values of the run with their sources; none without a recipe."""
        if self.command.recipe is None:
            return []
        return values_of_run(*self.command.recipe, self.options, self._parser(self.command.subcommand))

    def saved(self, path: str) -> Saved:
        """The checkpoint at a path, read already unless a config file names it."""
        saved = self.command.saved
        return saved if saved is not None and saved.path == path else read_saved(path, self.command.subcommand)

    # objects

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
            if self.subcommand == "score":
                refuse_to_score(self.model, self.model.method_name(), self.options.ckpt_path)
            if self.options.get("members") is not None:
                export = self.options.get("export_member", "best")
                self.model = ParallelSettings(self.model, self.options.members, export)
        except BaseException:
            self.remove_empty_folder()
            raise

    def remove_empty_folder(self) -> None:
        """Remove the run folder if it is empty, because a run that never began leaves nothing."""
        folder = Path(self.options.trainer.default_root_dir)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        resume = self.ckpt_path is not None
        with trainer_refusals():
            self.trainer_defaults["callbacks"] = run_callbacks(
                self.options, self.command.subcommand, self.model, self.datamodule, resume
            )
        plugins = self.plugins
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, AtomicCheckpointIO()]
        with trainer_refusals():
            return super().instantiate_trainer(**kwargs, plugins=plugins)

    @property
    def plugins(self) -> list[Any]:
        """Plugins of the user for the trainer."""
        found = self._get(self.config_init, "trainer").get("plugins") or []
        return found if isinstance(found, list) else [found]

    def after_instantiate_classes(self) -> None:
        follows = self.subcommand == "fit" and self.options.test_after_fit
        if follows and isinstance(self.datamodule, DataModule):  # a datamodule from elsewhere has no such check
            self.datamodule.will_test()

    # run

    def _run_subcommand(self, subcommand: str) -> None:
        with ExitStack() as stack:
            stack.callback(self.remove_empty_folder)
            stack.enter_context(warnings.catch_warnings())
            stack.enter_context(run_failures(self.options))
            if subcommand == "fit":
                folder = Path(self.options.trainer.default_root_dir)
                environments = [plugin for plugin in self.plugins if isinstance(plugin, SLURMEnvironment)]
                stack.enter_context(requeued_on_signal(folder, self.run_digest, environments))
            if subcommand not in ("fit", "score"):
                # Lightning asks for the callbacks of the fit, and its folder, which an evaluation does not need
                warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used")
                warnings.filterwarnings("ignore", message="The dirpath has changed")
            super()._run_subcommand(subcommand)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs, path = super()._prepare_subcommand_kwargs(subcommand), self.ckpt_path
        if path is None:
            return kwargs
        if self.model.init_from is not None:
            print(f"note: init_from={self.model.init_from!r} is not read: ckpt_path={path!r} holds later values")
        self.model.forget_warm_start()
        if Path(path).is_dir():
            if subcommand == "fit":
                raise ValueError(f"ckpt_path={path!r} is an adapter folder: it holds no optimizer state to resume from")
            self.model.load_delta(self.saved(path).adapter)
            kwargs["ckpt_path"] = None
        elif not Path(path).is_file():
            raise FileNotFoundError(f"ckpt_path={path!r}: no such file")
        return kwargs

    def after_score(self) -> None:
        if self.trainer.is_global_zero:
            print(f"picture and table are in {self.trainer.default_root_dir}")
            print(f"a fit uses these scores with --score.cache_dir {self.options.score.cache_dir}")

    def after_fit(self) -> None:
        if self.options.test_after_fit and not self.options.trainer.fast_dev_run:
            best = self.trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best or None, verbose=False)
