"""The examples of docs/extending.md, run in a copy of the project."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_modules
from tests.conftest import BACKBONE, ROOT, TINY
from tests.methods import test_contract
from tests.support.batches import as_batch
from train import main

PAGE = ROOT / "docs/extending.md"
COPIED = ("backbones", "callbacks", "checkpoints", "commands", "configs", "datamodules", "lightning_modules", "methods")
MODEL = [f"--model.backbone={BACKBONE}", "--model.pretrained=tiny.safetensors"]
MODEL += [f"--model.backbone_args.{name}={value}" for name, value in TINY.items()]
DATA = [f"--data.root={ROOT / 'assets/digits_1k'}"]
TRAINER = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
TRAINER += [f"--trainer.limit_{split}_batches=2" for split in ("val", "test")]
FIT = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--data.batch_size=4"]
SMALL = {"fit": [*MODEL, *TRAINER, *FIT], "test": TRAINER}  # more options of the page's commands


def blocks(language: str) -> list[str]:
    """Fenced blocks of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def command_lines() -> list[list[str]]:
    """Words of all commands of ``train.py`` on the page, with tiny data and models."""
    lines = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]
    words = [line[2:] for line in lines if line[1] == "train.py"]
    data = {number: DATA for number, line in enumerate(words) if "configs/data/fashion_mnist_1k.yaml" in line}
    return [[*line, *data.get(number, []), *SMALL.get(line[0], [])] for number, line in enumerate(words)]


def write(folder: Path, path: str, text: str) -> None:
    place = folder / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


