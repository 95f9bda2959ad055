"""Semantic segmentation."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from lightning_modules.segmentation import Segmentation, pixel_loss
from methods import METHODS, compose
from tests.conftest import BACKBONE, TINY
from tests.support.batches import as_batch

OPTIONS: dict[str, Any] = {
    "backbone": BACKBONE,
    "backbone_args": TINY,
    "pretrained": False,
    "num_classes": 4,
    "head": "linear",
}
UPERNET = OPTIONS | {"head": "upernet", "head_channels": 8}


def coloured(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise (N, 3, 32, 32) with a rectangle of each of three colours, and its labels; a tenth of them is ignored."""
    draw = torch.Generator().manual_seed(0)
    images, labels = 0.3 * torch.randn(count, 3, 32, 32, generator=draw), torch.zeros(count, 32, 32, dtype=torch.long)
    for image, label in zip(images, labels, strict=True):
        for colour in range(3):
            y, x = torch.randint(18, (2,), generator=draw).tolist()
            image[colour, y : y + 14, x : x + 14] += 2
            label[y : y + 14, x : x + 14] = colour + 1
    labels[torch.rand(labels.shape, generator=draw) < 0.1] = 255
    return images, labels


@pytest.mark.parametrize("head", ["linear", "upernet", "semantic_fpn", "setr_pup"])
def test_sizes_of_logits(head: str) -> None:
    """In training a head with auxiliary heads gives a list; an evaluation gives logits in the size of the labels."""
    channels = {} if head == "linear" else {"head_channels": 8}
    task = Segmentation(**OPTIONS | {"head": head, "backbone_args": TINY | {"depth": 8, "embed_dim": 12}} | channels)
    images, labels = coloured(2)
    outputs = task.train()(images)
    assert len(outputs) == {"upernet": 2, "setr_pup": 4}.get(head, 2)  # the others: a tensor of two images
    assert isinstance(outputs, list) == (head in ("upernet", "setr_pup"))
    assert task.losses(outputs, labels).keys() == {"task_loss"} | ({"auxiliary_loss"} if len(task.auxiliary) else set())
    with torch.no_grad():
        logits = task.eval().evaluate(as_batch(images, labels[:, :20, :27]))
    assert logits.shape == (2, 4, 20, 27)
    assert task.predictions(logits).shape == (2, 20, 27)


def test_chosen_blocks() -> None:
    task, images = Segmentation(**UPERNET | {"map_blocks": [0, 1, 0, 1]}).eval(), coloured(1)[0]
    with torch.no_grad():
        _, blocks = task.backbone.forward_intermediates(images, indices=[0, 1])
        assert all(torch.equal(x, blocks[i]) for x, i in zip(task.features(images), [0, 1, 0, 1], strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"map_blocks": [0, 1, 2, 3]}, r"map_blocks=\[0, 1, 2, 3\]: expected four blocks from 0 to 1"),
        ({"map_blocks": [0, 1]}, "expected four blocks"),
        ({"map_blocks": [0, 1, 0, 1], "backbone": "resnet18", "backbone_args": {}}, "expected a plain ViT and upernet"),
        ({"map_blocks": [0, 1, 0, 1], "head": "setr_pup"}, "and upernet or semantic_fpn"),
    ],
)
def test_blocks_that_give_no_maps(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Segmentation(**UPERNET | options)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_networks_with_stages(name: str) -> None:
    task = Segmentation(**OPTIONS | {"backbone": name, "backbone_args": {}, "head": "semantic_fpn", "head_channels": 8})
    assert task.neck is None
    assert task.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 4, 16, 16)
    with pytest.raises(ValueError, match="head='setr_pup' reads the patches of a plain ViT"):
        Segmentation(**OPTIONS | {"backbone": name, "backbone_args": {}, "head": "setr_pup"})


def test_loss() -> None:
    """The mean over pixels with a label of all images, and not over images; without any such pixel it is 0."""
    logits, labels = torch.randn(2, 4, 8, 8), torch.randint(4, (2, 8, 8))
    labels[0, :7] = 255
    expected = F.cross_entropy(logits, labels, ignore_index=255)
    torch.testing.assert_close(pixel_loss(logits, labels), expected)
    assert float(pixel_loss(logits, torch.full_like(labels, 255))) == 0
    larger = F.interpolate(logits, (16, 16), mode="bilinear")
    torch.testing.assert_close(
        pixel_loss(logits, labels.new_ones(2, 16, 16)), F.cross_entropy(larger, labels.new_ones(2, 16, 16))
    )


