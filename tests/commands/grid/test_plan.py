"""Plan of a study."""

import json
from pathlib import Path

import pytest

from commands.grid.queue import Queue
from tests.commands.grid.conftest import Fake, call, refused


def test_tasks_axes_and_placeholders(fake: Fake, tmp_path: Path) -> None:
    call("--study", tmp_path / "a", "--recipe", "vtab", "--methods", "ssf", "--tasks", "pets,dtd", "--seeds", "3")
    first = fake.args[0]
    assert first[:3] == ["fit", "--recipe", "vtab/ssf"]
    assert {"--data.task=oxford_iiit_pet", "--seed_everything=3", "--test_after_fit=true"} <= set(first)
    assert len(fake.args) == 2
    call("--study", tmp_path / "b", "--recipe", "vtab", "--methods", "ssf,gps", "--tasks", "all")
    assert len(fake.args) == 2 + 2 * 19
    fake.args.clear()
    shots = ["--over", "data.shots=1,4", "--over", "model.lora_rank=2,8"]
    call("--study", tmp_path / "c", "--methods", "lora", *shots, "--", "--config", "{method}.yaml")
    assert fake.args[0][:5] == ["fit", "--method", "lora", "--test_after_fit=true", "--config"]
    assert [args[5:8] for args in fake.args] == [
        ["lora.yaml", f"--data.shots={shots}", f"--model.lora_rank={rank}"] for shots in (1, 4) for rank in (2, 8)
    ]
    assert {json.loads(file.read_text())["label"] for file in (tmp_path / "c").rglob("cell.json")} == {
        "lora lora_rank=2",
        "lora lora_rank=8",
    }
    fake.args.clear()
    call("--study", tmp_path / "d", "--methods", "ssf", "--tasks", "a,b", "--", "--data.root", "sets/{task}")
    assert [args[5] for args in fake.args] == ["sets/a", "sets/b"]
    assert not any("data.task" in arg for args in fake.args for arg in args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--methods", "sff"], "unknown method 'sff'; nearest: ssf"),
        (["--methods", "sff", "--recipe", "vtab"], "unknown recipe 'vtab/sff'"),
        (["--methods", "ssf", "--recipe", "vtab", "--tasks", "cifer"], "unknown task 'cifer'; nearest: cifar"),
        (["--methods", "ssf", "--tasks", "all"], "--tasks all: say which data"),
        (["--methods", "ssf", "--over", "model.lr"], "unknown --over 'model.lr'"),
        (["--methods", "ssf", "--", "--seed_everything", "1"], "--seed_everything after --: the grid sets it"),
        (["--methods", "ssf", "--", "--run_root=x"], "--run_root after --: the grid sets it"),
        (["--methods", "ssf", "--", "--model.lrr", "1"], "did you mean --model.lr"),
        (["--methods", "ssf", "--seeds", "one"], "argument --seeds: invalid"),
        (["--methods", "ssf", "--search"], "--search needs values: a --recipe with a `grid`, or --over"),
        (["--methods", "ssf", "--search", "--over", "data.fold=0,1"], "it cannot try options of data"),
        (["--methods", "ssf", "--recipe", "vtab", "--tasks=dtd", "--search"], "ssf has no `grid` of options"),
        (["--methods", "lora_pvp", "--recipe", "few_shot", "--search"], "it cannot try options of data"),
        ([], "has nothing planned: name --methods"),
        (["--slurm"], "has nothing planned: name --methods"),
    ],
)
def test_refused(args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, "--study", tmp_path, *args)
    assert not Queue(tmp_path).trials("WAITING", "RUNNING", "COMPLETE", "FAIL")
