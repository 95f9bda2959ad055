"""Files of format 1 load, test, resume and merge as on the day they were written; see format_1/README.md."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from checkpoints.format_1 import WIDTH_OPTIONS, to_format_2
from commands.lightning.cli import GraftCLI
from commands.merge import merge
from methods import PEFTMethod
from tests.conftest import ROOT

FOLDER = Path("tests/checkpoints/format_1")  # relative, as the path of the weights in the files is
METHODS = ("ssf", "gps")
RESULTS: dict[str, dict[str, Any]] = json.loads((ROOT / FOLDER / "results.json").read_text())

pytestmark = pytest.mark.usefixtures("repository_root")


@pytest.fixture
def repository_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run at the root of the repository, otherwise the weights of the backbone are not found."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(params=[f"{method}{suffix}" for method in METHODS for suffix in (".ckpt", "")])
def file(request: pytest.FixtureRequest) -> Path:
    """A checkpoint file or an adapter folder."""
    return FOLDER / request.param


def inputs() -> Tensor:
    """Four images (4, 3, 16, 16) that no random generator draws."""
    return torch.sin(torch.arange(4 * 3 * 16 * 16)).view(4, 3, 16, 16)


def stored_logits(file: Path) -> Tensor:
    """Logits (4, 10) that the code of format 1 gave for ``inputs``."""
    return torch.tensor(RESULTS[file.stem]["logits"])


def run(command: str, file: Path, run_root: Path, *options: str) -> dict[str, float]:
    """Metrics in ``result.json`` of a command on a file."""
    config = str(FOLDER / "run.yaml")
    cli = GraftCLI.run([command, "--ckpt_path", str(file), "--config", config, "--run_root", str(run_root), *options])
    result: dict[str, float] = json.loads((Path(cli.trainer.default_root_dir) / "result.json").read_text())
    return result


def check(result: dict[str, float], stored: dict[str, float]) -> None:
    """Compare metrics; another CPU may round differently in the last digits."""
    assert stored
    assert {name: result.get(name) for name in stored} == pytest.approx(stored, abs=2e-5)


def test_the_files_have_format_1() -> None:
    """Nobody has written them anew with code of today."""
    for method in METHODS:
        checkpoint = torch.load(FOLDER / f"{method}.ckpt", weights_only=True)
        config = json.loads((FOLDER / method / "adapter_config.json").read_text())
        assert {checkpoint["peft"]["format"], config["peft"]["format"]} == {1}
        assert len(checkpoint["class_names"]) == len(config["class_names"]) == 10


def test_load(file: Path) -> None:
    model = PEFTMethod.from_delta(file)
    assert model.method_name().lower() == file.stem
    with torch.inference_mode():
        torch.testing.assert_close(model(inputs()), stored_logits(file), atol=1e-6, rtol=1e-5)


def test_test(file: Path, tmp_path: Path) -> None:
    check(run("test", file, tmp_path), RESULTS[file.stem]["test"])


@pytest.mark.parametrize("method", METHODS)
def test_resume(method: str, tmp_path: Path) -> None:
    """One more epoch ends where the code of format 1 ended: the optimizer, the schedule and the seeds go on."""
    options = ("--trainer.max_epochs=2", "--test_after_fit=true")
    result = run("fit", FOLDER / f"{method}.ckpt", tmp_path, *options)
    assert (result["epochs"], result["steps"]) == (2, 100)
    check(result, RESULTS[method]["resumed"])


def test_merge(file: Path, tmp_path: Path) -> None:
    merge(file, tmp_path / "merged")
    plain = timm.create_model(f"local-dir:{tmp_path / 'merged'}", pretrained=True).eval()
    assert plain.pretrained_cfg["label_names"] == [str(digit) for digit in range(10)]
    with torch.inference_mode():
        torch.testing.assert_close(plain(inputs()), stored_logits(file), atol=1e-6, rtol=1e-5)


# the translation alone


def checkpoint(**options: Any) -> dict[str, Any]:
    """A checkpoint of format 1 without tensors."""
    return {
        "class_names": ["a", "b"],
        "peft": {"format": 1, "method": "LoRA"},
        "hyper_parameters": {"lr": 0.1, "_class_path": "lightning_modules.LoRAClassification"} | options,
    }


def test_identity_average_and_class_path() -> None:
    translated = checkpoint(parameterization="none", base_width=None, ema_decay=0.9)
    to_format_2(translated)
    assert translated == {
        "identity": {"class_names": ["a", "b"]},
        "ema_decay": 0.9,
        "peft": {"format": 2, "method": "LoRA"},
        "hyper_parameters": {"lr": 0.1, "_class_path": "methods.LoRAClassification"},
    }


def test_no_average() -> None:
    translated = checkpoint(ema_decay=None)
    to_format_2(translated)
    assert "ema_decay" not in translated
    assert "ema_decay" not in translated["hyper_parameters"]


def test_a_foreign_class_path_stays() -> None:
    translated = checkpoint(_class_path="mine.LoRAClassification")
    to_format_2(translated)
    assert translated["hyper_parameters"]["_class_path"] == "mine.LoRAClassification"


def test_width_scaling_becomes_a_method() -> None:
    translated = checkpoint(parameterization="mup", base_width=48, alignment="none")
    to_format_2(translated)
    options = translated["hyper_parameters"]
    assert translated["peft"]["method"] == "LoRA+WidthScaling"
    assert options["_class_path"] == "methods.LoRAWidthScalingClassification"
    assert (options["width_parameterization"], options["width_base"], options["width_alignment"]) == ("mup", 48, "none")
    assert options["width_readout_alignment"] == 0.5, "options that the file lacks have their old defaults"
    assert options.keys() == {"lr", "_class_path"} | {name for name, _ in WIDTH_OPTIONS.values()}
