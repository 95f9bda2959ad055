"""Short forms, and which value wins."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from commands.lightning.shortcuts import expand
from tests.conftest import TINY
from tests.support.command_line import Answer, folders, printed


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


def test_method_is_the_model_s_short_name() -> None:
    assert expand(["fit", "--method", "ssf", "--trainer.max_epochs=1"]) == expand(
        ["fit", "--trainer.max_epochs=1", "--method=ssf"]
    )
    assert expand(["fit", "--method", "ssf+bitfit"]).args[1:] == ["--model", "methods.SSFBitFitClassification"]


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


def test_flags_win_over_files_wherever_they_stand(
    base: list[str], model: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text("model: {init_args: {lr: 0.3}}\ndata: {init_args: {batch_size: 7}}")
    (tmp_path / "other.yaml").write_text("model: {class_path: methods.GPSClassification, init_args: {lr: 0.3}}")
    for file in ("own.yaml", "other.yaml"):
        args = ["--model.lr", "0.9", "--data.batch_size=5", *base[2:], "--config", tmp_path / file, *model, *base[:2]]
        config = printed(call("fit", *args, "--print_config"))
        assert config["model"]["class_path"] == "methods.SSFClassification", file
        assert config["model"]["init_args"]["lr"] == 0.9, file
        assert config["data"]["init_args"]["batch_size"] == 4, "the last flag"


def test_ranks_expand_the_expanded_command_line(
    fitted: Path, base: list[str], call: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text("model: {init_args: {lr: 0.3}}\ntrainer: {max_epochs: 9}")
    last = str(fitted / "checkpoints/last.ckpt")
    for more in (["--recipe", "vtab/ssf", "--data.task=cifar"], ["--ckpt_path", last, *base], ["--method=gps", *base]):
        args = ["fit", "--data.root", "x", "--model.min_lr", "0.1", *more, "--config", str(tmp_path / "own.yaml")]
        once = expand(args).args
        first, second = (printed(call(*words, "--print_config")) for words in (once, expand(once).args))
        assert first == second
        assert first["model"]["init_args"]["lr"] == 0.3


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
