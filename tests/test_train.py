"""The command line: what it refuses, what it writes, and which value wins."""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import wandb
import yaml
from lightning.pytorch.loggers import WandbLogger

from commands.lightning.cli import GraftCLI
from commands.lightning.folders import run_folder
from commands.lightning.shortcuts import expand
from methods import METHODS
from tests.conftest import BACKBONE, CLASSES, ROOT, TINY
from train import LIGHTNING, main


class Answer(NamedTuple):
    """Of a command line."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """``call("fit", "--method", "ssf")``: run a command line in this process."""

    def run(*args: object) -> Answer:
        code = 0
        capsys.readouterr()
        try:
            main([str(arg) for arg in args])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Answer(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def base(images: Path, weights: Path) -> list[str]:
    """Options of every run: tiny data, two steps, a quiet CPU trainer."""
    trainer = {"max_epochs": 1, "limit_train_batches": 2, "accelerator": "cpu"}
    trainer |= {"enable_progress_bar": "false", "enable_model_summary": "false"}
    return ["--data", "ImageDataset", "--data.root", str(images), "--data.batch_size", "4"] + [
        f"--trainer.{key}={value}" for key, value in trainer.items()
    ]


@pytest.fixture(scope="session")
def model(weights: Path) -> list[str]:
    """SSF on the tiny backbone."""
    options = {"backbone": BACKBONE, "pretrained": weights, "weight_decay": 0.05}
    options |= {f"backbone_args.{key}": value for key, value in TINY.items()}
    return ["--method", "ssf", *[f"--model.{key}={value}" for key, value in options.items()]]


@pytest.fixture(scope="session")
def fitted(base: list[str], model: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a fit, which no test may change."""
    root = tmp_path_factory.mktemp("runs")
    cli = GraftCLI.run(["fit", *model, *base, "--run_root", str(root), "--test_after_fit=true"])
    return Path(cli.trainer.default_root_dir)


def folders(root: Path) -> list[Path]:
    """Run folders, METHOD/DATA/ID, in the order of their names."""
    return sorted(root.glob("*/*/*"))


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Content and time of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


# help


def test_help_in_a_process_of_its_own() -> None:
    answer = subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0
    assert not answer.stderr
    for command in (*LIGHTNING, "grid", "merge", "methods", "prepare"):
        assert f"\n  {command} " in answer.stdout, command


