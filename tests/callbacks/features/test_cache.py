"""Features of a frozen backbone that are computed once."""

import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer, seed_everything
from safetensors import safe_open

from callbacks.features import file
from callbacks.features.cache import FeatureCache
from datamodules import ImageDataset
from lightning_modules.batch import Features
from methods import PEFTMethod
from methods.core.parallel_settings import ParallelSettings
from tests.conftest import ROOT, build_tiny, quiet_trainer
from tests.support.ranks import TwoRanks

Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
MakeTrainer = Callable[..., Trainer]

FROZEN: dict[str, dict[str, Any]] = {
    "linear_probe": {},
    "mlp_head": {"mlp_head_layers": 2},
    "last": {"last_depth": 2},
    "hst": {"meta_tokens": 0, "tune_norm": False},
}


class CountedPasses(FeatureCache):
    """How many batches the backbone saw."""

    batches = 0

    def rows(self, *args: Any) -> Any:
        for row in super().rows(*args):
            type(self).batches += 1
            yield row


def fit(model: Any, data: Any, make: MakeTrainer, cache: FeatureCache | None, **options: Any) -> Any:
    seed_everything(0, verbose=False)
    run = make(max_epochs=3, callbacks=[cache] if cache else [], **options)
    run.fit(model, datamodule=data)
    metrics = {name: float(value) for name, value in run.callback_metrics.items()}
    return metrics, model.delta_state_dict()


@pytest.mark.parametrize("method", FROZEN)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_every_place_gives_the_uncached_fit(
    method: str, precision: Any, build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path
) -> None:
    """Difference 0 in every trained number and every metric."""
    metrics, expected = fit(build(method, **FROZEN[method]), data(), trainer, None, precision=precision)
    folder = str(tmp_path / "features")
    CountedPasses.batches = 0
    for cache in (CountedPasses("ram"), CountedPasses("disk", folder), CountedPasses("ram", folder)):
        module = data()
        found, delta = fit(build(method, **FROZEN[method]), module, trainer, cache, precision=precision)
        for name, tensor in expected.items():
            assert torch.equal(delta[name], tensor), name
        assert found == metrics
        assert cache.metrics["features/gib"] > 0
        assert not cache.datasets
        assert all(type(s).__name__ != "FrozenFeatures" for s in module.splits.values())
    assert CountedPasses.batches == 2 * (6 + 3)  # the third read what the second wrote


def test_cached_equals_uncached_logits(build: Build) -> None:
    for method, options in FROZEN.items():
        model: Any = build(method, **options)
        model.configure_model()
        images = torch.randn(4, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(model.eval()(images), model(Features(model.frozen_features(images))))


def test_half_the_space(build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path) -> None:
    _, exact = fit(build("last"), data(), trainer, None)
    cache = FeatureCache("disk", str(tmp_path / "features"), dtype="bf16")
    _, rounded = fit(build("last"), data(), trainer, cache)
    assert any(not torch.equal(rounded[name], exact[name]) for name in exact)
    for name in exact:
        torch.testing.assert_close(rounded[name], exact[name], atol=0.05, rtol=0.05)
    path = next((tmp_path / "features").glob("train-*.safetensors"))
    assert path.stat().st_size == pytest.approx(24 * 3 * 17 * 48 * 2, rel=0.05)
    with safe_open(path, "pt") as file:
        assert file.metadata()["layers"] == "input and every 1 blocks"


def test_key_changes_with_all_that_counts(build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path) -> None:
    folder = tmp_path / "features"

    def files(method: str = "last", model: Any = None, images: Any = None, **options: Any) -> int:
        cache = FeatureCache("disk", str(folder), options.pop("dtype", "same"))
        fit(build(method, **(model or {})), data(**(images or {})), trainer, cache, **options)
        return len(list(folder.glob("train-*")))

    assert files() == 1
    assert files(model={"last_rank": 4, "lr": 0.5, "head_init": "zero"}) == 1  # not of the features
    assert files(model={"pretrained": False}) == 2
    assert files(model={"last_gap": 2}) == 3
    assert files("linear_probe") == 4
    assert files("mlp_head") == 4  # the same features
    assert files(images={"resize": "center_crop"}) == 5
    assert files(images={"normalization": "imagenet"}) == 6
    assert files(images={"batch_size": 3}) == 7
    assert files(dtype="fp16") == 8
    assert files(precision="bf16-mixed") == 9
    assert files() == 9


def test_other_images_are_not_mistaken(build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path) -> None:
    module: Any = data()
    trainer().fit(build("linear_probe"), datamodule=module)
    before = module.fingerprint("train")
    assert before != module.fingerprint("val")
    samples = module.splits["train"].samples
    module.splits["train"].samples = samples.keep([1, 0, *range(2, 24)])
    assert module.fingerprint("train") != before
    module.splits["train"].samples = samples.keep(list(range(23)))
    assert module.fingerprint("train") != before


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_damaged_file_is_computed_anew(
    damage: str, build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "features")
    _, expected = fit(build("last"), data(), trainer, FeatureCache("disk", folder))
    path = next(Path(folder).glob("train-*"))
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-1], "empty": b"", "other": whole.replace(b'"key": "', b'"key": "0', 1)}[damage])
    _, again = fit(build("last"), data(), trainer, FeatureCache("disk", folder))
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())
    assert path.read_bytes() == whole
    assert ("computing its features anew" in capsys.readouterr().err) or damage == "other"


