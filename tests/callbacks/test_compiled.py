"""The network is compiled while the trainer runs, under the same names."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from callbacks.alignment import Alignment
from callbacks.checkpoint_activations import CheckpointActivations
from callbacks.compiled import Compiled
from callbacks.cost import Cost
from datamodules import ImageDataset
from methods import PEFTMethod
from methods.core.parallel_settings import ParallelSettings
from tests.conftest import build_tiny, quiet_trainer
from tests.support.compiling import Graphs
from tests.support.ranks import TwoRanks

Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
MakeTrainer = Callable[..., Trainer]
COMPILE = torch.compile


def with_graphs(graphs: Graphs, function: Any, mode: str) -> Any:
    """In the place of torch.compile, because Inductor takes minutes."""
    assert mode == "reduce-overhead"
    return COMPILE(function, backend=graphs)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    found = Graphs()
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(with_graphs, found))
    return found


class Steps(Callback):
    """Number of graphs after each batch."""

    def __init__(self, graphs: Graphs) -> None:
        self.graphs, self.train, self.val = graphs, list[int](), list[int]()

    def on_train_batch_end(self, *_: Any) -> None:
        self.train.append(len(self.graphs))

    def on_validation_batch_end(self, *_: Any) -> None:
        self.val.append(len(self.graphs))


def test_a_fit_makes_no_graph_after_its_first_batches(
    graphs: Graphs, build: Build, data: Data, trainer: MakeTrainer
) -> None:
    """One for training, and one for evaluation, whose last batch is smaller; costs make none."""
    steps, cost, model = Steps(graphs), Cost(), build("ssf")
    run = trainer(
        callbacks=[Compiled("reduce-overhead"), cost, steps], num_sanity_val_steps=0, max_steps=5, val_check_interval=5
    )
    run.fit(model, datamodule=data(eval_batch_size=6))
    assert (steps.train, steps.val) == ([1] * 5, [2, 2])
    assert "forward" not in vars(model)
    model(torch.zeros(2, 3, 32, 32))
    assert len(graphs) == 2


def test_a_fit_gives_the_same(graphs: Graphs, build: Build, data: Data, trainer: MakeTrainer) -> None:
    values: list[Any] = []
    for mode in (None, "reduce-overhead"):
        model, cost = build("lora"), Cost()
        run = trainer(callbacks=[Compiled(mode), cost, Alignment(every_n_steps=2, layers=["fc1"])], max_epochs=2)  # type: ignore[arg-type]
        run.fit(model, datamodule=data())
        assert bool(len(graphs)) == (mode is not None)
        logged = {name: float(value) for name, value in run.callback_metrics.items()}
        values.append((model.delta_state_dict(), logged, cost.values["cost/gflops"]))
    (plain, logged, gflops), (delta, compiled_logged, compiled_gflops) = values
    assert plain.keys() == delta.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(delta[name], tensor, atol=1e-4, rtol=1e-4)
    assert compiled_logged == pytest.approx(logged, abs=1e-3)
    assert any(name.startswith("alignment/") for name in logged)
    assert compiled_gflops == gflops


def test_blocks_that_are_computed_again(graphs: Graphs, build: Build, data: Data, trainer: MakeTrainer) -> None:
    """They are part of the one graph, although hooks inside keep tensors for later ones."""
    deltas = []
    for callbacks in ([], [CheckpointActivations(True), Compiled("reduce-overhead")]):
        model = build("adaptformer", adaptformer_dim=8)
        trainer(callbacks=callbacks, max_steps=2, limit_val_batches=0).fit(model, datamodule=data())
        deltas.append(model.delta_state_dict())
    assert len(graphs) == 1
    assert not torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint
    for name, tensor in deltas[0].items():
        torch.testing.assert_close(deltas[1][name], tensor, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("verb", ["test", "predict"])
def test_evaluations(verb: str, graphs: Graphs, build: Build, data: Data, trainer: MakeTrainer) -> None:
    model = build("lora")
    getattr(trainer(callbacks=[Compiled("reduce-overhead")]), verb)(model, datamodule=data())
    assert len(graphs)
    assert "forward" not in vars(model)


def test_a_run_that_fails_leaves_a_plain_model(graphs: Graphs, build: Build, data: Data, trainer: MakeTrainer) -> None:
    model = build("lora")
    model.losses = None  # type: ignore[assignment,method-assign]
    with pytest.raises(TypeError):
        trainer(callbacks=[Compiled("reduce-overhead")], num_sanity_val_steps=0).fit(model, datamodule=data())
    assert len(graphs) == 1
    assert "forward" not in vars(model)


def test_refused_models(build: Build, data: Data, trainer: MakeTrainer) -> None:
    compiled = Compiled("default")
    gathering, several = build("dyt", dyt_skip="gather"), ParallelSettings(build("linear_probe"), {"lr": [0.1, 0.2]})
    with pytest.raises(ValueError, match=r"compile=default: DyT cannot be compiled, because dyt_skip=gather makes.*or"):
        trainer(callbacks=[compiled]).fit(gathering, datamodule=data())
    with pytest.raises(ValueError, match="compile=default: LinearProbe cannot be compiled, because several settings"):
        trainer(callbacks=[compiled]).fit(several, datamodule=data())
    Compiled().check(gathering)


def fit_on_two_ranks(rank: int, images: Path, weights: Path, folder: Path) -> tuple[int, list[dict[str, Any]]]:
    graphs, deltas = Graphs(), []
    torch.compile = partial(with_graphs, graphs)  # type: ignore[assignment]
    try:
        for callback in (Compiled(), Compiled("reduce-overhead")):
            model = build_tiny(weights, "lora")
            run = quiet_trainer(
                folder, devices=2, strategy="ddp", max_steps=3, callbacks=[callback], limit_val_batches=0
            )
            run.fit(model, datamodule=ImageDataset(root=str(images), batch_size=4, resize="direct"))
            deltas.append(model.delta_state_dict())
    finally:
        torch.compile = COMPILE
    return len(graphs), deltas


def test_two_ranks(two_ranks: TwoRanks, images: Path, weights: Path, tmp_path: Path) -> None:
    """DDP reaches the compiled forward pass, and ranks end equal to each other and to a fit without compilation."""
    (count, (plain, first)), (other, (_, second)) = two_ranks(fit_on_two_ranks, images, weights, tmp_path)
    assert count == other == 1
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        torch.testing.assert_close(tensor, plain[name], atol=1e-4, rtol=1e-4)


@pytest.mark.matrix
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_inductor(build: Build, data: Data, trainer: MakeTrainer) -> None:
    deltas = []
    for mode in (None, "default"):
        model = build("ssf")
        trainer(callbacks=[Compiled(mode)], max_steps=3).fit(model, datamodule=data())  # type: ignore[arg-type]
        deltas.append(model.delta_state_dict())
    for name, tensor in deltas[0].items():
        torch.testing.assert_close(deltas[1][name], tensor, atol=1e-3, rtol=1e-3)
