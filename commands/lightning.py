"""LightningCLI for this project: --method, --recipe, a folder per run, no silent change of hyper-parameters."""

import difflib
import hashlib
import json
import logging
import os
import re
import sys
import warnings
from argparse import _SubParsersAction
from pathlib import Path
from pydoc import locate
from types import ModuleType
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only

import datamodules
import methods
from callbacks.cost import Cost
from callbacks.delta_export import DeltaExport
from callbacks.features.cache import FeatureCache
from callbacks.finite_loss import StopOnNonFiniteLoss
from callbacks.predictions import Predictions
from callbacks.result import Result
from callbacks.save_config import SaveConfig
from callbacks.scoring.score_before_fit import ScoreBeforeFit
from checkpoints.atomic import AtomicCheckpointIO
from checkpoints.delta import read_checkpoint
from lightning_modules import TASKS
from methods import METHODS, PEFTMethod, compose
from methods.core.parallel_settings import ParallelSettings
from methods.core.selective import Selective

ENTRY = Path(__file__).resolve().parent.parent / "train.py"
RECIPES = ENTRY.parent / "configs" / "recipe"
RECIPE_KEYS = {"method": str, "data": str, "all": dict, "tasks": dict, "grid": dict}
GIVEN = frozenset(os.environ)  # a variable that the user set is not ours to change
NOT_SAVED = ("num_classes",)  # the data say it, also when a checkpoint is loaded

# what Lightning 2.6 advertises in every run, and what torch 2.13 and newer says of it
logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip: " not in record.getMessage())
warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
# several lines for each of its tries without a network, where one message of ours says what is missing
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


class GraftParser(LightningArgumentParser):
    """Names the nearest option when one is unknown."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # --trainer.max_epoch is a slip, not max_epochs
        super().__init__(*args, **kwargs | {"allow_abbrev": False})

    def add_method_arguments(self, theclass: type, themethod: str, *args: Any, **kwargs: Any) -> list[str]:
        # score takes what fit takes, and a group of its name would be in the way of --score.cache_dir
        return super().add_method_arguments(theclass, "fit" if themethod == "score" else themethod, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        parsers = [self, *(p for a in self._actions if isinstance(a, _SubParsersAction) for p in a.choices.values())]
        known = {action.dest: action.dest for parser in parsers for action in parser._actions if action.dest}
        for group, module in {"model": methods, "data": datamodules}.items():
            known |= {name: f"{group}.{name}" for name in arguments(module)}
        found = re.findall(r"--([\w.]+)|(?:[Oo]ption|[Kk]ey) ['\"]?([\w.]+)['\"]?", message)
        for flag, key in dict.fromkeys(found):
            word = (flag or key).rpartition("init_args.")[2]
            near = difflib.get_close_matches(word.removeprefix("model.").removeprefix("data."), known, n=3, cutoff=0.7)
            if near and (flag or word not in known) and word not in known.values():
                message += f"\n{word}: did you mean {' or '.join(f'--{known[name]}' for name in near)}?"
        super().error(message, ex)


def arguments(module: ModuleType) -> set[str]:
    """Every argument that some class of a module takes, its own or a base's of this project."""
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    bases = {base for cls in classes for base in cls.__mro__ if not base.__module__.startswith(("torch", "lightning."))}
    found = {name for base in bases for name in getattr(vars(base).get("__init__"), "__annotations__", {})}
    return found - {"return", "kwargs"}


class GraftTrainer(Trainer):
    """A Trainer that can stop where the fit would begin."""

    def score(self, model: PEFTMethod, datamodule: LightningDataModule, **kwargs: Any) -> None:
        """Score weights or channels, and draw what the method would choose."""
        self.limit_train_batches = self.limit_val_batches = 0
        model.configure_optimizers = no_optimizer  # type: ignore[method-assign]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*returned `None`, this fit will run with no optimizer")
            self.fit(model, datamodule=datamodule)


def no_optimizer() -> None:
    """What ``score`` trains with."""


