"""prune_rewind: its steps, and going on where it stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from safetensors.torch import load_file

from callbacks.scoring.rewind import Rewind
from callbacks.scoring.score_before_fit import ScoreBeforeFit
from commands.lightning import runs
from commands.lightning.runs import finished
from datamodules import ImageDataset
from tests.conftest import BACKBONE, ROOT, TINY, build_tiny, quiet_trainer
from tests.support.ranks import TwoRanks
from train import main

STEPS = ["fit", "rewind", "test"]


class Stop(Callback):
    """A kill in the middle of the second epoch."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def same(images: Path, weights: Path) -> list[str]:
    """Options of every run."""
    model = {"backbone": BACKBONE, "pretrained": weights, "lr": 0.01, "prompt_length": 4}
    model |= {f"backbone_args.{key}": value for key, value in TINY.items()}
    trainer = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": "false", "enable_model_summary": "false"}
    return (
        ["--method", "e2vpt", "--data", "ImageDataset", "--data.root", str(images), "--data.batch_size", "4"]
        + [f"--model.{key}={value}" for key, value in model.items()]
        + [f"--trainer.{key}={value}" for key, value in trainer.items()]
    )


@pytest.fixture
def options(same: list[str], tmp_path: Path) -> list[str]:
    return [*same, "--run_root", str(tmp_path / "runs")]


def in_this_process(begun: list[str]) -> Callable[[list[str], Any], int]:
    """``launch`` that notes the steps; ``stop NAME`` among them stops that step in the middle."""

    def launch(args: list[str], output: Any = None) -> int:
        name = Path(args[args.index("--run_root") + 1]).name
        if f"stop {name}" in begun:
            begun.remove(f"stop {name}")
            args = [*args, f"--trainer.callbacks+={Stop.__module__}.Stop"]
        begun.append(f"{name}, resumed" if args[0] == "fit" and "--ckpt_path" in args else name)
        try:
            main(args)
        except (SystemExit, KeyboardInterrupt):
            return 1
        return 0

    return launch


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps that were begun, in this process."""
    begun: list[str] = []
    monkeypatch.setattr(runs, "launch", in_this_process(begun))
    return begun


def run_of(root: Path) -> Path:
    (folder,) = (root / "runs/prune_rewind").iterdir()
    return folder


def state(run: Path) -> dict[str, Any]:
    """Results of the finished steps, in the order of their ends."""
    steps = [folder.name for folder in run.iterdir() if folder.is_dir()]
    results = {name: finished(run / name, tested=name == "test") for name in steps}
    done = {name: result for name, result in results.items() if result is not None}
    ends = {name: (Path(result["folder"]) / "result.json").stat().st_mtime_ns for name, result in done.items()}
    return {
        name: done[name] | {"checkpoint": f"{done[name]['folder']}/checkpoints/last.ckpt"}
        for name in sorted(done, key=lambda name: ends[name])
    }


def weights_of(outcome: dict[str, Any]) -> dict[str, Any]:
    return torch.load(outcome["checkpoint"], weights_only=True)


@pytest.fixture(scope="module")
def whole(same: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody stopped."""
    root, begun = tmp_path_factory.mktemp("whole"), list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "launch", in_this_process(begun))
        main(["prune_rewind", *same, "--run_root", str(root / "runs")])
    assert begun == STEPS
    return run_of(root)


