"""k nearest neighbours."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from checkpoints.delta import write_adapter
from methods import PEFTMethod, knn
from tests.conftest import checkpoint_of

Build = Callable[..., PEFTMethod]

COUNTS = {"vit_base_patch16_224": 1}
IDENTITY: dict[str, Any] | None = None  # no classifier of the backbone is used


def computed(build: Build, count: int, **options: Any) -> Any:
    """A model of ``count`` training images with random features."""
    model: Any = build("knn", **options)
    model.configure_model()
    generator = torch.Generator().manual_seed(0)
    model.compute(torch.randn(count, 48, generator=generator), torch.randint(3, (count,), generator=generator))
    return model.eval()


def votes(model: Any, x: torch.Tensor, k: int, temperature: float) -> torch.Tensor:
    """Shares of votes by a loop over images, neighbours sorted by their cosines."""
    memory = model.backbone.knn
    shares = torch.zeros(len(x), 3)
    for row, one in enumerate(x):
        cosines = F.cosine_similarity(one[None], memory.features)
        for place in cosines.argsort(descending=True)[:k]:
            shares[row, memory.labels[place]] += (cosines[place] / temperature).exp()
    return shares / shares.sum(1, keepdim=True)


@pytest.mark.parametrize("rows", [65_536, 7], ids=["at once", "in parts"])
def test_votes(rows: int, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "ROWS", rows)
    model = computed(build, 40, knn_k=5, knn_temperature=0.2)
    x = torch.randn(6, 48)
    found = model.forward_frozen((x,))
    torch.testing.assert_close(found.softmax(1), votes(model, x, 5, 0.2), atol=1e-4, rtol=1e-4)


def test_a_class_from_one_image(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    """All images vote if there are fewer than k; the loss of a class without a vote is finite."""
    model = computed(build, 3)
    memory = model.backbone.knn
    memory.labels = torch.tensor([2, 0, 0])
    found = model.forward_frozen((memory.features,))
    assert found.argmax(1).tolist() == [2, 0, 0]
    assert found.isfinite().all()
    assert model.forward_frozen((memory.features[:1],)).softmax(1)[0, 1] < 1e-5


def test_cosines_stay_exact_under_autocast(build: Build) -> None:
    model = computed(build, 40)
    x = torch.randn(6, 48)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.forward_frozen((x,))
    assert torch.equal(found, model.forward_frozen((x,)))


def test_a_file_brings_its_number_of_images(build: Build, tmp_path: Path) -> None:
    model, x = computed(build, 40), torch.randn(6, 48)
    write_adapter(tmp_path, checkpoint_of(model))
    again: Any = computed(build, 3)
    again.load_delta(tmp_path)
    assert torch.equal(again.forward_frozen((x,)), model.forward_frozen((x,)))


def test_refusals(build: Build) -> None:
    with pytest.raises(ValueError, match="knn_k=0: expected at least 1 neighbour"):
        build("knn", knn_k=0)
    with pytest.raises(ValueError, match=r"knn_temperature=0.0: expected a positive temperature"):
        build("knn", knn_temperature=0.0)
