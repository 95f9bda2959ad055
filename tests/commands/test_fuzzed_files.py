"""Damaged and hostile files: a command takes them with the result of the whole file, or refuses them by one message.

No module is imported that a file names, and no file takes more than 1 GiB of memory.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from callbacks.measures import peak_memory, reset_peak_memory
from checkpoints.delta import CONFIG, WEIGHTS
from checkpoints.fingerprint import hash_of
from commands.lightning.cli import GraftCLI
from tests.commands.lightning.conftest import base, fitted, model
from tests.support.fuzzing import CHANGES, DAMAGES, MODULE, Change, Damage
from train import main

__all__ = ["base", "fitted", "model"]  # fixtures

GIB = 2**30


def examples(number: int) -> Any:
    """Settings of a test with the same examples in every run; a failing one is shown as it is, in its time."""
    phases = (Phase.explicit, Phase.generate)
    return settings(max_examples=number, deadline=None, derandomize=True, database=None, phases=phases)


class Answer(NamedTuple):
    """Of a command line."""

    code: int
    err: str


def run(*args: object) -> Answer:
    """Run a command line in this process; an error without a message of its own ends the test."""
    code, err = 0, StringIO()
    with redirect_stdout(StringIO()), redirect_stderr(err):
        try:
            main([str(arg) for arg in args])
        except SystemExit as stop:
            code = int(stop.code or 0)
    assert MODULE not in sys.modules
    return Answer(code, err.getvalue())


def check_refusal(answer: Answer) -> None:
    """Exit code 1 and one short message."""
    lines = answer.err.strip().splitlines()
    assert answer.code == 1, answer
    assert sum(line.startswith("error: ") for line in lines) == 1, answer
    assert len(lines) <= 8, answer
    assert len(answer.err) < 2500, answer


@pytest.fixture(scope="module", autouse=True)
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A module that must not be imported, and the bound of the memory of all tests here."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / f"{MODULE}.py").write_text("class Payload: ...\n")
    sys.path.insert(0, str(folder))
    held = 4096 * int(Path("/proc/self/statm").read_text().split()[1])
    reset_peak_memory()
    yield
    assert peak_memory() - held < GIB
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


@pytest.fixture(scope="module")
def packed(base: list[str], model: list[str], place: Path) -> Path:
    """A packed file of a low-bit adapter."""
    options = [*("bi_adapter" if word == "ssf" else word for word in model), "--model.bi_dim=2"]
    fit = GraftCLI.run(["fit", *options, *base, "--run_root", str(place / "runs")])
    adapter = Path(fit.trainer.default_root_dir) / "adapter"
    assert run("export", "--ckpt_path", adapter, "--output", place / "packed", "--format", "packed").code == 0
    return place / "packed"


def merged(path: Path) -> dict[str, torch.Tensor] | Answer:
    """Weights that ``merge`` writes, or its refusal, which leaves nothing."""
    with tempfile.TemporaryDirectory() as folder:
        answer = run("merge", "--ckpt_path", path, "--output", Path(folder) / "merged")
        if answer.code == 0:
            return load_file(Path(folder) / "merged/model.safetensors")
        assert not list(Path(folder).iterdir())
    return answer


@pytest.fixture(scope="module")
def whole(fitted: Path) -> dict[str, torch.Tensor]:
    """Weights that ``merge`` writes of the undamaged adapter."""
    found = merged(fitted / "adapter")
    assert isinstance(found, dict)
    return found


def check_merged(found: dict[str, torch.Tensor] | Answer, whole: dict[str, torch.Tensor], described: bool) -> None:
    """Refused, or the same weights.

    Args:
        found: Outcome of a damaged file.
        whole: Weights of the undamaged file.
        described: Whether the file was changed into one that describes another model, such as one with other heads.
    """
    if isinstance(found, Answer):
        check_refusal(found)
    elif not described:
        torch.testing.assert_close(found, whole, rtol=0, atol=0)


def write_adapter(folder: Path, fitted: Path, config: Any, signed: bool) -> None:
    """Write an adapter folder with another config, with its old hash or with the hash of its content."""
    if signed:
        config = {name: value for name, value in config.items() if name != "sha256"}
        config["sha256"] = hash_of(config)
    (folder / WEIGHTS).write_bytes((fitted / "adapter" / WEIGHTS).read_bytes())
    (folder / CONFIG).write_text(json.dumps(config))


@examples(60)
@given(change=CHANGES, signed=st.booleans())
def test_fields_of_an_adapter(fitted: Path, whole: dict[str, torch.Tensor], change: Change, signed: bool) -> None:
    config = json.loads((fitted / "adapter" / CONFIG).read_text())
    with tempfile.TemporaryDirectory() as folder:
        write_adapter(Path(folder), fitted, change.of(config), signed)
        described = signed and change.path(config)[0] == "hyper_parameters"
        check_merged(merged(Path(folder)), whole, described)


@examples(60)
@given(change=CHANGES)
def test_fields_of_a_checkpoint(fitted: Path, whole: dict[str, torch.Tensor], change: Change) -> None:
    checkpoint = torch.load(fitted / "checkpoints/best.ckpt", weights_only=True)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(change.of(checkpoint), Path(folder) / "model.ckpt")
        check_merged(merged(Path(folder) / "model.ckpt"), whole, change.path(checkpoint)[0] == "hyper_parameters")


@examples(60)
@given(name=st.sampled_from([f"adapter/{WEIGHTS}", f"adapter/{CONFIG}", "checkpoints/best.ckpt"]), damage=DAMAGES)
def test_bytes(fitted: Path, whole: dict[str, torch.Tensor], name: str, damage: Damage) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(name).name
        for other in (WEIGHTS, CONFIG):
            (Path(folder) / other).write_bytes((fitted / "adapter" / other).read_bytes())
        path.write_bytes(damage.of((fitted / name).read_bytes()))
        check_merged(merged(path if path.suffix == ".ckpt" else Path(folder)), whole, described=False)


@examples(40)
@given(damage=DAMAGES)
def test_bytes_of_a_packed_file(packed: Path, damage: Damage) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "packed").write_bytes(damage.of(packed.read_bytes()))
        answer = run("import_packed", "--packed", Path(folder) / "packed", "--output", Path(folder) / "adapter")
        check_refusal(answer)  # its hash covers header and payload
        assert not (Path(folder) / "adapter").exists()


@examples(12)
@given(change=CHANGES)
def test_fields_of_an_adapter_in_a_test(fitted: Path, base: list[str], place: Path, change: Change) -> None:
    config = json.loads((fitted / "adapter" / CONFIG).read_text())
    changed = change.of({"identity": config["identity"], "hyper_parameters": config["hyper_parameters"]})
    with tempfile.TemporaryDirectory(dir=place) as folder:
        write_adapter(Path(folder), fitted, config | changed, signed=True)
        answer = run("test", "--ckpt_path", folder, *base, "--run_root", Path(folder) / "runs")
        if answer.code:
            check_refusal(answer)


STATE = (
    *("epoch", "global_step", "loops", "optimizer_states", "lr_schedulers", "callbacks", "pytorch-lightning_version"),
    *("raw", "ema_decay"),
)


@pytest.fixture(scope="module")
def averaged(base: list[str], model: list[str], place: Path) -> Path:
    """A checkpoint of a fit with an average of the trained parameters."""
    options = ["--ema.decay=0.9", "--data.num_workers=0", "--run_root", str(place / "averaged")]
    fit = GraftCLI.run(["fit", *model, *base, *options])
    return Path(fit.trainer.default_root_dir) / "checkpoints/last.ckpt"


def resumed(path: Path, base: list[str]) -> dict[str, Any] | Answer:
    """What a resumed fit has trained after one more epoch, or its refusal."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--trainer.max_epochs=2", "--data.num_workers=0", "--run_root", folder]
        answer = run("fit", "--ckpt_path", path, *base, *options)
        if answer.code:
            assert not list(Path(folder).glob("*/*/*/result.json"))
            return answer
        (file,) = Path(folder).glob("*/*/*/checkpoints/last.ckpt")
        checkpoint: dict[str, Any] = torch.load(file, weights_only=True)
    return {name: checkpoint[name] for name in ("state_dict", "raw", "optimizer_states", "epoch", "global_step")}


@pytest.fixture(scope="module")
def resumed_whole(averaged: Path, base: list[str]) -> dict[str, Any]:
    found = resumed(averaged, base)
    assert isinstance(found, dict)
    return found


@examples(30)
@given(name=st.sampled_from(STATE), change=CHANGES)
def test_state_of_a_resumed_fit(
    averaged: Path, base: list[str], resumed_whole: dict[str, Any], name: str, change: Change
) -> None:
    checkpoint = torch.load(averaged, weights_only=True)
    changed = change.of({name: checkpoint.pop(name)})
    with tempfile.TemporaryDirectory() as folder:
        torch.save(checkpoint | changed, Path(folder) / "last.ckpt")
        found = resumed(Path(folder) / "last.ckpt", base)
    if isinstance(found, Answer):
        check_refusal(found)
    else:
        torch.testing.assert_close(found, resumed_whole, rtol=0, atol=0)
