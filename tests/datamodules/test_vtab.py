"""VTAB-1k from tiny trees: lists of the published lengths over three images a class."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from datasets import Image as ImageFeature
from lightning import Trainer

from commands.lightning.cli import GraftCLI
from datamodules import VTAB, MicroVTAB
from tests.conftest import BACKBONE, TINY
from tests.support.pictures import INPUT, picture

LENGTHS = {"train800": 800, "val200": 200, "train800val200": 1000, "test": 711}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A dump of kitti (4 classes, of which three have images), whose folder has a space and an umlaut."""
    folder = tmp_path / "vtab 1k, für uns/kitti"
    for split in LENGTHS:
        (folder / "images" / split).mkdir(parents=True)
        for index in range(9):
            picture(index, 32, 32).save(folder / f"images/{split}/{index:06d}.jpg")
    for split, length in LENGTHS.items():
        lines = [f"images/{split}/{index % 9:06d}.jpg {index % 3}\n" for index in range(length)]
        (folder / f"{split}.txt").write_text("".join(lines))
    return folder.parent


def ready(module: VTAB, stage: str = "fit") -> VTAB:
    """As the trainer sets it up."""
    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        lightning_module=SimpleNamespace(input_config=INPUT), world_size=2, accumulate_grad_batches=3
    )
    module.setup(stage)
    return module


def test_table() -> None:
    assert len(VTAB.tasks) == 19
    assert sum(VTAB.tasks.values()) == 940
    assert VTAB.tasks["sun397"] == 397
    assert VTAB.tasks["smallnorb_ele"] == 9
    assert VTAB.test_sizes["dsprites_ori"] == 73_728
    assert VTAB.test_sizes["diabetic_retinopathy"] == 42_670
    assert set(VTAB.aliases.values()) <= set(VTAB.tasks)
    assert {name: len(tasks) for name, tasks in VTAB.groups.items()} == {
        "natural": 7,
        "specialized": 4,
        "structured": 8,
    }


@pytest.mark.parametrize("suite", [VTAB, MicroVTAB])
def test_groups_hold_every_task_once(suite: type[VTAB], tmp_path: Path) -> None:
    assert list(suite.groups) == ["natural", "specialized", "structured"]
    assert [task for tasks in suite.groups.values() for task in tasks] == list(suite.tasks) == list(suite.test_sizes)
    assert {task: suite(str(tmp_path), task).group for task in suite.tasks} == {
        task: name for name, tasks in suite.groups.items() for task in tasks
    }


def test_tune_and_final(root: Path) -> None:
    tune = ready(VTAB(str(root), "kitti"))
    assert {split: len(data) for split, data in tune.splits.items()} == {"train": 800, "val": 200}  # type: ignore[arg-type]
    assert tune.num_classes == 4, "of the table: one class has no image"
    final = ready(VTAB(str(root), "kitti", split="final"))
    assert {split: len(data) for split, data in final.splits.items()} == {"train": 1000}  # type: ignore[arg-type]
    assert not final.validates
    for module in (tune, final):
        assert module.samples("test").name(0).endswith("test/000000.jpg")  # type: ignore[union-attr]
    assert (tune.kept_epoch, final.kept_epoch) == ("best validation epoch", "last epoch")


def test_best_test_epoch_only_on_request(root: Path) -> None:
    module = ready(VTAB(str(root), "kitti", split="final", report_best_test=True))
    assert len(module.splits["val"]) == 711  # type: ignore[arg-type]
    assert module.kept_epoch == "best test epoch"
    with pytest.raises(ValueError, match="report_best_test=true goes with split=final"):
        VTAB(str(root), "kitti", report_best_test=True)


def test_what_results_say(root: Path) -> None:
    module = ready(VTAB(str(root), "kitti", normalization="inception", interpolation="bilinear", batch_size=10))
    expected = {"data_task": "kitti", "split": "tune", "source": "dump", "group": "structured"}
    expected |= {
        "normalization": "inception",
        "interpolation": "bilinear",
        "resize": "direct",
        "effective_batch_size": 60,
    }
    assert expected.items() <= module.description().items()
    assert module.description()["images"] == {"train": 800, "val": 200}


