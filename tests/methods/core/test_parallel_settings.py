"""Several settings in one run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from callbacks.ema import EMA
from callbacks.features.cache import FeatureCache
from checkpoints.delta import one_member, read_checkpoint, write_adapter
from commands.lightning.cli import GraftCLI
from datamodules import ImageDataset
from methods import PEFTMethod
from methods.core.parallel_settings import ParallelSettings
from tests.conftest import BACKBONE, TINY

Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
MakeTrainer = Callable[..., Trainer]

SETTINGS: list[dict[str, Any]] = [
    {"lr": 1e-2},
    {"lr": 3e-2, "weight_decay": 0.3, "warmup_epochs": 1.0},
    {"lr": 1e-3, "min_lr": 1e-4, "head_init": "linear"},
]
OWN: dict[str, list[dict[str, Any]]] = {
    "linear_probe": [{}, {}, {}],
    "mlp_head": [{"mlp_head_dropout": 0.0}] * 3,
    "last": [{}, {"last_rank": 4, "last_depth": 2}, {"last_up_init": "xavier"}],
    "hst": [{}, {"hst_dims": [16, 24, 32, 36]}, {}],
}
COMMON: dict[str, dict[str, Any]] = {"hst": {"meta_tokens": 0, "tune_norm": False}}


def settings_of(method: str) -> list[dict[str, Any]]:
    return [{"name": f"m{i}"} | s | o for i, (s, o) in enumerate(zip(SETTINGS, OWN[method], strict=True))]


def fit(model: Any, data: Any, make: MakeTrainer, **options: Any) -> Trainer:
    run = make(**{"max_epochs": 3} | options)
    run.fit(model, datamodule=data)
    return run


@pytest.mark.parametrize("method", OWN)
@pytest.mark.parametrize("cache", ["none", "ram"])
def test_members_are_solo_runs(method: str, cache: Any, build: Build, data: Data, trainer: MakeTrainer) -> None:
    """Difference 0, in every trained number and every metric."""
    settings, common = settings_of(method), COMMON.get(method, {})
    joint = ParallelSettings(build(method, **common), settings)
    metrics = fit(joint, data(), trainer, callbacks=[FeatureCache(cache)]).callback_metrics
    for i, setting in enumerate(settings):
        options = {name: value for name, value in setting.items() if name != "name"}
        solo = build(method, **common | options)
        alone = fit(solo, data(), trainer).callback_metrics
        for name, tensor in solo.delta_state_dict().items():
            assert torch.equal(joint.members[i].delta_state_dict()[name], tensor), f"{i} {name}"  # type: ignore[operator]
        for name in ("val/acc1", "val/mean_class_acc", "val/loss", "train/loss"):
            assert metrics[f"{name}/m{i}"] == alone[name], name


def test_one_backbone_and_one_forward_pass(build: Build, data: Data, trainer: MakeTrainer) -> None:
    joint = ParallelSettings(build("last"), settings_of("last"))
    first, *others = joint.each()
    for name, parameter in first.backbone.named_parameters():
        for other in others:
            assert (other.backbone.get_parameter(name) is parameter) == (not name.startswith("head."))
    seen: list[int] = []
    first.backbone.patch_embed.register_forward_hook(lambda *_: seen.append(0))
    others[0].backbone.patch_embed.register_forward_hook(lambda *_: seen.append(1))
    run = fit(joint, data(), trainer, max_epochs=1)
    assert seen == [0] * (run.global_step + 2 + 3)  # two batches of the sanity check, three of the validation


def test_seed_draws_initial_values(build: Build, data: Data, trainer: MakeTrainer) -> None:
    joint = ParallelSettings(build("last"), [{"seed": 0}, {"seed": 7}, {"name": "own"}])
    torch.manual_seed(7)
    alone: Any = build("last")
    heads = [member.backbone.head.weight for member in joint.each()]
    assert torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[0], heads[1])
    seed_everything(7, verbose=False)
    alone = type(alone)(**joint.options)
    alone.configure_model()
    assert torch.equal(joint.each()[1].side[0][0].q.weight, alone.side[0][0].q.weight)


def test_grid() -> None:
    from methods.core.parallel_settings import expand

    found = expand({"lr": [0.1, 0.2], "weight_decay": [0.0, 0.5]})
    assert list(found) == [f"lr={lr}_weight_decay={wd}" for lr in (0.1, 0.2) for wd in (0.0, 0.5)]
    assert found["lr=0.2_weight_decay=0.5"] == {"lr": 0.2, "weight_decay": 0.5}


def test_best_member_is_exported(build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path) -> None:
    settings = [{"name": "still", "lr": 1e-9}, {"name": "good", "lr": 3e-2, "last_rank": 4}]
    joint = ParallelSettings(build("last"), settings)
    keep = ModelCheckpoint(tmp_path / "kept", monitor="val/acc1", mode="max", filename="best")
    run = fit(joint, data(), trainer, callbacks=[keep], enable_checkpointing=True, max_epochs=4)
    values = run.callback_metrics
    assert values["val/acc1"] == values["val/acc1/good"] > values["val/acc1/still"]
    assert values["val/best_member"] == 1
    checkpoint = read_checkpoint(keep.best_model_path)
    assert checkpoint["best_member"] == "good"
    assert set(checkpoint["state_dict"]) == set(joint.delta_state_dict())
    for name in ("best", "still"):
        write_adapter(tmp_path / name, one_member(checkpoint, name))
        single: Any = PEFTMethod.from_delta(tmp_path / name)
        member = joint.each()[0 if name == "still" else 1]
        assert single.hparams["lr"] == member.lr
        tested = trainer().test(single, datamodule=data(), verbose=False)[0]
        if name == "best":
            fresh = ParallelSettings(build("last"), settings)
            loaded = read_checkpoint(keep.best_model_path)
            fresh.on_load_checkpoint(loaded)
            fresh.load_state_dict(loaded["state_dict"])
            assert tested == trainer().test(fresh, data(), verbose=False)[0]
    with pytest.raises(ValueError, match=r"export_member='other': no such member; there are best, still, good"):
        one_member(checkpoint, "other")
    with pytest.raises(ValueError, match="this checkpoint holds 2 members: give the adapter folder"):
        build("last").on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=r"members: .* in the checkpoint, .* in this run"):
        ParallelSettings(build("last"), {"lr": [1, 2]}).on_load_checkpoint(checkpoint)


def test_resume_is_exact(build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path) -> None:
    def run(folder: str, ckpt_path: Path | None = None) -> dict[str, Any]:
        keep = ModelCheckpoint(tmp_path / folder, filename="{epoch}", save_top_k=-1)
        joint = ParallelSettings(build("last"), settings_of("last"))
        fitting = trainer(max_epochs=4, enable_checkpointing=True, callbacks=[keep])
        fitting.fit(joint, datamodule=data(), ckpt_path=ckpt_path)
        return torch.load(tmp_path / folder / "epoch=3.ckpt", weights_only=True)["state_dict"]

    whole = run("whole")
    resumed = run("resumed", tmp_path / "whole" / "epoch=1.ckpt")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_average_of_members(build: Build, data: Data, trainer: MakeTrainer) -> None:
    joint = ParallelSettings(build("linear_probe"), [{"lr": 1e-2}, {"lr": 1e-1}])
    fit(joint, data(), trainer, callbacks=[EMA(0.5)])
    for member, lr in zip(joint.each(), (1e-2, 1e-1), strict=True):
        solo: Any = build("linear_probe", lr=lr)
        fit(solo, data(), trainer, callbacks=[EMA(0.5)])
        assert torch.equal(member.backbone.head.weight, solo.backbone.head.weight)


@pytest.mark.parametrize(
    ("method", "members", "message"),
    [
        ("ssf", [{"lr": 1}], "members need a backbone that stays as it is: SSF trains in the backbone"),
        ("last", [{"name": "a", "backbone": "x"}], "members: 'a' has its own backbone, which all of them share"),
        ("last", {"optimizer": ["sgd", "adamw"]}, "has its own optimizer, which all of them share"),
        ("last", [{"lrr": 1}], "members: 'lrr=1' has lrr, no option of LASTClassification"),
        ("last", [{"lr": 1}, {"lr": 1}], "members: 'lr=1' is empty, given twice or 'best'"),
        ("last", [], "members: expected a list of options, or a grid"),
        ("last", {"lr": 1}, "members: a grid holds lists of values, and lr is 1"),
        ("last", {"last_gap": [1, 2]}, "members read different features of the backbone"),
    ],
)
def test_refused(method: str, members: Any, message: str, build: Build) -> None:
    with pytest.raises(ValueError, match=message):
        ParallelSettings(build(method), members)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_clip_val": 1.0}, "members: gradient clipping by norm uses the norm of all members together"),
        ({"precision": "bf16-true"}, "members: with precision bf16-true one overflow skips"),
        ({"callbacks": [EarlyStopping("val/loss")]}, "members: early stopping of one member would stop all"),
    ],
)
def test_refused_trainers(options: Any, message: str, build: Build, data: Data, trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(**options).fit(ParallelSettings(build("last"), [{"lr": 1.0}]), datamodule=data())


def test_command_line(images: Path, weights: Path, tmp_path: Path) -> None:
    args = ["fit", "--method", "last", "--data", "ImageDataset", "--data.root", str(images), "--data.batch_size=4"]
    args += ["--model.backbone", BACKBONE, "--model.pretrained", str(weights), "--trainer.max_epochs=2"]
    args += [f"--model.backbone_args.{key}={value}" for key, value in TINY.items()]
    args += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--test_after_fit=true"]
    joint = ["--members", '{"lr": [1.0e-9, 0.02], "last_rank": [4, 8]}', "--features.cache=ram"]
    args += ["--run_root", str(tmp_path)]
    cli = GraftCLI.run([*args, *joint])
    folder = Path(cli.trainer.default_root_dir)
    result = json.loads((folder / "result.json").read_text())
    assert len(result["members"]) == 4
    assert result["cost/trainable_params_method"] == 2 * 2 * sum(4 * 48 * r + 2 * 48 for r in (4, 8))
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["hyper_parameters"]["lr"] == result["members"][config["peft"]["member"]]["lr"]
    solo = GraftCLI.run([*args, "--model.lr=0.02", "--model.last_rank=8"])
    for name, tensor in solo.model.delta_state_dict().items():
        assert torch.equal(cli.model.members[3].delta_state_dict()[name], tensor), name
    test = ["test", "--ckpt_path", str(folder / "adapter"), "--data", "ImageDataset", "--data.root", str(images)]
    tested = GraftCLI.run([*test, "--trainer.accelerator=cpu", "--run_root", str(tmp_path)])
    assert float(tested.trainer.callback_metrics["test/acc1"]) == pytest.approx(result["test/acc1"])


def test_balanced_weights_stop_before_the_fit(
    build: Build, data: Data, trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = property(lambda self: ["daisy", "rose", "tulip", "weed"])
    monkeypatch.setattr(ImageDataset, "class_names", names)
    joint: Any = ParallelSettings(build("linear_probe", num_classes=4, class_weights="balanced"), SETTINGS)
    joint.terms = None  # is not reached
    with pytest.raises(ValueError, match="class_weights=balanced: 1 of 4 classes have no training image, first 'weed'"):
        fit(joint, data(), trainer)