def test_whole_run(whole: Path, options: list[str], launched: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    done = state(whole)
    assert list(done) == STEPS
    first, second = (weights_of(done[name]) for name in STEPS[:2])
    assert first["epoch"] == second["epoch"] == 1, "not the last epoch"
    plan = json.loads((whole / "rewind.json").read_text())
    assert second["peft"]["selection"]["tokens"].tolist() == plan["selection"]["tokens"]
    scores = torch.tensor(plan["scores"]["prompt_masks.token"])
    assert set(scores.topk(2).indices.tolist()) == set(plan["selection"]["tokens"])
    name = "backbone.blocks.0.prompt.tokens"
    assert first["state_dict"][name].shape == (4, 48)
    assert second["state_dict"][name].shape == (2, 24)
    assert done["rewind"]["cost/trainable_params_method"] == 2 * (2 * 24 + 5 * 48)
    assert "test/acc1" in done["test"]
    # all done: nothing is begun
    main(["prune_rewind", *options, "--resume", str(whole)])
    assert not launched
    assert "rewind: done before" in capsys.readouterr().out


def test_the_second_fit_starts_from_the_first_ones_values(whole: Path, build: Any, data: Any, trainer: Any) -> None:
    initial = load_file(whole / "initial.safetensors")
    rewind = Rewind(str(whole / "initial.safetensors"), plan=str(whole / "rewind.json"))
    model = build("e2vpt", prompt_length=4)

    class Look(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            for index, block in enumerate(pl_module.backbone.blocks):
                expected = initial[f"backbone.blocks.{index}.prompt.tokens"]
                rows = block.prompt.rows()
                for row, token in zip(rows[:-1], kept, strict=True):
                    assert torch.equal(row[row != 0], expected[token][row != 0])
                assert torch.equal(block.attn.kv_prompt, initial[f"backbone.blocks.{index}.attn.kv_prompt"])
            assert torch.equal(pl_module.backbone.head.weight, initial["backbone.head.weight"])

    kept = json.loads((whole / "rewind.json").read_text())["selection"]["tokens"]
    trainer(callbacks=[rewind, Look()], max_steps=1).fit(model, datamodule=data())
    assert rewind.passes == 0


@pytest.mark.parametrize("stopped", [["fit"], ["rewind"], ["fit", "rewind"]])
def test_resume_is_exact(
    stopped: list[str], whole: Path, options: list[str], launched: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    expected = state(whole)
    options = [*options[:-1], str(tmp_path / "other/runs")]
    launched += [f"stop {name}" for name in stopped]
    scored = []
    original = ScoreBeforeFit.scores
    monkeypatch.setattr(ScoreBeforeFit, "scores", lambda *args: scored.append(1) or original(*args))
    with pytest.raises(SystemExit) as stop:
        main(["prune_rewind", *options])
    assert stop.value.code == 1
    run = run_of(tmp_path / "other")
    for _ in stopped[1:]:
        with pytest.raises(SystemExit):
            main(["prune_rewind", *options, "--resume", str(run)])
    main(["prune_rewind", *options, "--resume", str(run)])
    wanted = [part for name in STEPS for part in ([name, f"{name}, resumed"] if name in stopped else [name])]
    assert launched == wanted
    assert len(scored) == 1
    found = state(run)
    for name in STEPS[:2]:
        ours, theirs = weights_of(found[name])["state_dict"], weights_of(expected[name])["state_dict"]
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    assert found["test"]["test/acc1"] == expected["test"]["test/acc1"]


def test_stopped_between_steps(whole: Path, options: list[str], launched: list[str]) -> None:
    """Plan there, fit not; scores there, plan not; test not."""
    plan = (whole / "rewind.json").read_bytes()
    for name in ("rewind", "test"):
        shutil.rmtree(whole / name)
    (whole / "rewind.json").unlink()
    main(["prune_rewind", *options, "--resume", str(whole)])
    assert launched == ["rewind", "test"]
    assert (whole / "rewind.json").read_bytes() == plan
    assert len(list(whole.glob("*.safetensors"))) == 2  # initial values and scores


def test_grid(options: list[str], launched: list[str], tmp_path: Path) -> None:
    options = [*options, "--model.prompt_length=2", "--model.prompt_segments=6", "--trainer.max_epochs=1"]
    main(["prune_rewind", *options, "--search", "grid", "--rewind", "fresh"])
    pairs = [f"tokens{t}_segments{s}" for t in (1, 0) for s in (2, 1, 0)]
    assert launched == ["fit", *pairs, "test"]
    done = state(run_of(tmp_path))
    best = max(done[name]["val/acc1"] for name in pairs)
    first = next(name for name in pairs if done[name]["val/acc1"] == best)
    assert done["test"]["fingerprint"] == done["fit"]["fingerprint"]
    assert weights_of(done[first])["peft"]["selection"]["tokens"].numel() == (1 if first.startswith("tokens1") else 2)
    assert done[first]["seed"] == done["fit"]["seed"] + 1
    assert done["test"]["checkpoint"].startswith(str(run_of(tmp_path) / "test"))


def test_refusals(whole: Path, options: list[str], launched: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def error(*args: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["prune_rewind", *args])
        assert stop.value.code == 1
        return capsys.readouterr().err

    assert "was begun with other options" in error(*options, "--model.lr=1", "--resume", str(whole))
    assert "expected the folder of a prune_rewind run" in error(*options, "--resume", str(whole / "nothing"))
    assert "expected --resume RUN instead of --ckpt_path" in error(*options, "--ckpt_path", "x.ckpt")
    assert not launched
    assert "nothing of this model can be pruned" in error(*options, "--model.prompt_length=0")
    assert launched == ["fit"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_length": 5}, "prompt_length 4, expected 5"),
        ({"prompt_layout": "contiguous"}, "prompt_layout interleaved, expected contiguous"),
        ({"pretrained": False}, "is of another model: fingerprint"),
    ],
)
def test_a_plan_of_another_model(
    change: dict[str, Any], message: str, whole: Path, build: Any, data: Any, trainer: Any
) -> None:
    model = build("e2vpt", **{"prompt_length": 4} | change)
    with pytest.raises(ValueError, match=message):
        trainer(callbacks=[Rewind(plan=str(whole / "rewind.json"))]).fit(model, datamodule=data())


def test_other_methods_and_pruned_models(whole: Path, build: Any, data: Any, trainer: Any) -> None:
    with pytest.raises(ValueError, match="nothing of this model can be pruned"):
        trainer(callbacks=[Rewind()]).fit(build("ssf"), datamodule=data())
    rewind = Rewind(fitted=state(whole)["rewind"]["checkpoint"])
    with pytest.raises(ValueError, match="pruned already: score the first fit"):
        trainer(callbacks=[rewind]).fit(build("e2vpt", prompt_length=4), datamodule=data())


def test_bf16_scores_in_fp32(whole: Path, build: Any, data: Any, trainer: Any) -> None:
    plan = json.loads((whole / "rewind.json").read_text())["selection"]
    model = build("e2vpt", prompt_length=4)
    rewind = Rewind(fitted=state(whole)["fit"]["checkpoint"])
    trainer(callbacks=[rewind], max_steps=1, precision="bf16-true").fit(model, datamodule=data(resize="center_crop"))
    assert {name: kept.tolist() for name, kept in model.selection.items()} == plan


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["prune_rewind", "--help"])
    assert stop.value.code == 0
    assert "--resume RUN" in capsys.readouterr().out


def test_a_stopped_command_stops_its_step(options: list[str], tmp_path: Path) -> None:
    """In processes of their own, as users have it."""
    process = subprocess.Popen([sys.executable, "train.py", "prune_rewind", *options], cwd=ROOT)
    children: list[str] = []
    while not children:
        assert process.poll() is None
        time.sleep(0.2)
        if list(tmp_path.glob("runs/prune_rewind/*/state.json")):  # else the compiler of some import
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(int(child), 0)
    assert not state(run_of(tmp_path))


def fit_rewound(rank: int, images: Path, weights: Path, run: Path, folder: Path) -> dict[str, Any]:
    model = build_tiny(weights, "e2vpt", prompt_length=4)
    rewind = Rewind(str(run / "initial.safetensors"), str(folder / "plan.json"), state(run)["fit"]["checkpoint"])
    trainer = quiet_trainer(folder, devices=2, strategy="ddp", max_steps=2, callbacks=[rewind])
    trainer.fit(model, datamodule=ImageDataset(root=str(images), batch_size=4))
    return model.delta_state_dict()


def test_two_ranks_score_what_one_scores(
    two_ranks: TwoRanks, whole: Path, images: Path, weights: Path, tmp_path: Path
) -> None:
    ranks = two_ranks(fit_rewound, images, weights, whole, tmp_path)
    one, two = (json.loads(path.read_text()) for path in (whole / "rewind.json", tmp_path / "plan.json"))
    assert two["selection"] == one["selection"]
    for name, scores in one["scores"].items():
        torch.testing.assert_close(torch.tensor(two["scores"][name]), torch.tensor(scores), atol=1e-6, rtol=1e-4)
    assert all(torch.equal(tensor, ranks[1][name]) for name, tensor in ranks[0].items())
