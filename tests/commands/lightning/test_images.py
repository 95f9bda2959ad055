"""``predict --images``: any images, prepared as those of the run."""

import csv
from pathlib import Path

import pytest
from pyarrow import parquet
from safetensors import safe_open

from commands.lightning.cli import GraftCLI
from commands.lightning.images import image_flags, run_settings
from tests.conftest import BACKBONE, TINY
from tests.support.command_line import answer_of


@pytest.fixture(scope="module")
def run(weights: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run with a resizing and a normalisation that are not the backbone's own."""
    root = tmp_path_factory.mktemp("run")
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
    model = [f"--model.backbone={BACKBONE}", f"--model.pretrained={weights}", "--trainer.max_epochs=1"]
    model += [f"--model.backbone_args.{key}={value}" for key, value in TINY.items()]
    data = ["--data", "ImageDataset", f"--data.root={images}", "--data.resize=direct", "--data.normalization=imagenet"]
    data += ["--data.batch_size=8"]
    cli = GraftCLI.run(["fit", "--method", "linear_probe", *model, *data, *quiet, f"--run_root={root}"])
    return Path(cli.trainer.default_root_dir)


def test_a_folder_without_labels(run: Path, images: Path, tmp_path: Path) -> None:
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", f"--run_root={tmp_path}"]
    line = ["predict", "--ckpt_path", str(run / "adapter"), "--images", str(images / "test/rose"), *quiet]
    file = tmp_path / "found.safetensors"
    cli = GraftCLI.run([*line, "--top_k=2", f"--embeddings={file}", "--explain=gradcam"])
    folder = Path(cli.trainer.default_root_dir)
    assert (cli.datamodule.resize, cli.datamodule.normalization) == ("direct", "imagenet")
    with (folder / "predictions.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 5
    assert list(rows[0]) == ["index", "sample", "class", "probability", "class_2", "probability_2"]
    assert {rows[0]["class"], rows[0]["class_2"]} < {"daisy", "rose", "tulip"}
    assert float(rows[0]["probability"]) >= float(rows[0]["probability_2"])
    with safe_open(file, "pt") as stored:
        assert stored.get_tensor("embeddings").shape == (5, TINY["embed_dim"])
    assert len(list((folder / "explanations").iterdir())) == 5

    # one file, into a table
    one = ["predict", "--ckpt_path", str(run / "checkpoints/best.ckpt"), "--images", str(images / "test/rose/3.png")]
    GraftCLI.run([*one, *quiet, f"--embeddings={tmp_path / 'found.parquet'}"])
    table = parquet.read_table(tmp_path / "found.parquet").to_pylist()
    assert [Path(row["sample"]).name for row in table] == ["3.png"]
    assert len(table[0]["embedding"]) == TINY["embed_dim"]


def test_refusals(run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["predict", "--ckpt_path", run / "adapter", "--images", images / "test", f"--run_root={tmp_path / 'runs'}"]
    assert "top_k=9: the model has 3 classes" in answer_of(capsys, *line, "--top_k=9").err
    answer = answer_of(capsys, *line, "--embeddings=x.npy")
    assert (answer.code, "expected a file NAME.safetensors or NAME.parquet" in answer.err) == (1, True)
    with pytest.raises(ValueError, match="needs a --ckpt_path"):
        image_flags("x", "predict", [], None, [])
    with pytest.raises(ValueError, match="can be predicted only, and this is test"):
        image_flags("x", "test", [], "y", [])
    with pytest.raises(ValueError, match="--images x and --data name different images"):
        image_flags("x", "predict", ["--data", "VTAB"], "y", [])
    assert not list(tmp_path.glob("**/predictions.csv"))


def test_settings_of_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_settings(run / "adapter") == run_settings(run / "checkpoints/best.ckpt")
    flags = image_flags("x", "predict", ["--data.resize=center_crop"], str(run / "adapter"), ["a"])
    assert "--data.normalization=imagenet" in flags
    assert not [flag for flag in flags if flag.startswith("--data.resize")], "the user's own option wins"
    image_flags("x", "predict", [], str(tmp_path / "adapter"), ["a"])
    assert "images are prepared as the backbone's own" in capsys.readouterr().out
