"""Detection and instance segmentation."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from datamodules.detection_folder import DetectionFolder
from lightning_modules.batch import Batch
from lightning_modules.detection import Detection, in_file
from methods import METHODS, compose
from tests.conftest import BACKBONE, TINY, quiet_trainer
from tests.support.objects import write_objects
from tests.support.ranks import TwoRanks

SMALL: dict[str, Any] = {
    "head_channels": 8,
    "box_channels": 16,
    "anchor_sizes": [8, 12, 18, 26, 38],
    "proposals": 12,
    "regions": 12,
}
OPTIONS: dict[str, Any] = {
    "backbone": BACKBONE,
    "backbone_args": TINY | {"dynamic_img_size": True},
    "pretrained": False,
    "num_classes": 2,
    **SMALL,
}
SIZES = ((32, 32), (32, 48), (48, 32))


def squares(count: int = 2, size: tuple[int, int] = (32, 32), padding: int = 0, masks: bool = True) -> Batch:
    """Noise (N, 3, H, W) with a square of each of two colours, and its objects.

    Args:
        count: Number of images N.
        size: Height and width in pixels without the padding.
        padding: Rows and columns of zeros at the lower and the right edge.
        masks: Whether there are masks.
    """
    draw, (height, width) = torch.Generator().manual_seed(0), size
    images = torch.zeros(count, 3, height + padding, width + padding)
    images[:, :, :height, :width] = 0.3 * torch.randn(count, 3, height, width, generator=draw)
    targets = list[dict[str, Any]]()
    for image in images:
        boxes = torch.zeros(2, 4)
        shapes = torch.zeros(2, height, width, dtype=torch.uint8)
        for number in range(2):
            y = int(torch.randint(height - 13, (), generator=draw))
            x = int(torch.randint(width // 2 - 12, (), generator=draw)) + number * (width // 2 - 1)
            image[number, y : y + 12, x : x + 12] += 3
            boxes[number] = torch.tensor([x, y, x + 12, y + 12])
            shapes[number, y : y + 12, x : x + 12] = 1
        target = {"boxes": boxes, "labels": torch.tensor([1, 2]), "size": size, "original": size}
        targets.append(target | ({"masks": shapes} if masks else {}))
    return Batch(images, targets, torch.ones(count, dtype=torch.bool))


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn"])
def test_heads(head: Any) -> None:
    """Losses by torchvision's names, in eval mode too; objects in the size of the file, masks if the head has them."""
    task, batch = Detection(**OPTIONS, head=head), squares(masks="mask" in head)
    stages = ["_1", "_2", "_3"] if head.startswith("cascade") else [""]
    names = {f"loss_{what}{stage}" for what in ("classifier", "box_reg") for stage in stages}
    names |= {"loss_objectness", "loss_rpn_box_reg"} | ({"loss_mask"} if "mask" in head else set())
    for mode in (True, False):
        assert task.train(mode).losses(task(batch.inputs), batch.targets).keys() == names
        assert task.decoder.training == mode
    for target in batch.targets:
        target["original"] = (64, 96)
    with torch.no_grad():
        found = task.eval().infer(batch)
    assert len(found) == 2
    for image in found:
        assert len(image["boxes"]) == len(image["labels"]) == len(image["scores"]) > 0
        assert float(image["boxes"].min()) >= 0
        assert float(image["boxes"][:, 2].max()) <= 96
        assert float(image["boxes"][:, 3].max()) <= 64
        assert {*image["labels"].tolist()} <= {1, 2}
        assert image["scores"].tolist() == sorted(image["scores"].tolist(), reverse=True)
        assert ("masks" in image) == ("mask" in head)
        assert "masks" not in image or image["masks"].shape == (len(image["boxes"]), 64, 96)


def test_learns_squares() -> None:
    """All weights and Cascade Mask R-CNN learn the training images in a few steps, boxes and masks."""
    torch.manual_seed(0)
    sizes = {"head_channels": 16, "box_channels": 32, "regions": 16, "proposals": 24}
    task, batch = Detection(**OPTIONS | sizes, head="cascade_mask_rcnn").train(), squares(4)
    optimizer = torch.optim.AdamW(task.parameters(), lr=4e-3)
    for _ in range(45):
        optimizer.zero_grad()
        task.loss(batch).backward()
        optimizer.step()
    metrics = task.metrics()
    with torch.no_grad():
        task.eval()
        task.update(metrics, task.infer(batch), batch)
    found = metrics.compute()
    assert found["box_map_50"] > 0.7
    assert found["mask_map_50"] > 0.7
    assert found["box_map"] < found["box_map_50"]