class GraftCLI(LightningCLI):
    """LightningCLI with a run folder; see ``run``."""

    asked: str

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the one that was asked for: each of the four costs a second of looking at signatures."""
        known = LightningCLI.subcommands()
        return {self.asked: known["fit" if self.asked == "score" else self.asked]}

    @classmethod
    def run(cls, args: list[str]) -> "GraftCLI":
        """Parse a command line (without the program's name) and run its subcommand."""
        # in sys.argv, and not as an argument: from there the processes of the other devices are started
        argv, sys.argv = sys.argv, [str(ENTRY), *expand(args)]
        try:
            cls.asked = args[0]
            return cls(
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
        finally:
            sys.argv = argv
            if "wandb" in sys.modules:  # everything is written, and the next run of this process is one of its own
                sys.modules["wandb"].finish(exit_code=int(sys.exc_info()[0] is not None))

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.description = (
            f"{parser.description} Beside the options below: --method NAME[+NAME] and --task NAME stand for --model "
            "(`train.py methods` lists them); --recipe BENCHMARK/METHOD, or a file of yours, stands for a published "
            "method, data and options (`train.py recipes`), over which what you write yourself wins."
        )
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/acc1",
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                "checkpoint.enable_version_counter": False,
            }
        )
        parser.add_lightning_class_args(ScoreBeforeFit, "score")
        parser.add_lightning_class_args(FeatureCache, "features")
        parser.add_argument(
            "--members",
            type=list[dict[str, Any]] | dict[str, list[Any]] | None,
            default=None,
            help="Settings that train at once over one frozen backbone: a list of the options of each, or a grid.",
        )
        parser.add_argument(
            "--export_member", type=str, default="best", help="Which of the members goes into the adapter folder."
        )
        parser.add_argument("--run_root", type=str, default="runs", help="Folder of all run folders.")
        parser.add_argument(
            "--test_after_fit", type=bool, default=False, help="Whether to test the best checkpoint after the fit."
        )
        parser.add_argument(
            "--override_checkpoint",
            type=bool,
            default=False,
            help="Whether model options may differ from those saved in --ckpt_path.",
        )

    def _parse_ckpt_path(self) -> None:
        """Replaced by ``expand``: here the checkpoint would win over the user's flags without a word."""

    @property
    def given(self) -> Namespace:
        """The parsed options of the subcommand."""
        return self.config[self.config.subcommand]

    def before_instantiate_classes(self) -> None:
        self.refuse_conflicts()
        given, method = self.given, self.given.model.class_path.rpartition(".")[2]
        data = given.data.init_args.get("root", given.data.class_path)
        data = re.sub(r"\W+", "_", Path(str(data).rpartition(".")[2] or str(data)).name)
        if given.data.init_args.get("task"):
            data = f"{data}-{given.data.init_args.task}"
        identity = given.clone()
        for place in ("trainer.logger", "trainer.default_root_dir", "checkpoint.dirpath", "run_root", "config"):
            identity.pop(place, None)  # where a run writes is no part of what it computes
        digest = hashlib.sha256(json.dumps(identity.as_dict(), default=str, sort_keys=True).encode()).hexdigest()[:8]
        if self.subcommand != "fit":
            digest = f"{self.subcommand}-{digest}"
        folder = run_folder(Path(given.run_root) / method / data / digest)
        given.trainer.default_root_dir = str(folder)
        given.checkpoint.dirpath = str(folder / "checkpoints")
        self.place_loggers(folder)
        cost = Cost()
        result = Result(cost, test_follows=given.test_after_fit)
        # save_last of the best epoch's callback would skip every epoch that is not better than all before
        last = ModelCheckpoint(folder / "checkpoints", "last", enable_version_counter=False)
        self.trainer_defaults["callbacks"] = [StopOnNonFiniteLoss(), cost, DeltaExport(), result, Predictions(), last]
        if self.subcommand == "score":
            given.score.cache_dir = given.score.cache_dir or str(folder)
            self.trainer_defaults["callbacks"] = [result]
        elif given.trainer.logger is not False:
            self.trainer_defaults["callbacks"].append(LearningRateMonitor())
        # W&B reads these; options of its logger win over them
        backbone = given.model.init_args.get("backbone", "")
        environment = {
            "WANDB_PROJECT": "graft",
            "WANDB_RUN_GROUP": f"{method}-{data}",
            "WANDB_JOB_TYPE": {"fit": "train", "score": "score"}.get(self.subcommand or "", "eval"),
            "WANDB_NAME": f"{method}-{data}-s{given.seed_everything}",
            "WANDB_TAGS": ",".join(tag[:64] for tag in (method, data, str(backbone)) if tag),
        }
        if "WANDB_API_KEY" not in os.environ and not (Path.home() / ".netrc").exists():
            environment["WANDB_MODE"] = "offline"
        os.environ.update({key: value for key, value in environment.items() if key not in GIVEN})

    def place_loggers(self, folder: Path) -> None:
        """Let every logger write into the run folder; a CSV logger unless the user named others."""
        given = self.given.trainer
        if given.logger is None or given.logger is True:
            given.logger = [Namespace(class_path="lightning.pytorch.loggers.CSVLogger", init_args=Namespace())]
        for logger in given.logger if isinstance(given.logger, list) else [given.logger] if given.logger else []:
            logger.init_args["save_dir"] = str(folder)
            if logger.class_path.endswith("CSVLogger"):
                logger.init_args["name"] = logger.init_args["version"] = ""

    def refuse_conflicts(self) -> None:
        """Stop when a flag or a config disagrees with the checkpoint that is to be loaded.

        Raises:
            ValueError: With both values of every option that differs, or for the name of a checkpoint without its run.
        """
        path = self.given.get("ckpt_path")
        if path in ("best", "last"):
            raise ValueError(
                f"ckpt_path={path!r}: every run has a folder of its own, and this one's holds no checkpoint yet. "
                f"Give the file, RUN/checkpoints/{path}.ckpt"
            )
        if not path or self.given.override_checkpoint or not Path(path).exists():
            return
        saved = read_checkpoint(path)["hyper_parameters"]
        options = self.given.model.init_args.as_dict()
        starts = getattr(locate(saved["_class_path"]), "warm_start_options", ())  # a resumed run does not start there
        differences = [
            f"{name}: {saved[name]!r} in the checkpoint, {options[name]!r} here"
            for name in saved.keys() & options.keys() - {*NOT_SAVED, *starts}
            if options[name] != saved[name]
        ]
        if saved["_class_path"] != self.given.model.class_path:
            differences.insert(
                0, f"class: {saved['_class_path']} in the checkpoint, {self.given.model.class_path} here"
            )
        if differences:
            raise ValueError(
                f"ckpt_path={path!r} was trained with other options: {'; '.join(sorted(differences))}. "
                "Leave them out, or pass --override_checkpoint true"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        plugins = self._get(self.config_init, "trainer").get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, AtomicCheckpointIO()]
        return super().instantiate_trainer(**kwargs, plugins=plugins)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
            if self.subcommand == "score":
                self.refuse_to_score()
            if self.given.members is not None:
                self.model = ParallelSettings(self.model, self.given.members, self.given.export_member)
        except BaseException:
            folder = Path(self.given.trainer.default_root_dir)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()  # a run that never began leaves nothing
            raise

    def refuse_to_score(self) -> None:
        """Stop where there is nothing to score.

        Raises:
            ValueError: If the method chooses nothing from data, or has chosen.
        """
        if not isinstance(self.model, Selective) or self.model.scorer is None:
            known = ", ".join(
                name for name, method in METHODS.items() if issubclass(method, Selective) and method.scorer
            )
            raise ValueError(f"{self.model.method_name()} chooses nothing from data; methods that do: {known}")
        if self.given.ckpt_path:
            raise ValueError(f"ckpt_path={self.given.ckpt_path!r} holds a selection: leave it out to score anew")

    def after_instantiate_classes(self) -> None:
        self.datamodule.test_follows = self.subcommand == "fit" and bool(self.given.test_after_fit)
        # without validation data there is nothing to monitor: the last epoch counts
        if self.subcommand == "fit" and getattr(self.datamodule, "validates", True) is False:
            self._get(self.config_init, "checkpoint").monitor = None

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        path = kwargs.get("ckpt_path")
        if path and path not in ("best", "last", "hpc"):
            if self.model.init_from is not None:
                print(f"note: init_from={self.model.init_from!r} is not read: ckpt_path={path!r} holds later values")
            self.model.forget_warm_start()
        if path and Path(path).is_dir():
            if subcommand == "fit":
                raise ValueError(f"ckpt_path={path!r} is an adapter folder: it holds no optimizer state to resume from")
            self.model.load_delta(path)
            kwargs["ckpt_path"] = None
        elif path and path not in ("best", "last", "hpc") and not Path(path).is_file():
            raise FileNotFoundError(f"ckpt_path={path!r}: no such file")
        return kwargs

    def before_fit(self) -> None:
        # the trainer does not know of a checkpoint yet when scoring would begin
        path = self.given.get("ckpt_path")
        self._get(self.config_init, "score").resume |= bool(path) and path not in ("best", "last", "hpc")

    def after_score(self) -> None:
        if self.trainer.is_global_zero:
            print(f"picture and table are in {self.trainer.default_root_dir}")
            print(f"a fit uses these scores with --score.cache_dir {self.given.score.cache_dir}")

    def after_fit(self) -> None:
        if self.given.test_after_fit and not self.given.trainer.fast_dev_run:
            best = self.trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best or None, verbose=False)