def test_lists_are_cut_where_only_the_whole_is_there(root: Path) -> None:
    whole = {name: VTAB(str(root), "kitti").samples_of(name) for name in LENGTHS}
    for name in ("train800", "val200"):
        (root / f"kitti/{name}.txt").unlink()
        shutil.rmtree(root / f"kitti/images/{name}")
    module = VTAB(str(root), "kitti")
    labels = whole["train800val200"].labels
    assert torch.equal(module.samples_of("train800").labels, labels[:800])
    assert torch.equal(module.samples_of("val200").labels, labels[800:])
    assert module.samples_of("val200").name(0).endswith(f"train800val200/{800 % 9:06d}.jpg")
    ready(module)


@pytest.mark.parametrize("form", ["parquet", "save_to_disk"])
@pytest.mark.parametrize("cut", [False, True])
def test_hugging_face_folders(form: str, cut: bool, root: Path) -> None:
    dump = {name: VTAB(str(root), "kitti").samples_of(name) for name in LENGTHS}
    tables = DatasetDict()
    for name, samples in dump.items():
        if cut and name in ("train800", "val200"):
            continue
        rows = [{"bytes": samples.content(i), "path": None} for i in range(len(samples.labels))]
        table = Dataset.from_dict({"image": rows, "label": samples.labels.tolist()})
        tables[name] = table.cast_column("image", ImageFeature())
    hub = root / "hub"
    if form == "save_to_disk":
        tables.save_to_disk(str(hub / "kitti"))
    else:
        for name, table in tables.items():
            (hub / "kitti").mkdir(parents=True, exist_ok=True)
            table.to_parquet(str(hub / f"kitti/{name}-00000-of-00001.parquet"))
    module = VTAB(str(hub), "kitti")
    assert module.source == "hf"
    for name in set(LENGTHS) - ({"train800", "val200"} if cut else set()):
        samples = module.samples_of(name)
        assert torch.equal(samples.labels, dump[name].labels)
        assert samples.content(5) == dump[name].content(5)
    assert len(module.samples_of("val200").labels) == 200
    assert module.num_classes == 4


def test_names_of_tasks(root: Path) -> None:
    assert VTAB(str(root), "cifar100").task == "cifar"
    assert VTAB(str(root), "oxford_pet").num_classes == 37
    (root / "kitti").rename(root / "oxford_pet")
    assert VTAB(str(root), "oxford_iiit_pet").folder.name == "oxford_pet"
    with pytest.raises(ValueError, match=r"unknown task 'kity'; nearest: kitti.*known: cifar, "):
        VTAB(str(root), "kity")
    with pytest.raises(ValueError, match=r"data\.task is missing; known: cifar, "):
        _ = VTAB(str(root)).num_classes
    with pytest.raises(FileNotFoundError, match="has no folder svhn"):
        ready(VTAB(str(root), "svhn"))
    with pytest.raises(FileNotFoundError, match=r"data\.root='nowhere': no such folder"):
        VTAB("nowhere", "svhn")


def test_links(root: Path, tmp_path: Path) -> None:
    (root / "kitti/images/train800").rename(tmp_path / "elsewhere")
    (root / "kitti/images/train800").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(root)
    ready(VTAB(str(tmp_path / "link"), "kitti"))


def replace(old: str, new: str) -> Callable[[Path], None]:
    """Replace some text of train800.txt once."""

    def harm(folder: Path) -> None:
        file = folder / "train800.txt"
        file.write_text(file.read_text().replace(old, new, 1))

    return harm


