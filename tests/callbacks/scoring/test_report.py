"""The picture and the table of a scoring pass."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from PIL import Image

from callbacks.scoring import report as score_report
from callbacks.scoring.report import Scored
from callbacks.scoring.score_before_fit import ScoreBeforeFit
from datamodules import ImageDataset
from lightning_modules.classification import Classification
from methods import METHODS, PEFTMethod, compose
from methods.core.selective import Selective

Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
MakeTrainer = Callable[..., Trainer]

SCORED = [name for name, method in METHODS.items() if issubclass(method, Selective) and method.scorer is not None]


class Board(Logger):
    """Keeps what a TensorBoard writer would be given."""

    name, version = "board", "0"

    def __init__(self) -> None:
        super().__init__()
        self.figures: dict[str, tuple[int, ...]] = {}
        self.metrics: dict[str, float] = {}

    @property
    def experiment(self) -> "Board":
        return self

    def add_figure(self, tag: str, figure: Any) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(figure)  # as torch.utils.tensorboard does
        canvas.draw()
        self.figures[tag] = np.asarray(canvas.buffer_rgba()).shape

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        self.metrics |= metrics

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None: ...


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "scores.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", SCORED)
def test_every_pass_leaves_a_picture_and_a_table(
    method: str, build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, scoring, board = build(method), ScoreBeforeFit(), Board()
    run = trainer(callbacks=[scoring], logger=[CSVLogger(tmp_path, "", ""), board], max_steps=1)
    run.fit(model, datamodule=data())
    with Image.open(tmp_path / "scores.png") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(100_000) or []) > 20, "an empty picture"
    rows = rows_of(tmp_path)
    assert list(rows[0]) == score_report.HEADER
    assert sum(int(row["selected"]) for row in rows) == scoring.metrics["score/selected"] > 0
    assert all(0 <= float(row["mean"]) <= float(row["max"]) for row in rows)
    images = {"sara": 0, "sam_second_order": 5 * 24}.get(method, 24)  # from the weights alone; in several passes
    assert scoring.metrics["score/images"] == images
    assert 0 < scoring.metrics["score/selected_pct"] <= 100
    assert scoring.metrics.items() <= board.metrics.items()
    assert board.figures["score/heatmap"][2] == 4
    said = capsys.readouterr().err
    assert f"selected by {model.method_name()}: " in said
    assert (f"from {images} images in " if images else "from the weights alone") in said


def test_the_table_says_what_trains(build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path) -> None:
    gps = build("gps", gps_k=2)
    trainer(max_steps=1).fit(gps, datamodule=data())
    assert gps.selection is not None
    assert {row["tensor"]: int(row["selected"]) for row in rows_of(tmp_path)} == {
        name: len(indices) for name, indices in gps.selection.items()
    }
    spt = build("spt")
    trainer(max_steps=1).fit(spt, datamodule=data())
    # the class token trains in any case
    assert sum(int(row["selected"]) for row in rows_of(tmp_path)) == spt.parameter_counts()["method"] - 48


def test_wandb(build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    try:
        trainer(logger=logger, max_steps=1).fit(build("gps"), datamodule=data())
        summary, config = dict(logger.experiment.summary), dict(logger.experiment.config)
    finally:
        logger.experiment.finish()
        wandb.teardown()  # else later runs of this process would keep the settings of this one
    assert summary["score/heatmap"]["_type"] == "images/separated"
    assert summary["score/table"]["_type"] == "table-file"
    assert summary["score/table"]["nrows"] == len(rows_of(tmp_path))
    assert summary["score/selected"] == sum(int(row["selected"]) for row in rows_of(tmp_path))
    assert len(config["selection"]) == 64


def test_scores_of_an_earlier_pass_are_drawn_too(
    build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path
) -> None:
    tables = []
    for images in (24, 0):
        scoring = ScoreBeforeFit(cache_dir=str(tmp_path / "cache"))
        trainer(callbacks=[scoring], max_steps=1).fit(build("gps"), datamodule=data())
        assert scoring.metrics["score/images"] == images
        tables.append(rows_of(tmp_path))
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blocks.3.attn.qkv.weight", ("blocks.3", "qkv")),
        ("blocks.3.attn.q.bias", ("blocks.3", "biases")),
        ("blocks.11.norm1.weight", ("blocks.11", "norms")),
        ("blocks.11.norm1.bias", ("blocks.11", "norms")),
        ("patch_embed.proj.weight", ("patch_embed", "proj")),
        ("layers.0.blocks.1.mlp.fc1.weight", ("layers.0.blocks.1", "fc1")),
        ("layers.1.downsample.reduction.weight", ("layers.1", "reduction")),
        ("stages.2.blocks.8.conv_dw.weight", ("stages.2.blocks.8", "conv_dw")),
        ("stages.2.blocks.8.gamma", ("stages.2.blocks.8", "gamma")),
        ("stages.1.downsample.1.weight", ("stages.1", "downsample")),
        ("stages.1.downsample.0.weight", ("stages.1", "norms")),
        ("stem.0.weight", ("stem", "stem")),
        ("norm.weight", ("norm", "norms")),
        ("layer1.0.conv2.weight", ("layer1.0", "conv2")),
    ],
)
def test_place(name: str, expected: tuple[str, str]) -> None:
    norms = {"blocks.11.norm1", "stages.1.downsample.0", "norm"}
    assert score_report.place(name, norms) == expected


def test_cells() -> None:
    matrix, vector = torch.tensor([[1.0, 100.0], [0.0, 0.01]]), torch.tensor([10.0, 10.0])
    rows = [
        Scored("stem.proj.weight", matrix, 0),
        Scored("blocks.0.attn.qkv.weight", matrix, 1),
        Scored("blocks.0.norm.weight", vector, 2),
        Scored("blocks.0.norm.bias", vector, 0),
        Scored("blocks.1.attn.qkv.weight", matrix, 3, module=True),
    ]
    blocks, columns, mean, share, modules = score_report.cells(rows)
    assert (blocks, columns) == (["stem", "blocks.0", "blocks.1"], ["qkv", "norms", "other"])
    none = np.nan
    np.testing.assert_allclose(mean, [[none, none, 0], [0, 1, none], [0, none, none]], atol=1e-6)
    np.testing.assert_allclose(share, [[none, none, 0], [25, 50, none], [75, none, none]])
    assert modules.tolist() == [[False] * 3, [False] * 3, [True, False, False]]


@pytest.mark.parametrize("method", ["gps", "spt"])
@pytest.mark.parametrize(
    ("backbone", "args", "block"),
    [
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (2, 1, 2, 1)}, "layers.2.blocks.1"),
        ("convnext_atto", {"dims": (8, 16, 32, 64), "depths": (1, 1, 2, 1)}, "stages.2.blocks.1"),
    ],
)
def test_other_backbones(method: str, backbone: str, args: dict[str, Any], block: str) -> None:
    options = {"spt_budget": 0.05} if method == "spt" else {}
    model: Any = compose(METHODS[method], task=Classification)(
        backbone=backbone, backbone_args=args, pretrained=False, num_classes=3, **options
    )
    scores = {name: torch.rand_like(model.backbone.get_parameter(name)) for name in model.score_targets()}
    model.selection = model.select(scores)
    rows = model.score_rows(scores)
    assert sum(row.values.numel() for row in rows) == sum(score.numel() for score in scores.values())
    blocks, columns, *_ = score_report.cells(rows)
    assert block in blocks
    assert {"fc1", "fc2"} <= set(columns)
    assert not {"0", "1", "weight"} & set(columns)
    score_report.draw(rows, "a title", model.scorer.unit)


@pytest.mark.parametrize("depth", [1, 2, 24])
@pytest.mark.parametrize("selected", [0, 1, 64])
def test_any_number_of_blocks(depth: int, selected: int, tmp_path: Path) -> None:
    rows = [Scored(f"blocks.{i}.mlp.fc1.weight", torch.rand(8, 8), selected, selected == 1) for i in range(depth)]
    figure = score_report.draw(rows, "a title", "|sum of gradients|")
    width, height = (round(110 * inches) for inches in figure.get_size_inches())
    with Image.open(score_report.write(tmp_path, figure, score_report.table(rows))) as picture:
        assert picture.size == pytest.approx((width, height), abs=1)


def test_channels_of_several_widths() -> None:
    """As in Swin, whose stages have more and more channels."""
    rows = [Scored(f"layers.{i}", torch.rand(8 << i), 2, channels=torch.tensor([0, 5])) for i in range(3)]
    axis = score_report.draw(rows, "a title", "importance").axes[0]
    scores, marks = (np.asarray(image.get_array()) for image in axis.get_images())
    assert scores.shape == (3, 32)
    assert marks.shape == (9, 32)
    assert np.flatnonzero(marks[5] == 1).tolist() == [0, 5]
    assert np.isfinite(scores).sum(1).tolist() == [8, 16, 32]


def test_the_users_backend_stays() -> None:
    """A notebook that scores must go on showing its own figures."""
    import matplotlib

    before = matplotlib.get_backend()
    score_report.draw([Scored("blocks.0.mlp.fc1.weight", torch.rand(2, 2), 1)], "", "score")
    assert matplotlib.get_backend() == before