def expand(args: list[str]) -> list[str]:
    """Rewrite what LightningCLI does not know: ``--recipe``, ``--method``, ``--task``, a checkpoint's options."""
    subcommand, *rest = args
    recipe, rest = take(rest, "--recipe")
    if recipe is not None:
        rest = follow(recipe, rest)
    method, rest = take(rest, "--method")
    task, rest = take(rest, "--task")
    if method is not None:
        names = [nearest(name, METHODS, "method") for name in method.split("+")]
        task = nearest(task or "classification", TASKS, "task")
        cls = compose(*(METHODS[name] for name in names), task=TASKS[task])
        rest = ["--model", f"{cls.__module__}.{cls.__qualname__}", *rest]
    elif task is not None:
        raise ValueError(f"--task {task} needs a --method")
    for flag, module in {"--data": datamodules, "--model": methods}.items():
        name = take(rest, flag)[0]
        if name is not None and re.fullmatch(r"\w+", name) and not hasattr(module, name):
            classes = {n: c for n, c in vars(module).items() if isinstance(c, type) and c.__name__ == n}
            usable = (PEFTMethod, LightningDataModule)
            known = {n: c for n, c in classes.items() if issubclass(c, usable) and c is not PEFTMethod}
            nearest(name, known, flag.removeprefix("--"))
    path = take(rest, "--ckpt_path")[0]
    if path and path not in ("best", "last", "hpc"):
        saved = {k: v for k, v in read_checkpoint(path)["hyper_parameters"].items() if k not in NOT_SAVED}
        saved.pop("_instantiator", None)
        model = {"class_path": saved.pop("_class_path"), "init_args": saved}
        rest = ["--config", json.dumps({"model": model}), *rest]
    return [subcommand, *rest]