def remove(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


IMAGES = "images/train800/"
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing list": (remove("train800.txt", "train800val200.txt"), r"train800\.txt is missing"),
    "too few lines": (replace(f"{IMAGES}000000.jpg 0\n", ""), r"train800\.txt: 799 images, expected 800"),
    "label outside": (replace("000003.jpg 0", "000003.jpg 4"), r"000003\.jpg has label 4, outside 0 to 3"),
    "negative label": (replace("000003.jpg 0", "000003.jpg -1"), r"000003\.jpg has label -1, outside 0 to 3"),
    "no label": (replace("000003.jpg 0", "000003.jpg"), r"train800\.txt, line 4: expected a path, a space and"),
    "no number": (replace("000003.jpg 0", "000003.jpg cat"), r"train800\.txt, line 4: expected"),
    "path upwards": (replace(f"{IMAGES}000003", "images/../../../secret"), "which lies outside"),
    "absolute path": (replace(f"{IMAGES}000003", "/etc/secret"), "which lies outside"),
    "path of Windows": (replace(f"{IMAGES}000003", "images\\..\\..\\secret"), "which lies outside"),
    "first image missing": (remove(f"{IMAGES}000000.jpg"), r"names images/train800/000000\.jpg, but there is no such"),
    "last image missing": (remove(f"{IMAGES}000007.jpg"), r"names images/train800/000007\.jpg, but there is no such"),
    "an image missing": (remove(f"{IMAGES}000004.jpg"), r"89 of 800 images cannot be read, first .*000004\.jpg"),
    "empty list": (lambda folder: (folder / "train800.txt").write_text("\n"), "lists no images"),
    "no text": (lambda folder: (folder / "train800.txt").write_bytes(b"\xff\xfe\x00"), "is no UTF-8 text"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_stop_the_run(fault: str, root: Path) -> None:
    harm, message = FAULTS[fault]
    harm(root / "kitti")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ready(VTAB(str(root), "kitti"))


def test_missing_test_images_are_found_before_a_final_fit(root: Path) -> None:
    shutil.rmtree(root / "kitti/images/test")
    ready(VTAB(str(root), "kitti"))  # choosing needs none
    with pytest.raises(FileNotFoundError, match=r"test\.txt names images/test/000000\.jpg"):
        ready(VTAB(str(root), "kitti", split="final"))


def test_other_test_sets_are_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "kitti/test.txt").write_text("images/test/000000.jpg 0\n")
    VTAB(str(root), "kitti").samples("test")
    assert "1 images, 711 in papers; accuracies are not comparable" in capsys.readouterr().out


def test_fit_and_test(root: Path, build: Callable[..., Any], trainer: Callable[..., Trainer]) -> None:
    model = build("ssf", num_classes=4)
    runner = trainer(limit_train_batches=2)
    data = VTAB(str(root), "kitti", split="final", batch_size=8, eval_batch_size=100)
    runner.fit(model, datamodule=data)
    runner.test(model, datamodule=data, verbose=False)
    assert 0 <= float(runner.callback_metrics["test/acc1"]) <= 1


@pytest.mark.parametrize(
    ("options", "selection"),
    [
        (["--data.split", "tune"], "best validation epoch"),
        (["--data.split", "final"], "last epoch"),
        (["--data.split", "final", "--data.report_best_test", "true"], "best test epoch"),
    ],
)
def test_results_say_what_chose_the_epoch(
    options: list[str],
    selection: str,
    root: Path,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = {"backbone": BACKBONE, "pretrained": weights} | {f"backbone_args.{key}": TINY[key] for key in TINY}
    trainer = {"max_epochs": 1, "limit_train_batches": 1, "accelerator": "cpu", "enable_progress_bar": "false"}
    args = ["fit", "--method", "linear_probe", "--data", "VTAB", "--data.root", str(root), "--data.task", "kitti"]
    args += [f"--model.{key}={value}" for key, value in model.items()]
    args += [f"--trainer.{key}={value}" for key, value in trainer.items()]
    cli = GraftCLI.run([*args, *options, "--test_after_fit", "true", "--run_root", str(tmp_path / "runs")])
    folder = Path(cli.trainer.default_root_dir)
    result = json.loads((folder / "result.json").read_text())
    expected = {"selection": selection, "split": options[1], "data_task": "kitti", "dataset": "VTAB", "source": "dump"}
    assert expected.items() <= result.items()
    assert result["data"] == str(root)
    assert folder.parent.name == "vtab_1k_für_uns-kitti"
    assert ("best/val/acc1" in result) == (selection != "last epoch")
    assert "test/acc1" in result
    assert selection in " ".join(capsys.readouterr().out.split())