@pytest.fixture(scope="module")
def project(images: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the files of the page, two files that the page only describes, images and weights."""
    folder = tmp_path_factory.mktemp("project")
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name)
    for name in ("train.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "assets").symlink_to(ROOT / "assets")
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("golden"))
    for block in [*blocks("python"), *blocks("yaml")]:
        path, _, text = block.partition("\n")
        write(folder, path.removeprefix("# "), text)
    config = (folder / "configs/method/mlp_scale.yaml").read_text()
    write(folder, "configs/method/shared_a.yaml", config.replace("mlp_scale", "shared_a"))
    facts = "from typing import Any\n\nCOUNTS = {counts}\nIDENTITY: dict[str, Any] | None = {{}}\n"
    (counts,) = re.findall(r"above, with `COUNTS = (.*)`", PAGE.read_text())
    write(folder, "tests/methods/test_shared_a.py", f'"""Shared A."""\n\n{facts.format(counts=counts)}')
    shutil.copy(weights, folder / "tiny.safetensors")
    shutil.copytree(images, folder / "my_images")
    rows = [path.relative_to(images) for path in sorted(images.rglob("*.png"))]
    table = ["file,class,split", *(f"{row},{row.parts[1]},{row.parts[0]}" for row in rows)]
    write(folder, "my_images/labels.csv", "\n".join(table))
    return folder


def run(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, in a process of its own."""
    return subprocess.run([sys.executable, *args], cwd=folder, capture_output=True, text=True, timeout=600, check=False)


def run_here() -> None:
    """Run the commands of ``sys.argv`` in this process; ``RUN`` is the folder of the last run with an adapter."""
    for words in json.loads(sys.argv[1]):
        runs = sorted(Path("runs").glob("*/*/*/adapter"), key=lambda path: path.stat().st_mtime_ns)
        last = str(runs[-1].parent) if runs else "RUN"
        main([word.replace("RUN", last) for word in words])


def results(folder: Path, name: str) -> list[dict[str, Any]]:
    """Results of all runs of a class, in the order of their time."""
    paths = sorted((folder / "runs" / name).rglob("result.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text()) for path in paths]


# the page


def test_form_of_the_examples(project: Path) -> None:
    """The examples pass the checks of ``make lint`` that need no types."""
    paths = [block.partition("\n")[0].removeprefix("# ") for block in blocks("python")]
    for command in (["check"], ["format", "--check", "--diff"]):
        done = run(project, "-m", "ruff", *command, *paths)
        assert done.returncode == 0, done.stdout + done.stderr


def test_files_that_the_page_names(project: Path) -> None:
    names = re.findall(r"`((?:\w+/)+\w+\.\w+)`", PAGE.read_text())
    assert len(names) > 10
    for name in names:
        generic = any(part.isupper() for part in re.split(r"[/._]", name))  # tests/golden/NAME.safetensors
        assert generic or (project / name).exists() or (ROOT / name).exists(), name


def test_own_tests_and_contracts(project: Path) -> None:
    """The tests that the page prints, and every check that a method gets by its existence."""
    (line,) = [line for block in blocks("bash") for line in block.splitlines() if "pytest" in line]
    assert line == "python -m pytest tests -k mlp_scale"
    places = [f"tests/methods/test_{name}.py" for name in ("contract", "width_scaling", "mlp_scale", "shared_a")]
    places += [f"tests/lightning_modules/test_{name}.py" for name in ("task_contract", "counting")]
    places.append("tests/test_configs.py")
    done = run(project, "-m", "pytest", "-v", *places, "-k", "mlp_scale or shared_a or counting")
    assert done.returncode == 0, done.stdout + done.stderr
    for method in ("mlp_scale", "shared_a"):
        for test in ("merge", "adapter_folder", "ddp", "resume_is_exact", "parameter_count"):
            assert re.search(rf"test_contract\.py::test_{test}\[{method}.*\] PASSED", done.stdout), (method, test)
    for test in ("test_task_contract.py::test_example_batch[counting]", "test_counting.py::test_mean_absolute_error"):
        assert f"{test} PASSED" in done.stdout


def test_commands(project: Path) -> None:
    """All commands of the page in their order, then a test of the task's adapter."""
    lines = command_lines()
    (place,) = [number for number, line in enumerate(lines) if "counting" in line]
    data = ["--config", "configs/data/fashion_mnist_1k.yaml", *DATA]
    lines.insert(place + 1, ["test", "--ckpt_path", "RUN/adapter", *data, *TRAINER])
    code = "from tests.test_extending import run_here; run_here()"
    done = run(project, "-c", code, json.dumps([*lines, ["--help"]]))
    assert done.returncode == 0, done.stdout + done.stderr

    fitted, tested = results(project, "MLPScaleClassification")
    assert fitted["steps"] == 2
    assert fitted["cost/trainable_params_method"] == TINY["depth"] * 4 * TINY["embed_dim"]
    assert 0 <= tested["test/acc1"] <= 1
    assert "largest difference of a logit, merged against unmerged" in done.stdout
    assert (project / "merged/model.safetensors").is_file()

    fitted, tested = results(project, "LoRACounting")
    assert fitted["metric"]["name"] == "mae"
    assert fitted["best/val/mae"] > 0
    assert tested["test/mae"] > 0

    (fitted,) = results(project, "LoRAClassification")
    assert fitted["dataset"] == "CSVImages"
    assert fitted["images"] == {"train": 24, "val": 9}
    assert f"LoRA on {BACKBONE}, trained parameters: {{'method': " in done.stdout
    assert (
        "\n  describe     Describe an adapter folder: method, backbone and number of trained parameters\n"
        in done.stdout
    )


def test_numbers_of_the_task(project: Path) -> None:
    spec = spec_from_file_location("counting_example", project / "lightning_modules/counting.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.Counting(backbone=BACKBONE, backbone_args=TINY, pretrained=False)
    outputs, targets = torch.tensor([1.0, 2.5, 9.0]), torch.tensor([2, 2, 0])
    assert float(model.losses(outputs[:2], targets[:2])["task_loss"]) == (1.0 + 0.25) / 2
    metrics = model.metrics()
    model.update(metrics, outputs, as_batch(torch.zeros(3, 1), targets, [True, True, False]))
    assert {name: float(value) for name, value in metrics.compute().items()} == {"mae": 0.75, "loss": 0.625}
    example = model.example_batch()
    assert model(example.inputs).shape == example.targets.shape == (1,)


# messages


def test_method_without_a_test_file() -> None:
    with pytest.raises(AssertionError, match=r"Write tests/methods/test_mlp_scale\.py with COUNTS .* and IDENTITY"):
        test_contract.test_facts("mlp_scale")


def test_task_without_a_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = [block for block in blocks("python") if block.startswith("# lightning_modules/counting.py")]
    assert "def losses" in text
    (tmp_path / "counting.py").write_text(text.replace("def losses", "def loses"))
    monkeypatch.setattr(lightning_modules, "__path__", [*lightning_modules.__path__, str(tmp_path)])
    (message,) = re.findall(r"stops the import: `(.*)`", PAGE.read_text())
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        lightning_modules.discover()
    del sys.modules["lightning_modules.counting"], vars(lightning_modules)["counting"]
    assert "counting" not in lightning_modules.TASKS
