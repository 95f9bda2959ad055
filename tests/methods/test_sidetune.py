"""Side-tuning."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch.nn import functional as F
from torchvision.models import alexnet

from checkpoints.delta import write_adapter
from lightning_modules.classification import Classification
from methods import PEFTMethod, compose
from methods.sidetune import Sidetune
from tests.conftest import checkpoint_of
from tests.support.batches import as_batch

Build = Callable[..., PEFTMethod]

COUNTS = {"vit_base_patch16_224": 9_547_585}
IDENTITY: dict[str, Any] | None = None  # half of the features are AlexNet's from the first step


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file in the form of torchvision's."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    torch.save({k: t for k, t in alexnet().state_dict().items() if k.startswith("features.")}, path)
    return path


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_blend_before_the_classifier(backbone: str, file: Path) -> None:
    model = compose(Sidetune, task=Classification)(
        backbone=backbone, pretrained=False, num_classes=3, sidetune_pretrained=str(file)
    )
    model.configure_model()
    model.eval()
    net, images = model.backbone.sidetune, torch.randn(2, 3, 224, 224)
    net.alpha.data.fill_(0.7)
    (head,) = [model.backbone.get_submodule(name) for name in model.head_names]
    with torch.no_grad():
        logits = model(images)
        plain = alexnet()
        plain.features.load_state_dict({k[9:]: t for k, t in torch.load(file, weights_only=True).items()})
        side = F.linear(F.adaptive_avg_pool2d(plain.features(images), 6).flatten(1), net.project.weight)
        share = torch.tensor(0.7).sigmoid()
        net.compute(images)
        features = model.backbone.forward_head(model.backbone.forward_features(images), pre_logits=True).flatten(1)
        expected = F.linear(share * features + (1 - share) * side, head.weight, head.bias)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_the_backbone_is_not_part_of_the_graph(build: Build) -> None:
    model = build("sidetune")
    model.configure_model()
    assert not model.backbone.sidetune.alpha.any()  # half and half
    model.train()
    reached: list[Any] = []
    model.backbone.norm.register_forward_hook(lambda module, args, output: reached.append(output.requires_grad))
    model.loss(as_batch(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))).backward()
    assert reached == [False]
    assert all(p.grad is not None for p in model.backbone.sidetune.parameters())


def test_start_follows_the_backbone(build: Build, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(url: str, **options: Any) -> dict[str, Any]:
        assert options["weights_only"]
        assert options["check_hash"]
        asked.append(url)
        return torch.load(file, weights_only=True)

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    pretrained = build("sidetune", sidetune_pretrained=None)
    pretrained.configure_model()
    assert asked == ["https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"]
    weight = torch.load(file, weights_only=True)["features.0.weight"]
    assert torch.equal(pretrained.backbone.sidetune.features[0].weight, weight)
    scratch = build("sidetune", sidetune_pretrained=None, pretrained=False)
    scratch.configure_model()
    assert len(asked) == 1


def test_what_is_trained_loads_without_the_file_it_started_from(build: Build, file: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.pth"
    start.write_bytes(file.read_bytes())
    model = build("sidetune", sidetune_pretrained=str(start))
    model.configure_model()
    write_adapter(tmp_path / "adapter", checkpoint_of(model))
    start.unlink()
    again = PEFTMethod.from_delta(tmp_path / "adapter")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images), model.eval()(images))


def test_refusals(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(pretrained: Any) -> str:
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            build("sidetune", sidetune_pretrained=pretrained).configure_model()
        assert "pass --model.sidetune_pretrained PATH, or false" in str(error.value)
        return str(error.value)

    def offline(url: str, **options: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    assert "no AlexNet weights" in refused(True)
    assert "no AlexNet weights" in refused(str(tmp_path / "missing.pth"))
    other, damaged = tmp_path / "other.pth", tmp_path / "damaged.pth"
    torch.save({"features.0.weight": torch.zeros(3)}, other)
    assert "holds no AlexNet" in refused(str(other))
    damaged.write_bytes(b"nothing")
    assert "no readable weight file" in refused(str(damaged))
    model = compose(Sidetune, task=Classification)(backbone="deit_tiny_distilled_patch16_224", pretrained=False)
    with pytest.raises(ValueError, match="one linear classifier, and VisionTransformerDistilled has another"):
        model.configure_model()
