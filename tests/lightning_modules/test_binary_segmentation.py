"""Segmentation of one kind of object with SAM."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning import Trainer, seed_everything
from PIL import Image
from torch.nn import functional as F

from callbacks.measures import forward_gflops
from checkpoints.delta import write_adapter
from commands.methods.cell import check_step, select
from datamodules.segmentation_folder import SegmentationFolder
from lightning_modules.batch import Batch
from lightning_modules.binary_segmentation import BinarySegmentation, soft_iou_loss
from lightning_modules.heads import sam_decoder
from methods import METHODS, compose
from tests.conftest import checkpoint_of, perturb
from tests.lightning_modules.heads.test_sam_decoder import write_sam
from tests.support.batches import as_batch
from tests.support.scenes import write_scenes
from train import main

ARGS = {
    "img_size": 64,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "window_size": 2,
    "global_attn_indexes": [1],
    "neck_chans": 32,
}
OPTIONS: dict[str, Any] = {
    "backbone": "samvit_base_patch16",
    "backbone_args": ARGS,
    "pretrained": False,
    "decoder_weights": False,
}
REFUSED = {
    "vpt": "prompts join the tokens of a ViT",
    "e2vpt": "E2VPT adds keys and values to the attention of a ViT",
    "last": "LAST gives one sequence of tokens",
}


def build(method: str, **options: Any) -> Any:
    """A method on a small SAM with random weights, not adapted yet."""
    seed_everything(0, verbose=False)
    return compose(METHODS[method], task=BinarySegmentation)(**OPTIONS | options)


def polyps() -> Batch:
    """Two images (2, 3, 64, 64) of noise with a bright disc, and its mask; some pixels have no label."""
    draw = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    labels = torch.stack([((y - a) ** 2 + (x - b) ** 2 < 15**2).long() for a, b in ((20, 25), (40, 38))])
    images = 0.3 * torch.randn(2, 3, 64, 64, generator=draw) + 2 * labels[:, None]
    return as_batch(images, labels.masked_fill(torch.rand(labels.shape, generator=draw) < 0.05, 255))


@pytest.mark.parametrize("method", ["gps", "lora", "ssf"])
def test_methods(method: str, tmp_path: Path) -> None:
    """Gradients, the adapter folder and the merge: all give the outputs of the model."""
    options = {"gps_loss": "ce"} if method == "gps" else {}
    model, batch = build(method, **options), polyps()
    model.adapt_before_data()
    select(model, batch)
    check_step(model, batch)
    perturb(model, 0.01)
    with torch.no_grad():
        expected = model.eval().infer(batch)
        assert expected.shape == (2, 1, 64, 64)
        write_adapter(tmp_path, checkpoint_of(model))
        seed_everything(0, verbose=False)  # for the same random backbone
        loaded = type(model).from_delta(tmp_path).eval()
        torch.testing.assert_close(loaded.infer(batch), expected, atol=1e-5, rtol=1e-5)
        merged = model.merge()
        assert model.plain_keys <= merged.state_dict().keys()
        torch.testing.assert_close(model.outputs_with(merged, batch.inputs), model(batch.inputs), atol=1e-4, rtol=1e-4)


def test_selection_of_gps() -> None:
    """As its script for SAM: one entry a row of each weight, all biases, no norms, no tables of positions."""
    model: Any = build("gps", gps_loss="ce")
    model.adapt_before_data()
    kinds, weights = model.kinds(), dict(model.backbone.named_parameters())
    frozen = {name for name, kind in kinds.items() if kind == "frozen"}
    assert {"pos_embed", "blocks.0.attn.rel_pos_h", "neck.1.weight", "neck.1.bias", "blocks.1.norm2.bias"} <= frozen
    assert {name for name, kind in kinds.items() if kind == "whole"} == {
        name for name in weights if "bias" in name and name not in frozen
    }
    select(model, polyps())
    rows = {name: len(weights[name]) for name, kind in kinds.items() if kind == "matrix"}
    assert {"neck.0.weight", "neck.2.weight", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= rows.keys()
    assert {name: len(indices) for name, indices in model.selection.items()} == rows
    biases = sum(weights[name].numel() for name, kind in kinds.items() if kind == "whole")
    assert model.parameter_counts()["method"] == sum(rows.values()) + biases
    assert model.parameter_counts()["head"] == sum(p.numel() for p in model.decoder.parameters())


@pytest.mark.parametrize("method", REFUSED)
def test_refused_methods(method: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[method]):
        build(method).adapt_before_data()


def test_losses() -> None:
    """As in the code of GPS; pixels without a label change none."""
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 1, 8, 8), torch.randint(2, (3, 8, 8))
    shares, truth = logits[:, 0].sigmoid(), labels.float()
    both = (shares * truth).sum((1, 2))
    expected = (1 - both / (shares.sum((1, 2)) + truth.sum((1, 2)) - both)).mean()
    torch.testing.assert_close(soft_iou_loss(logits, labels), expected)
    task = BinarySegmentation(**OPTIONS)
    terms = task.losses(logits, labels)
    assert terms.keys() == {"task_loss", "iou_loss"}
    torch.testing.assert_close(terms["task_loss"], F.binary_cross_entropy_with_logits(logits[:, 0], truth))
    labels[:, 4:] = 255
    changed = logits.clone()
    changed[:, :, 4:] = 9
    for name, term in task.losses(logits, labels).items():
        torch.testing.assert_close(task.losses(changed, labels)[name], term)
    torch.testing.assert_close(task.logits(logits).softmax(1)[:, 1], shares)


def test_learns_discs() -> None:
    """All weights learn the training images in a few steps."""
    torch.manual_seed(0)
    task, batch = BinarySegmentation(**OPTIONS).train(), polyps()
    optimizer = torch.optim.AdamW(task.parameters(), lr=5e-3)
    for _ in range(25):
        optimizer.zero_grad()
        task.loss(batch).backward()
        optimizer.step()
    metrics = task.metrics()
    with torch.no_grad():
        task.eval()
        task.update(metrics, task.evaluate(batch), batch)
    found = metrics.compute()
    assert found["Dice"] > 0.8
    assert found["Dice"] > found["IoU"]


def test_costs() -> None:
    """FLOPs are counted through the decoder; a view of a parameter as its input would stop the counter."""
    assert forward_gflops(BinarySegmentation(**OPTIONS)) > 1e-3


def test_other_sizes() -> None:
    """An image is resized to the size of the encoder, and its logits to that of the mask."""
    task = BinarySegmentation(**OPTIONS).eval()
    batch = as_batch(torch.randn(1, 3, 64, 80), torch.zeros(1, 50, 70, dtype=torch.long))
    with torch.no_grad():
        assert task.infer(batch).shape == (1, 1, 50, 70)
        assert task.predictions(task.infer(batch)).unique().tolist() in ([0], [1], [0, 1])


def test_export(tmp_path: Path) -> None:
    model = build("lora")
    model.configure_model()
    merged = model.eval().merge()
    model.export(merged, tmp_path)
    plain = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = polyps().inputs
    with torch.no_grad():
        torch.testing.assert_close(model.outputs_with(plain, images), model(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 4}, "num_classes=4: expected 2 classes, the background and the object"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
        ({"backbone": "vit_tiny_patch16_224", "backbone_args": {}}, "is no image encoder of SAM: use samvit_base"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BinarySegmentation(**OPTIONS | options)


def test_fit(tmp_path: Path, trainer: Callable[..., Trainer]) -> None:
    """Scores of the training images, then a fit with the decoder of a folder, and the metrics of a test."""
    write_scenes(tmp_path / "data", {"train": 4, "test": 2}, size=(64, 64))
    write_sam(tmp_path / "sam", channels=32)
    data = SegmentationFolder(root=str(tmp_path / "data"), batch_size=2)
    data.names = ["background", "polyp"]
    for file in (tmp_path / "data" / "masks").rglob("*.png"):
        Image.open(file).point(lambda number: min(number, 1)).save(file)
    model = build("gps", gps_loss="ce", decoder_weights=str(tmp_path / "sam"))
    run = trainer(max_epochs=1)
    run.fit(model, datamodule=data)
    assert model.selection
    scores = run.test(model, datamodule=data, verbose=False)[0]
    assert 0 <= scores["test/IoU"] <= scores["test/Dice"] <= 1
    assert scores["test/gps_recall_dice"] >= scores["test/gps_recall_iou"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Data of four classes, and a missing library: one message before the fit."""
    write_scenes(tmp_path / "data", {"train": 2, "test": 1}, size=(64, 64))
    args = ["fit", "--method", "lora", "--task", "binary_segmentation", "--data", "SegmentationFolder"]
    args += ["--data.root", str(tmp_path / "data"), "--model.backbone", OPTIONS["backbone"]]
    args += ["--model.pretrained=false", "--model.decoder_weights=false", f"--model.backbone_args={json.dumps(ARGS)}"]
    args += ["--run_root", str(tmp_path / "runs"), "--trainer.logger=false"]
    with pytest.raises(SystemExit) as exit_:
        main(args)
    assert exit_.value.code == 1
    assert "num_classes=4: expected 2 classes" in capsys.readouterr().err

    def missing() -> Any:
        raise ValueError("the mask decoder of SAM needs transformers: pip install transformers")

    monkeypatch.setattr(sam_decoder, "library", missing)
    with pytest.raises(ValueError, match="needs transformers"):
        BinarySegmentation(**OPTIONS)