def test_killed_while_writing(weights: Path, images: Path, build: Build, data: Data, trainer: MakeTrainer,
                              tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """kill -9 in the middle of the file: the next run finds nothing of that name and computes everything."""
    folder = tmp_path / "features"
    code = f"""
import os, signal
from callbacks.features.cache import FeatureCache
from datamodules import ImageDataset
from tests.conftest import build_tiny, quiet_trainer

class Killed(FeatureCache):
    def rows(self, *args):
        for number, row in enumerate(super().rows(*args)):
            if number == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            yield row

data = ImageDataset({str(images)!r}, batch_size=4, resize="direct")
trainer = quiet_trainer({str(tmp_path)!r}, callbacks=[Killed("disk", {str(folder)!r})])
trainer.fit(build_tiny({str(weights)!r}, "last"), datamodule=data)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=200)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    left = [path.name for path in folder.iterdir()]
    assert len(left) == 1
    assert left[0].startswith(".train-")
    CountedPasses.batches = 0
    monkeypatch.setattr(file, "ABANDONED", -1.0)
    _, found = fit(build("last"), data(), trainer, CountedPasses("disk", str(folder)))
    assert CountedPasses.batches == 6 + 3
    _, expected = fit(build("last"), data(), trainer, None)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert sorted(path.name.partition("-")[0] for path in folder.iterdir()) == ["train", "val"]


def test_full_disk(build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"features\.cache_dir=.* cannot take the features .*MB are needed.*nothing was kept"
        ):
            fit(build("last"), data(), trainer, FeatureCache("disk", str(folder)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "options", "how", "message"),
    [
        ("ssf", {}, {}, "SSF trains in the backbone, whose features change at every step"),
        ("hst", {}, {}, "with meta_tokens=1 and tune_norm=True HST trains in the backbone: pass --model.meta_tokens 0"),
        ("last", {}, {"augmentation": "pad_crop"}, r"data\.augmentation=pad_crop makes other images at every epoch"),
        ("last", {}, {"random_erasing": 0.5}, r"data\.random_erasing=0\.5 makes other images"),
        ("last", {"mixup": 0.5}, {}, r"model\.mixup or model\.cutmix=on makes other images"),
        ("linear_probe", {"drop_path": 0.1}, {}, r"blocks\.1\.drop_path1 \(DropPath\) drops at random"),
    ],
)
def test_refused(
    method: str, options: Any, how: Any, message: str, build: Build, data: Data, trainer: MakeTrainer
) -> None:
    module = data(**how)
    with pytest.raises(ValueError, match=message):
        fit(build(method, **options), module, trainer, FeatureCache("ram"))
    assert all(type(split).__name__ != "FrozenFeatures" for split in module.splits.values())


def test_refused_places(build: Build, data: Data, trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match=r"features\.cache=disk needs a folder: give features\.cache_dir too"):
        FeatureCache("disk")
    with pytest.raises(ValueError, match=r"features\.cache=gpu: this run is on a CPU; use ram"):
        fit(build("last"), data(), trainer, FeatureCache("gpu"))


def test_stray_trained_parameter(build: Build, data: Data, trainer: MakeTrainer) -> None:
    model: Any = build("linear_probe")
    model.configure_model()
    model.backbone.blocks[0].norm1.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"change at every step and cannot be kept: blocks\.0\.norm1\.weight trains"):
        fit(model, data(), trainer, FeatureCache("ram"))


def test_last_drops_nothing_and_is_cached_under_drop_path(build: Build, data: Data, trainer: MakeTrainer) -> None:
    _, expected = fit(build("last", drop_path=0.5), data(), trainer, None)
    _, found = fit(build("last", drop_path=0.5), data(), trainer, FeatureCache("ram"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def fit_with_each_cache(rank: int, weights: Path, images: Path, folder: Path) -> dict[str, Any]:
    """Deltas of the same fit without a cache, with each kind of it, and as a member; on one of two ranks."""
    kinds = {"none": FeatureCache(), "ram": FeatureCache("ram"), "disk": FeatureCache("disk", f"{folder}/features")}
    kinds |= {"again": FeatureCache("disk", f"{folder}/features"), "members": kinds["ram"]}
    found = {}
    for name, cache in kinds.items():
        model: Any = build_tiny(weights, "last")
        model.configure_model()  # before Lightning seeds the ranks again
        if name == "members":
            model = ParallelSettings(model, {"lr": [1e-3, 1e-2]})
        run = quiet_trainer(folder, devices=2, strategy="ddp", max_epochs=2, callbacks=[cache])
        run.fit(model, datamodule=ImageDataset(root=str(images), batch_size=4, resize="direct"))
        model = model.each()[1] if name == "members" else model
        found[name] = model.delta_state_dict()
    return found


def test_two_ranks(two_ranks: TwoRanks, weights: Path, images: Path, tmp_path: Path) -> None:
    ranks = two_ranks(fit_with_each_cache, weights, images, tmp_path)
    expected = ranks[0].pop("none")
    for found in ranks:
        for name in ("ram", "disk", "again", "members"):
            assert all(torch.equal(found[name][key], tensor) for key, tensor in expected.items()), name
    assert len(list((tmp_path / "features").iterdir())) == 2