@pytest.mark.parametrize(("name", "neck"), [("resnet18", "fpn"), ("vit", "simple"), ("vit", "fpn")])
def test_necks(name: str, neck: Any) -> None:
    """Five maps, each with half the sides of the one before; strides are those of patches of 8 pixels, or of stages."""
    own = {} if name == "vit" else {"backbone": name, "backbone_args": {}}
    task = Detection(**OPTIONS | own, neck=neck).eval()
    with torch.no_grad():
        maps = task(torch.randn(1, 3, 64, 96))
    first = 32 if name == "vit" else 16
    sides = [(max(first // 2**level, 1), max(first * 3 // 2 // 2**level, 1)) for level in range(4)]
    assert [tuple(x.shape[2:]) for x in maps[:4]] == sides
    assert len(maps) == 5
    assert all(x.shape[1] == 8 and x.dtype is torch.float32 for x in maps)
    strides = [4, 8, 16, 32, 64] if name != "vit" else [2, 4, 8, 16, 32]
    assert task.decoder.rpn.anchor_generator.strides == strides
    assert task.divisor == (16 if name == "vit" else 32)


def test_padding_has_no_objects() -> None:
    """Boxes stay inside the image, however large its padded batch is."""
    task, batch = Detection(**OPTIONS, head="faster_rcnn").eval(), squares(1, padding=64)
    with torch.no_grad():
        found = task.infer(batch)[0]
    assert float(found["boxes"].max()) <= 32


def test_boxes_in_the_size_of_the_file() -> None:
    """Image 20 x 40 in the model, 10 x 80 in the file: twice as wide, half as high."""
    mask = torch.ones(1, 1, 28, 28)
    found = {"boxes": torch.tensor([[10.0, 4.0, 30.0, 16.0]]), "masks": mask}
    scaled = in_file(found, {"size": (20, 40), "original": (10, 80)})
    assert scaled["boxes"].tolist() == [[20.0, 2.0, 60.0, 8.0]]
    assert scaled["masks"].shape == (1, 10, 80)
    assert scaled["masks"][0, 3:7, 22:58].all()
    assert not scaled["masks"][0, :, :18].any()


def test_counts_of_the_papers() -> None:
    """Neck over HST's maps and Mask R-CNN for 80 classes: with HST 30.53 million, where the paper prints 30.6."""
    with torch.device("meta"):
        task = Detection(**OPTIONS | {"num_classes": 80, "head_channels": 256, "box_channels": 1024})
        task.read_pyramid([64, 128, 256, 384])
    counts = {name: sum(p.numel() for p in head.parameters()) for name, head in task.heads().items()}
    assert counts == {"neck": 2_574_336, "decoder": 17_548_277}


def test_export(tmp_path: Path) -> None:
    """A plain timm model with the neck beside it gives the maps of the model."""
    model = compose(METHODS["lora"], task=Detection)(**OPTIONS)
    model.configure_model()
    torch.nn.init.normal_(model.backbone.blocks[0].attn.qkv.lora.B)
    merged, images = model.eval().merge(), torch.randn(2, 3, 32, 48)
    model.export(merged, tmp_path)
    plain = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, dynamic_img_size=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.outputs_with(plain, images), model(images), atol=1e-5, rtol=1e-5)
        assert model.logits(model(images)).shape[:2] == (2, 2)
    assert load_file(tmp_path / "head.safetensors").keys() == {n for n in model.state_dict() if model.in_head(n)}


def test_low_precision() -> None:
    """Under bf16 boxes and losses are fp32."""
    task, batch = Detection(**OPTIONS, head="cascade_mask_rcnn").eval(), squares()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found, terms = task.infer(batch), task.losses(task(batch.inputs), batch.targets)
    values: list[Tensor] = [*terms.values(), found[0]["boxes"], found[0]["scores"]]
    assert all(value.dtype is torch.float32 for value in values)


def validated(rank: int | None, images: Path, folder: Path) -> dict[str, float]:
    """Metrics of three validation images: in one process, or of one of two ranks."""
    ranks: dict[str, Any] = {} if rank is None else {"devices": 2, "strategy": "ddp"}
    sizes: dict[str, Any] = {"short_sides": [32], "long_side": 48}
    data = DetectionFolder(str(images), **sizes, batch_size=1, num_workers=0)
    torch.manual_seed(0)
    model = compose(METHODS["linear_probe"], task=Detection)(**OPTIONS)
    run = quiet_trainer(folder, **ranks)
    run.validate(model, datamodule=data, verbose=False)
    return {name: float(value) for name, value in run.callback_metrics.items()}


def test_two_ranks(two_ranks: TwoRanks, tmp_path: Path) -> None:
    """Each image counts once, also where a rank has another one that only evens them out."""
    write_objects(tmp_path / "data", {"train": 2, "val": 3})
    alone = validated(None, tmp_path / "data", tmp_path)
    assert alone["val/box_map_50"] > 0
    for found in two_ranks(validated, tmp_path / "data", tmp_path):
        assert found == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes=0: expected at least 1"),
        ({"anchor_sizes": [8, 16]}, r"anchor_sizes=\[8, 16\]: expected 5 sizes"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
        ({"regions": 0}, "regions=0"),
        ({"backbone": "resnet18", "backbone_args": {}, "neck": "simple"}, "neck='simple' reads the last block"),
        ({"backbone": "mixer_s32_224", "backbone_args": {}}, "MlpMixer has no maps"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Detection(**OPTIONS | options)


def test_images_of_one_size() -> None:
    """A ViT that takes images of its own size alone is refused, with the option that helps."""
    task = Detection(**OPTIONS | {"backbone_args": TINY})
    with pytest.raises(ValueError, match=r"Add --model\.backbone_args\.dynamic_img_size true"):
        task.check_input_size((3, 48, 32))
