"""Search for a sub-net of NOAH."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from checkpoints.delta import write_adapter
from commands import noah_search as command
from commands.noah_search import Settings, Sizes, evolve, noah_search
from datamodules import ImageDataset
from methods import PEFTMethod
from methods.noah import NOAH
from tests.conftest import checkpoint_of

Build = Callable[..., PEFTMethod]

SETTINGS = Settings(generations=6, population=10, parents=3, mutations=4, crossovers=4, change=0.5)


def space() -> Any:
    """A super-net of two kinds and six blocks, without a model."""
    model: Any = SimpleNamespace(noah_sizes=[1, 5, 10], noah_blocks=[2, 4, 6])
    model.draw_kind = lambda random, blocks, kept=(): NOAH.draw_kind(model, random, blocks, kept)
    model.draw = lambda random: {kind: model.draw_kind(random, 6) for kind in ("adapter", "lora")}
    return model


def test_evolution_finds_more_than_its_first_generation() -> None:
    scored: list[Sizes] = []

    def score(sizes: Sizes) -> float:
        scored.append(sizes)
        return sum(sizes["adapter"]) - sum(sizes["lora"])

    best, value = evolve(space(), score, Random(0), SETTINGS)
    assert value == score(best) == max(map(score, scored[:-1]))
    assert len({repr(sizes) for sizes in scored}) <= 60
    first = max(sum(sizes["adapter"]) - sum(sizes["lora"]) for sizes in scored[:10])
    assert value > first


def test_large_sub_nets_are_left_out() -> None:
    def score(sizes: Sizes) -> float | None:
        size = sum(map(sum, sizes.values()))
        return size if size <= 20 else None

    assert evolve(space(), score, Random(0), SETTINGS)[1] <= 20
    with pytest.raises(ValueError, match="pass a larger most_parameters"):
        evolve(space(), lambda sizes: None, Random(0), SETTINGS)


def test_command(
    build: Build, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file holds options with which the sub-net trains; one sub-net is validated by Lightning, the others not."""
    options: dict[str, Any] = {"adapter_dim": 4, "lora_rank": 4, "prompt_length": 4, "noah_sizes": [1, 4]}
    model = build("adapter+lora+vpt+noah", **options, lora_targets=["qkv"])
    model.configure_model()
    write_adapter(tmp_path / "adapter", checkpoint_of(model))
    data = ImageDataset(root=str(images), batch_size=9, resize="direct", num_workers=0)
    real, calls = command.validated, []

    def validated(model: Any, data: Any) -> float:
        calls.append(model.count())
        return real(model, data) if len(calls) == 1 else 1 / model.count()

    monkeypatch.setattr(command, "validated", validated)
    monkeypatch.setattr(command, "validated", validated)
    small = {"generations": 2, "population": 4, "parents": 2, "mutations": 1, "crossovers": 1}
    noah_search(tmp_path / "adapter", data, tmp_path / "subnet.yaml", most_parameters=3000, **small)  # type: ignore[arg-type]
    assert max(calls) <= 3000
    assert "parameters without the head" in capsys.readouterr().out
    found = yaml.safe_load((tmp_path / "subnet.yaml").read_text())["model"]["init_args"]
    alone = build("adapter+lora+vpt", lora_targets=["qkv"], **found)
    alone.configure_model()
    assert alone.parameter_counts()["method"] in calls
    with pytest.raises(FileExistsError, match="exists already"):
        noah_search(tmp_path / "adapter", data, tmp_path / "subnet.yaml")


def test_what_cannot_be_searched_is_refused(build: Build, images: Path, tmp_path: Path) -> None:
    model = build("lora")
    model.configure_model()
    write_adapter(tmp_path / "adapter", checkpoint_of(model))
    data = ImageDataset(root=str(images))
    with pytest.raises(ValueError, match="was trained with LoRA; expected a super-net"):
        noah_search(tmp_path / "adapter", data, tmp_path / "subnet.yaml")
    for name, value in {"population": 0, "mutations": -1, "change": 0.0}.items():
        with pytest.raises(ValueError, match=f"{name}={value}: expected"):
            noah_search(tmp_path / "adapter", data, tmp_path / "subnet.yaml", **{name: value})  # type: ignore[arg-type]