def test_help_of_fit_is_whole_in_a_process_of_its_own() -> None:
    # it leaves without taking the modules apart, so what it printed has to be out by then
    answer = subprocess.run([sys.executable, "train.py", "fit", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "--test_after_fit" in answer.stdout
    assert answer.stdout.endswith("\n")


def test_no_arguments_give_the_overview(call: Callable[..., Answer]) -> None:
    assert call().out == call("-h").out == call("--help").out


@pytest.mark.parametrize("command", [*LIGHTNING, "grid", "merge", "methods", "prepare"])
def test_help_of_a_command(command: str, call: Callable[..., Answer]) -> None:
    answer = call(command, "--help")
    assert answer.code == 0
    assert "usage" in answer.out


@pytest.mark.parametrize("method", METHODS)
def test_help_names_every_argument(method: str, call: Callable[..., Answer]) -> None:
    name = f"{METHODS[method].__name__}Classification"
    text = call("fit", f"--model.help={name}").out
    own = [argument for argument in getattr(METHODS[method].__init__, "__annotations__", {}) if argument != "return"]
    for argument in {*own, "backbone", "lr", "warmup_epochs", "label_smoothing"} - {"kwargs"}:
        assert f"--model.{argument} " in text, argument
    assert "Peak learning rate" in text


# what is unknown


def test_unknown_command(call: Callable[..., Answer]) -> None:
    answer = call("fitt")
    assert answer.code == 2
    assert "unknown command 'fitt'; expected fit, score, validate, test, predict" in answer.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--method", "sff"], "unknown method 'sff'; nearest: ssf"),
        (["--method=linear-probe"], "unknown method 'linear-probe'; nearest: linear_probe"),
        (["--method", "ssf+bitfitt"], "unknown method 'bitfitt'; nearest: bitfit"),
        (["--method", "ssf", "--task", "clasification"], "unknown task 'clasification'; nearest: classification"),
        (["--task", "classification"], "--task classification needs a --method"),
        (["--model", "SFFClassification"], "unknown model 'SFFClassification'; nearest: SSFClassification"),
        (["--method", "ssf", "--model.backbone", "vit_tinny_patch16_224"], "Nearest: vit_tiny_patch16_224"),
        (["--method", "ssf", "--model.pretrained", "nothing.pth"], "'nothing.pth': no such file"),
        (["--method", "ssf", "--data.root", "./nothing"], "data.root='./nothing': no such folder"),
        (["--method", "ssf", "--ckpt_path", "nothing.ckpt"], "ckpt_path='nothing.ckpt': no such file"),
        (["--ckpt_path", "nothing.ckpt"], "ckpt_path='nothing.ckpt': no such file"),
        (["--method", "ssf", "--ckpt_path", "last"], "Give the file, RUN/checkpoints/last.ckpt"),
        (["--method", "ssf", "--model.label_smoothing=2"], "label_smoothing=2.0: expected a share"),
        (["--method", "ssf", "--model.drop_path=1.5"], "drop_path=1.5: expected a probability"),
        (["--method", "ssf", "--model.mixup=-1"], "mixup=-1.0: expected a positive number"),
        (["--method", "ssf", "--model.weight_decay=-1"], "weight_decay=-1.0: expected 0 or more"),
        (["--method", "ssf", "--ema.decay=1"], "ema.decay=1.0: expected a decay"),
        (["--method", "ssf", "--model.backbone_args.img_sizee=4"], "unexpected keyword argument 'img_sizee'"),
    ],
)
def test_refused_by_this_project(
    args: list[str], message: str, base: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    answer = call("fit", *base, "--model.pretrained=false", *args, "--run_root", tmp_path)
    assert answer.code == 1
    assert message in answer.err
    assert "Traceback" not in answer.err
    assert not folders(tmp_path), "a run that never began left a folder"


def test_unknown_data(model: list[str], call: Callable[..., Answer]) -> None:
    answer = call("fit", *model, "--data", "ImageDatset")
    assert answer.code == 1
    assert "unknown data 'ImageDatset'; nearest: ImageDataset" in answer.err


def test_data_of_one_class(images: Path, model: list[str], call: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/rose").symlink_to(images / "train/rose")
    answer = call("fit", *model, "--data", "ImageDataset", "--data.root", tmp_path / "images", "--run_root", tmp_path)
    assert answer.code == 1
    assert "num_classes=1: expected at least 2 classes" in answer.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.weight_decy", "1"], "did you mean --model.weight_decay?"),
        (["--weight_decay", "1"], "did you mean --model.weight_decay?"),
        (["--model.ssf_stdd=1"], "did you mean --model.ssf_std?"),
        (["--data.batchsize=1"], "did you mean --data.batch_size"),
        (["--trainer.maxx_epochs=1"], "did you mean --trainer.max_epochs"),
        (["--trainer.max_epoch=3"], "did you mean --trainer.max_epochs"),  # no abbreviation
        (["--model.lr", "fast"], "Got value: fast"),
        (["--model.optimizer", "adagrad"], "adagrad"),
        (["--config", "nothing.yaml"], "File does not exist"),
    ],
)
def test_refused_by_the_parser(
    args: list[str], message: str, base: list[str], model: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    answer = call("fit", *model, *base, *args, "--run_root", tmp_path)
    assert answer.code == 2
    assert message in answer.err
    assert not folders(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: {init_args: [1", "line 1"),
        ("model:\n  init_args:\n    weigth_decay: 1\n", "did you mean --model.weight_decay?"),
        ("trainer:\n  max_epoch: 1\n", "did you mean --trainer.max_epochs"),
        ("model:\n  init_args:\n    lr: [1]\n", 'key "lr"'),
        ("trayner: {max_epochs: 1}\n", "trayner"),
    ],
)
def test_bad_config(
    content: str, message: str, base: list[str], model: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    answer = call("fit", *model, *base, "--config", tmp_path / "bad.yaml", "--run_root", tmp_path)
    assert answer.code == 2
    assert message in answer.err


def test_missing_data(model: list[str], call: Callable[..., Answer]) -> None:
    answer = call("fit", *model)
    assert answer.code == 2
    assert "required: fit.data" in answer.err


def test_traceback_on_request(call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown method"):
        call("fit", "--method", "sff")


def test_a_defect_shows_its_traceback(call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GraftCLI, "run", lambda args: json.loads("a library's ValueError"))
    with pytest.raises(json.JSONDecodeError):
        call("fit")


# run folders


def test_what_a_fit_leaves(fitted: Path, images: Path) -> None:
    assert fitted.parent.parent.name == "SSFClassification"
    assert fitted.parent.name == images.name
    expected = {"config.yaml", "metrics.csv", "result.json", "curves.png", "checkpoints", "adapter"}
    assert expected <= {path.name for path in fitted.iterdir()}
    result = json.loads((fitted / "result.json").read_text())
    assert {"val/acc1", "test/acc1", "cost/trainable_params", "best/val/acc1"} <= result.keys()
    with (fitted / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert any(row.get("val/acc1") for row in rows)
    assert any(row.get("test/acc1") for row in rows)


def test_the_same_command_again(base: list[str], model: list[str], call: Callable[..., Answer], tmp_path: Path) -> None:
    command = ("fit", *model, *base, "--run_root", tmp_path)
    assert call(*command).code == 0
    (first,) = folders(tmp_path)
    before = snapshot(first)
    assert call(*command).code == 0
    assert [path.name for path in folders(tmp_path)] == [first.name, f"{first.name}-2"]
    assert snapshot(first) == before, "the second run wrote into the folder of the first"
    again = torch.load(folders(tmp_path)[1] / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    saved = torch.load(first / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, again[name]) for name, tensor in saved.items()), "same seed, other weights"
    assert call(*command, "--seed_everything", 1).code == 0
    other = next(path for path in folders(tmp_path) if not path.name.startswith(first.name))
    weights = torch.load(other / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert not all(torch.equal(tensor, weights[name]) for name, tensor in saved.items())


def test_run_folders_are_never_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAFT_RUN_DIR", raising=False)
    made = [run_folder(tmp_path / "id") for _ in range(3)]
    assert [path.name for path in made] == ["id", "id-2", "id-3"]
    assert os.environ["GRAFT_RUN_DIR"] == str(made[-1])


def test_run_root_that_is_a_file(
    base: list[str], model: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    answer = call("fit", *model, *base, "--run_root", tmp_path / "file")
    assert answer.code == 1
    assert "run_root: cannot make the folder" in answer.err
    assert (tmp_path / "file").read_text() == "mine"


def test_config_of_a_run_repeats_it(fitted: Path, call: Callable[..., Answer], tmp_path: Path) -> None:
    before = snapshot(fitted)
    assert call("fit", "--config", fitted / "config.yaml", "--run_root", tmp_path).code == 0
    (again,) = folders(tmp_path)
    assert again.name == fitted.name
    assert snapshot(fitted) == before, "a run from a config writes where the config came from"
    ours, theirs = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (again, fitted))
    for config in (ours, theirs):
        del config["run_root"], config["trainer"]["logger"]
    assert ours == theirs


# score


@pytest.fixture(scope="session")
def gps(model: list[str]) -> list[str]:
    """GPS on the tiny backbone."""
    return ["--method", "gps", *[option for option in model if option.startswith("--model.") and "decay" not in option]]


def test_score_then_fit(gps: list[str], base: list[str], call: Callable[..., Answer], tmp_path: Path) -> None:
    answer = call("score", *gps, *base, "--run_root", tmp_path / "first")
    assert answer.code == 0, answer.err
    (folder,) = folders(tmp_path / "first")
    assert folder.name.startswith("score-")
    assert f"picture and table are in {folder}" in answer.out
    assert f"--score.cache_dir {folder}" in answer.out
    left = {path.name.partition("-")[0] for path in folder.iterdir()} - {"hparams.yaml", "metrics.csv"}
    assert left == {"config.yaml", "result.json", "scores.csv", "scores.png", "gps"}, "no checkpoint, no curves"
    summary = json.loads((folder / "result.json").read_text())
    assert (summary["score/images"], summary["steps"]) == (24, 0)

    # from the files alone: a fit with another k, and the same fit from the config of the pass
    for options in (
        [*gps, *base, "--model.gps_k=2", "--score.cache_dir", folder],
        ["--config", folder / "config.yaml"],
    ):
        root = tmp_path / str(len(options))
        assert call("fit", *options, "--run_root", root).code == 0
        fitted = json.loads((folders(root)[0] / "result.json").read_text())
        assert (fitted["score/images"], fitted["steps"]) == (0, 2)
        factor = 2 if "--method" in options else 1
        assert fitted["score/selected"] == factor * summary["score/selected"]


def test_score_takes_the_config_of_a_fit(
    gps: list[str], base: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    assert call("fit", *gps, *base, "--run_root", tmp_path / "fit").code == 0
    (fitted,) = folders(tmp_path / "fit")
    assert call("score", "--config", fitted / "config.yaml", "--run_root", tmp_path / "score").code == 0
    (folder,) = folders(tmp_path / "score")
    assert (folder / "scores.csv").read_text() == (fitted / "scores.csv").read_text()
    answer = call("score", "--ckpt_path", fitted / "checkpoints/last.ckpt", *base, "--run_root", tmp_path / "again")
    assert answer.code == 1
    assert "holds a selection: leave it out to score anew" in answer.err


def test_nothing_to_score(model: list[str], base: list[str], call: Callable[..., Answer], tmp_path: Path) -> None:
    answer = call("score", *model, *base, "--run_root", tmp_path)
    assert answer.code == 1
    assert "SSF chooses nothing from data; methods that do: child_tuning, gps, " in answer.err
    assert not folders(tmp_path)


# checkpoints


def test_last_is_the_last_epoch(base: list[str], model: list[str], call: Callable[..., Answer], tmp_path: Path) -> None:
    # accuracy stays as it is, so the first epoch is the best one
    options = ("--trainer.max_epochs=3", "--model.lr=1e-12", "--model.min_lr=0", "--run_root", tmp_path)
    assert call("fit", *model, *base, *options).code == 0
    (folder,) = folders(tmp_path)
    epochs = {p.stem: torch.load(p, weights_only=True)["epoch"] for p in (folder / "checkpoints").iterdir()}
    assert epochs == {"best": 0, "last": 2}


def test_conflict_with_the_checkpoint(
    fitted: Path, base: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    checkpoint = fitted / "checkpoints/last.ckpt"
    command = ("fit", "--ckpt_path", checkpoint, *base, "--trainer.max_epochs=2", "--run_root", tmp_path)
    answer = call(*command, "--model.weight_decay", "0.5", "--model.lr=0.25")
    assert answer.code == 1
    assert "lr: 0.001 in the checkpoint, 0.25 here; weight_decay: 0.05 in the checkpoint, 0.5 here" in answer.err
    assert "--override_checkpoint true" in answer.err
    assert not folders(tmp_path)

    assert call(*command, "--model.weight_decay", "0.5", "--override_checkpoint", "true").code == 0
    (folder,) = folders(tmp_path)
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert saved["epoch"] == 1
    assert saved["hyper_parameters"]["weight_decay"] == 0.5
    assert saved["optimizer_states"][0]["param_groups"][0]["weight_decay"] == 0.5


def test_other_method_than_the_checkpoint(fitted: Path, base: list[str], call: Callable[..., Answer]) -> None:
    answer = call("fit", "--method", "bitfit", "--ckpt_path", fitted / "checkpoints/last.ckpt", *base)
    assert answer.code == 1
    assert "SSFClassification in the checkpoint, methods.BitFitClassification here" in answer.err


@pytest.mark.parametrize("place", ["checkpoints/best.ckpt", "adapter"])
@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_evaluation_without_a_model(
    command: str, place: str, fitted: Path, base: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    assert call(command, "--ckpt_path", fitted / place, *base, "--run_root", tmp_path).code == 0
    (folder,) = folders(tmp_path)
    assert folder.name.startswith(f"{command}-")
    if command == "predict":
        with (folder / "predictions.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 15
        assert {row["class"] for row in rows} <= set(CLASSES)
    else:
        metric = {"test": "test/acc1", "validate": "val/acc1"}[command]
        first, second = (json.loads((path / "result.json").read_text()) for path in (fitted, folder))
        expected = first["best/val/acc1"] if command == "validate" else first[metric]
        assert second[metric] == pytest.approx(expected)


def test_an_adapter_cannot_be_resumed(fitted: Path, base: list[str], call: Callable[..., Answer]) -> None:
    answer = call("fit", "--ckpt_path", fitted / "adapter", *base, "--run_root", fitted / "elsewhere")
    assert answer.code == 1
    assert "is an adapter folder: it holds no optimizer state" in answer.err


@pytest.mark.parametrize("share", [0, 0.5])
def test_damaged_checkpoint(
    share: float, fitted: Path, base: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    whole = (fitted / "checkpoints/last.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: int(share * len(whole))])
    answer = call("test", "--ckpt_path", tmp_path / "half.ckpt", *base, "--run_root", tmp_path / "runs")
    assert answer.code == 1
    assert "is empty, incomplete or unsafe" in answer.err
    assert not folders(tmp_path / "runs")


def test_checkpoint_on_another_backbone(
    fitted: Path, base: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    answer = call(
        *("test", "--ckpt_path", fitted / "checkpoints/last.ckpt", *base, "--run_root", tmp_path),
        *("--model.pretrained=false", "--override_checkpoint=true"),
    )
    assert answer.code == 1
    assert "this delta was trained on other weights" in answer.err


# which value wins


def printed(answer: Answer) -> dict[str, Any]:
    assert answer.code == 0, answer.err
    config: dict[str, Any] = yaml.safe_load(answer.out)
    return config


def test_flag_before_config_before_checkpoint(
    fitted: Path, base: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "decay.yaml").write_text("model: {init_args: {weight_decay: 0.2}}")
    command = ["fit", "--ckpt_path", fitted / "checkpoints/last.ckpt", *base]
    values = []
    for more in ([], ["--config", tmp_path / "decay.yaml"], ["--model.weight_decay", "0.5"]):
        command += more
        config = printed(call(*command, "--print_config"))
        values.append(config["model"]["init_args"]["weight_decay"])
    assert values == [0.05, 0.2, 0.5]
    assert config["model"]["class_path"] == "methods.SSFClassification"
    assert config["model"]["init_args"]["backbone_args"] == TINY


def test_later_configs_win(base: list[str], model: list[str], call: Callable[..., Answer], tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"{number}.yaml").write_text(f"model: {{init_args: {{lr: 0.{number}, min_lr: 0.00{number}}}}}")
    files = ["--config", tmp_path / "1.yaml", "--config", tmp_path / "2.yaml"]
    options = printed(call("fit", *model, *base, *files, "--model.min_lr=0.5", "--print_config"))["model"]["init_args"]
    assert (options["lr"], options["min_lr"]) == (0.2, 0.5)


def test_printed_config_is_the_config(
    base: list[str], model: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    first = call("fit", *model, *base, "--print_config")
    (tmp_path / "printed.yaml").write_text(first.out)
    assert printed(call("fit", "--config", tmp_path / "printed.yaml", "--print_config")) == printed(first)
    assert call("fit", "--config", tmp_path / "printed.yaml", "--run_root", tmp_path / "runs").code == 0
    (folder,) = folders(tmp_path / "runs")
    used, asked = yaml.safe_load((folder / "config.yaml").read_text()), printed(first)
    for config in (used, asked):
        del config["run_root"], config["trainer"]["logger"]
    assert used == asked


def test_method_is_the_model_s_short_name() -> None:
    assert expand(["fit", "--method", "ssf", "--trainer.max_epochs=1"]) == expand(
        ["fit", "--trainer.max_epochs=1", "--method=ssf"]
    )
    assert expand(["fit", "--method", "ssf+bitfit"]).args[1:] == ["--model", "methods.SSFBitFitClassification"]


# loggers


def test_wandb_offline(base: list[str], model: list[str], images: Path, tmp_path: Path) -> None:
    args = ["fit", *model, *base, "--run_root", str(tmp_path), "--config", str(ROOT / "configs/logger/wandb.yaml")]
    cli = GraftCLI.run(args)
    folder = Path(cli.trainer.default_root_dir)
    assert wandb.run is None, "finished, so that the next run of this process is one of its own"
    (run,) = (logger.experiment for logger in cli.trainer.loggers if isinstance(logger, WandbLogger))
    assert Path(run.dir).is_relative_to(folder / "wandb")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for part in ("model", "data", "trainer", "checkpoint"):
        assert run.config[part] == config[part], part
    assert run.config["seed_everything"] == 0
    assert (run.group, run.job_type) == (f"SSFClassification-{images.name}", "train")
    assert run.name == f"SSFClassification-{images.name}-s0"
    assert run.project == "graft"
    assert set(run.tags or ()) == {"SSFClassification", images.name, BACKBONE}
    (stored,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 60
    words = (b"ssf_head_norm", b"val/acc1", b"cost/trainable_params")
    while not all(word in stored.read_bytes() for word in words):  # another process writes it, a moment later
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (folder / "metrics.csv").exists(), "the CSV logger of the same file"


def test_metrics_without_any_logger(
    base: list[str], model: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    assert call("fit", *model, *base, "--trainer.logger=false", "--run_root", tmp_path).code == 0
    (folder,) = folders(tmp_path)
    assert {"result.json", "adapter", "checkpoints"} <= {path.name for path in folder.iterdir()}
    assert not (folder / "metrics.csv").exists()


def test_two_processes_from_the_command_line(base: list[str], model: list[str], tmp_path: Path) -> None:
    """Lightning starts the second process with this command line: it must find the same run."""
    options = ["--trainer.devices=2", "--trainer.strategy=ddp", "--test_after_fit=true", "--run_root", str(tmp_path)]
    command = [sys.executable, str(ROOT / "train.py"), "fit", *model, *base, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (folder,) = folders(tmp_path)
    result = json.loads((folder / "result.json").read_text())
    assert result["world_size"] == 2
    assert "test/acc1" in result


def test_a_terminated_fit_says_so(model: list[str], base: list[str], tmp_path: Path) -> None:
    """The checkpoints stay, and the exit code is that of a process which SIGTERM has ended."""
    command = ["fit", *model, *base, "--trainer.max_epochs=100000", "--run_root", str(tmp_path)]
    process = subprocess.Popen([sys.executable, ROOT / "train.py", *command], cwd=ROOT, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not list(tmp_path.rglob("last.ckpt")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.2)
    process.terminate()
    assert process.wait(timeout=60) == 143
    assert torch.load(next(iter(tmp_path.rglob("last.ckpt"))), weights_only=True)["state_dict"]