def test_weight_of_auxiliary_heads() -> None:
    task, (images, labels) = Segmentation(**UPERNET).train(), coloured(2)
    torch.manual_seed(0)
    outputs = task(images)
    terms = task.losses(outputs, labels)
    torch.testing.assert_close(terms["auxiliary_loss"], 0.4 * pixel_loss(outputs[1], labels))
    assert len(Segmentation(**UPERNET, auxiliary_weight=0.0).heads()) == 2
    assert task.loss_key() != Segmentation(**UPERNET, auxiliary_weight=0.1).loss_key()


def test_learns_rectangles() -> None:
    """All weights and UperNet learn the training images in a few steps."""
    torch.manual_seed(0)
    task, (images, labels) = Segmentation(**UPERNET).train(), coloured()
    optimizer = torch.optim.AdamW(task.parameters(), lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        task.loss(as_batch(images, labels)).backward()
        optimizer.step()
    metrics = task.metrics()
    with torch.no_grad():
        task.eval()
        task.update(metrics, task.evaluate(as_batch(images, labels)), as_batch(images, labels))
    found = metrics.compute()
    assert found["mIoU"] > 0.75
    assert found["aAcc"] > found["mIoU"]


def test_windows_of_an_image() -> None:
    """Windows have the size of the crops; several sizes of an image change its logits."""
    task, images = Segmentation(**OPTIONS).eval(), torch.randn(1, 3, 40, 50)
    batch = as_batch(images, torch.zeros(1, 40, 50, dtype=torch.long))
    with torch.no_grad():
        one = task.infer(batch)
        task.eval_scales, task.eval_flip = [0.5, 1.0], True
        several = task.infer(batch)
    assert one.shape == several.shape == (1, 4, 40, 50)
    assert not torch.allclose(one.log_softmax(1), several, atol=1e-3)
    task.check_input_size((3, 32, 32))
    assert task.window == (32, 32)
    with pytest.raises(ValueError, match="images of 3 x 48 x 48"):
        task.check_input_size((3, 48, 48))


def test_counts_of_neck_and_head() -> None:
    model = compose(METHODS["lora"], task=Segmentation)(**UPERNET)
    model.configure_model()
    counts = model.parameter_counts()
    width = TINY["embed_dim"]
    assert counts["neck"] == 3 * (4 * width**2 + width)
    assert counts["head"] == sum(p.numel() for part in (model.decoder, model.auxiliary) for p in part.parameters())
    assert counts["method"] == sum(p.numel() for p in model.backbone.parameters() if p.requires_grad)


def test_export(tmp_path: Path) -> None:
    """A plain timm model with the neck and the head beside it gives the outputs of the model."""
    model = compose(METHODS["lora"], task=Segmentation)(**UPERNET)
    model.configure_model()
    torch.nn.init.normal_(model.backbone.blocks[0].attn.qkv.lora.B)
    merged, images = model.eval().merge(), torch.randn(2, 3, 32, 32)
    model.export(merged, tmp_path)
    plain = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.outputs_with(plain, images), model(images), atol=1e-5, rtol=1e-5)
    state = load_file(tmp_path / "head.safetensors")
    assert state.keys() == {name for name in model.state_dict() if model.in_head(name)}
    assert "neck.levels.1.weight" in state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes=1: expected 2 to 255"),
        ({"num_classes": 256}, "num_classes=256"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
        ({"head_channels": 8}, "head_channels=8: expected an even number, and no linear head"),
        ({"auxiliary_weight": -1.0}, "auxiliary_weight=-1.0"),
        ({"eval_stride": 0.0}, "eval_stride=0.0"),
        ({"eval_scales": []}, r"eval_scales=\[\]"),
        ({"backbone": "mixer_s32_224", "backbone_args": {}}, "MlpMixer has no maps"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Segmentation(**OPTIONS | options)


def test_other_classes() -> None:
    task = Segmentation(**OPTIONS)
    task.adopt({"class_names": ["sky", "sea"]})
    with pytest.raises(ValueError, match="the data have other classes than the checkpoint"):
        task.adopt({"class_names": ["sea", "sky"]})