def follow(name: str, args: list[str]) -> list[str]:
    """Put the method, the data and the flags of a recipe in front of what the user wrote, which so wins over them.

    Raises:
        ValueError: If the recipe has numbers per task and the task is missing or unknown, or for another method.
    """
    recipe = read_recipe(name)
    flags = dict(recipe.get("all", {}))
    if "tasks" in recipe:
        task = take(args, "--data.task")[0]
        if task is None:
            raise ValueError(f"--recipe {name} needs a --data.task, one of: {', '.join(recipe['tasks'])}")
        task = getattr(getattr(datamodules, recipe["data"], None), "aliases", {}).get(task, task)
        flags |= recipe["tasks"][nearest(task, recipe["tasks"], "task")]
    method, args = take(args, "--method")
    method = method or recipe["method"]
    if not set(recipe["method"].split("+")) <= set(method.split("+")):
        raise ValueError(f"--method {method}: --recipe {name} is one of {recipe['method']}; leave one of the two out")
    front = ["--method", method, "--data", recipe["data"]]
    return [*front, *(f"--{key}={v if isinstance(v, str) else json.dumps(v)}" for key, v in flags.items()), *args]


def read_recipe(name: str) -> dict[str, Any]:
    """The content of ``configs/recipe/NAME.yaml``, or of a file of the user's own.

    Raises:
        ValueError: If there is no such recipe or file, or it does not hold what a recipe holds.
    """
    known = {path.relative_to(RECIPES).with_suffix("").as_posix(): path for path in sorted(RECIPES.rglob("*.yaml"))}
    path = known.get(name, Path(name))
    if not path.is_file():
        nearest(name, known, "recipe")
    try:
        recipe = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {path} is no YAML: {error}") from error
    if not isinstance(recipe, dict) or not {"method", "data"} <= recipe.keys():
        raise ValueError(f"recipe {path} says no method and data; expected the keys {', '.join(RECIPE_KEYS)}")
    kinds = {key: RECIPE_KEYS[nearest(str(key), RECIPE_KEYS, f"key of recipe {path}:")] for key in recipe}
    values = list(recipe.items())
    for key, value in values:
        if not isinstance(value, kinds.get(key, dict)):
            raise ValueError(f"recipe {path}: {key} is {value!r}; expected a {kinds.get(key, dict).__name__}")
        if key == "tasks":
            values += [(f"tasks.{task}", flags) for task, flags in value.items()]
    return recipe


def take(args: list[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of the last ``--flag value`` or ``--flag=value``, which counts, and the arguments without it."""
    for i, arg in reversed(list(enumerate(args))):
        if arg == flag and i + 1 < len(args):
            return args[i + 1], args[:i] + args[i + 2 :]
        if arg.startswith(f"{flag}="):
            return arg.removeprefix(f"{flag}="), args[:i] + args[i + 1 :]
    return None, args


def nearest(name: str, known: dict[str, Any], kind: str) -> str:
    """The name if it is known.

    Raises:
        ValueError: With the nearest names and all that there are.
    """
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"nearest: {', '.join(near)}; " if near else ""
    raise ValueError(f"unknown {kind} {name!r}; {hint}known: {', '.join(known)}")


def run_folder(folder: Path) -> Path:
    """A folder that no other run has: ``id``, or ``id-2`` if that is taken. Rank 0 makes it, the others follow."""
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
