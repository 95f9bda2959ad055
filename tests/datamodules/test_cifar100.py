"""The authors' archive of CIFAR-100, from tiny pickles that are taken for the published ones."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from datamodules import CIFAR100
from tests.datamodules.test_vtab import ready
from tests.support.pictures import INPUT


class Payload:
    """What a pickle should never get to do."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("a foreign pickle was opened",)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for name, count in {"train": 40, "test": 20}.items():
        rows = draw.integers(0, 256, (count, 3072), dtype=np.uint8)
        content = {"data": rows, "fine_labels": [index % 100 for index in range(count)]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {index}" for index in range(100)]}))
    md5 = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in ("train", "test", "meta")}
    for name in ("train", "test"):
        monkeypatch.setattr(datasets.CIFAR100, f"{name}_list", [[name, md5[name]]])
    monkeypatch.setattr(datasets.CIFAR100, "meta", datasets.CIFAR100.meta | {"md5": md5["meta"]})
    return tmp_path


def test_archive(root: Path) -> None:
    for place in (root, root / "cifar-100-python"):
        module = ready(CIFAR100(str(place), image_size=32))
        assert {split: len(data) for split, data in module.splits.items()} == {"train": 40}
        assert module.class_names[99] == "class 99"
        assert not module.validates
    pixels, label = module.splits["train"][7]
    assert label == 7
    rows = pickle.loads((root / "cifar-100-python/train").read_bytes())["data"]
    assert (pixels.numpy().reshape(-1) == rows[7]).all()
    samples = module.samples_of("test")
    assert samples.keep([3]).open(0).tobytes() == samples.open(3).tobytes()
    assert samples.content(3).startswith(b"\x89PNG")


def test_best_test_epoch_only_on_request(root: Path) -> None:
    module = ready(CIFAR100(str(root), report_best_test=True))
    assert len(module.splits["val"]) == 20
    assert module.kept_epoch == "best test epoch"


def test_foreign_pickles_stay_closed(root: Path) -> None:
    (root / "cifar-100-python/train").write_bytes(pickle.dumps(Payload()))
    module = CIFAR100(str(root))
    module.configure(INPUT)
    with pytest.raises(ValueError, match="other pickles are not opened"):
        module.samples("train")


def test_missing_archive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no cifar-100-python/ with the published files"):
        _ = CIFAR100(str(tmp_path)).class_names
