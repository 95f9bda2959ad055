"""What every method must do, by being listed: a new file in ``methods/`` is tested here without another line.

The method's own test file, ``test_<method>.py``, says what only the paper can know: ``COUNTS`` (trained parameters
without head by timm model), ``IDENTITY`` (options under which step 0 equals the frozen backbone, or None), where the
original was run, ``GOLDEN`` and, of a method that chooses from data, ``scores`` (made up ones).
"""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch import Tensor

from backbones.evaluating import evaluating
from checkpoints.delta import WEIGHTS, write_adapter
from checkpoints.structure import with_prefix
from commands.lightning.cli import GraftCLI
from datamodules import ImageDataset
from lightning_modules.batch import Batch
from methods import METHODS, PEFTMethod
from methods.core.closed_form import ClosedForm
from methods.core.selective import Selective
from methods.layers.sparse import Entries
from tests.conftest import (
    BACKBONE,
    STACK,
    TINY,
    TINY_OPTIONS,
    build_tiny,
    checkpoint_of,
    composed,
    perturb,
    quiet_trainer,
)
from tests.support.facts import FACTS
from tests.support.ranks import TwoRanks

Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
MakeTrainer = Callable[..., Trainer]


def adapt(method: str, model: PEFTMethod) -> None:
    """Adapt a model; one that chooses from data chooses from made up scores, one in closed form reads a batch."""
    if isinstance(model, Selective) and model.scorer is not None and model.selection is None:
        model.selection = model.select(FACTS[method].scores(model))
    model.configure_model()
    if isinstance(model, ClosedForm) and next(model.parameters()).device.type != "meta":
        with torch.no_grad(), evaluating(model):
            model.compute(*model.frozen_features(batch().inputs), batch().targets)


every_method = pytest.mark.parametrize("method", FACTS)


@pytest.mark.parametrize("method", METHODS)
def test_facts(method: str) -> None:
    """The only failure of this file for a method whose test file is not written yet."""
    assert method in FACTS, (
        f"methods/{method}.py has no facts to be tested against. Write tests/methods/test_{method}.py with COUNTS "
        "(trained parameters without head by timm model) and IDENTITY (options under which step 0 equals the frozen "
        "backbone, or None)"
    )


def plain_logits(model: PEFTMethod, images: Tensor) -> Tensor:
    """Logits of the backbone before the method touches it."""
    with torch.no_grad():
        return model.eval()(images)


def batch() -> Batch:
    generator = torch.Generator().manual_seed(3)
    return Batch.of(torch.randn(6, 3, 32, 32, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2]))


@every_method
def test_plain_keys_stay(method: str, build: Build) -> None:
    model = build(method)
    keys = set(model.backbone.state_dict())
    adapt(method, model)
    assert keys <= set(model.backbone.state_dict())
    adapt(method, model)  # a second call changes nothing
    assert model.plain_keys == keys


@every_method
def test_storage_is_what_the_adapter_file_holds(method: str, build: Build, tmp_path: Path) -> None:
    model = build(method)
    adapt(method, model)
    write_adapter(tmp_path, checkpoint_of(model))
    held = sum(tensor.nbytes for tensor in load_file(tmp_path / WEIGHTS).values())
    if method == "bi_adapter":  # has a smaller file, in bits: see its own tests
        assert model.storage_bytes() < held
    else:
        assert model.storage_bytes() == held


@every_method
def test_step_zero_identity(method: str, build: Build) -> None:
    options = FACTS[method].IDENTITY
    if options is None:
        return  # the spec says that the initial output differs
    model = build(method, **options)
    expected = plain_logits(model, batch().inputs)
    adapt(method, model)
    with torch.no_grad():
        assert torch.equal(model.eval()(batch().inputs), expected)


@every_method
def test_gradients_and_frozen_weights(method: str, build: Build) -> None:
    model = build(method, optimizer="adamw", weight_decay=0.5)
    adapt(method, model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(model.param_groups(), lr=0.1)
    in_optimizer = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert in_optimizer == {id(p) for p in model.parameters() if p.requires_grad}
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        model.loss(batch()).backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == (name in trained), name
        optimizer.step()
    for name, parameter in model.named_parameters():
        if name not in trained:
            assert torch.equal(parameter, before[name]), f"{name} is frozen and moved"
    moved = [name for name in trained if not torch.equal(dict(model.named_parameters())[name], before[name])]
    assert len(moved) == len(trained), f"trained but still: {trained - set(moved)}"


@every_method
def test_vectors_are_not_decayed(method: str, build: Build) -> None:
    model = build(method, weight_decay=0.5)
    adapt(method, model)
    of_matrices = {id(m.values) for m in model.modules() if isinstance(m, Entries) and m.of_matrix}
    for group in model.param_groups():
        for parameter in group["params"]:
            assert group["weight_decay"] == 0 or parameter.squeeze().dim() > 1 or id(parameter) in of_matrices


@every_method
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_fit_and_reload(
    method: str, precision: str, build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path
) -> None:
    model = build(method)
    fit = trainer(precision=precision, max_steps=3)
    fit.fit(model, datamodule=data())
    path = tmp_path / "model.ckpt"
    fit.save_checkpoint(path)
    delta = model.delta_state_dict()
    assert all(tensor.dtype is torch.float32 for tensor in delta.values() if tensor.is_floating_point())

    saved = torch.load(path, weights_only=True)
    assert set(saved["state_dict"]) == set(delta)
    assert set(saved["peft"]["manifest"]) == set(delta | with_prefix(model.selection))
    again = PEFTMethod.load_from_checkpoint(path).eval()  # the base class finds the class
    assert type(again) is type(model)
    for name, tensor in again.delta_state_dict().items():
        assert torch.equal(tensor, delta[name]), name
    assert again.fingerprint == model.fingerprint
    if precision == "32-true":
        with torch.no_grad():
            assert torch.equal(again(batch().inputs), model.eval()(batch().inputs))
        tested = trainer().test(build(method), datamodule=data(), ckpt_path=path, verbose=False)
        assert tested == trainer().test(again, datamodule=data(), verbose=False)


@every_method
def test_other_files_are_refused(method: str, build: Build, tmp_path: Path) -> None:
    model = build(method)
    adapt(method, model)
    perturb(model)
    checkpoint = checkpoint_of(model)

    def load(change: Callable[[dict[str, Any]], Any], other: PEFTMethod | None = None) -> None:
        changed = copy.deepcopy(checkpoint)
        change(changed)
        (other or build(method)).on_load_checkpoint(changed)

    name = next(iter(checkpoint["state_dict"]))
    load(lambda c: None)
    with pytest.raises(ValueError, match=f"missing {name}"):
        load(lambda c: c["state_dict"].pop(name))
    with pytest.raises(ValueError, match=r"unknown backbone\.extra"):
        load(lambda c: c["state_dict"].update({"backbone.extra": torch.zeros(1)}))
    with pytest.raises(ValueError, match=f"{name} has shape"):
        load(lambda c: c["state_dict"].update({name: torch.zeros(7, 7)}))
    with pytest.raises(ValueError, match=f"{name} holds NaN"):
        load(lambda c: c["state_dict"][name].view(-1)[0].fill_(float("nan")))
    with pytest.raises(ValueError, match="format 99"):
        load(lambda c: c["peft"].update(format=99))
    if any(not p.requires_grad for p in model.parameters()):
        with pytest.raises(ValueError, match="trained on other weights"):
            load(lambda c: None, build(method, pretrained=False))


@every_method
def test_adapter_folder(method: str, build: Build, tmp_path: Path) -> None:
    from checkpoints.delta import write_adapter

    model = build(method)
    adapt(method, model)
    perturb(model)
    write_adapter(tmp_path / "adapter", checkpoint_of(model))
    again = PEFTMethod.from_delta(tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(again(batch().inputs), model.eval()(batch().inputs))


@every_method
def test_merge(method: str, build: Build) -> None:
    model = build(method)
    adapt(method, model)
    perturb(model)
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if not METHODS[method].mergeable:
        with pytest.raises(TypeError, match="cannot be merged because"):
            model.merge()
        return
    merged = model.merge()
    with torch.no_grad():
        torch.testing.assert_close(merged(batch().inputs), model(batch().inputs), atol=1e-5, rtol=0)
    assert set(merged.state_dict()) == model.plain_keys
    assert all(type(a) is type(b) for a, b in zip(merged.modules(), build("full").backbone.modules(), strict=True))
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@every_method
def test_pickle_and_deepcopy(method: str, build: Build) -> None:
    model = build(method)
    adapt(method, model)
    perturb(model)
    expected = plain_logits(model, batch().inputs)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(plain_logits(other, batch().inputs), expected)
        perturb(other)
    assert torch.equal(plain_logits(model, batch().inputs), expected)


@every_method
def test_resume_is_exact(method: str, build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path) -> None:
    if METHODS[method].one_pass:
        pytest.skip("a fit is one pass, and an interrupted one begins anew")

    def fit(folder: str, ckpt_path: Path | None = None) -> dict[str, Any]:
        """Four epochs with dropped paths, shuffled data and a schedule; a checkpoint after each."""
        keep = ModelCheckpoint(tmp_path / folder, filename="{epoch}", save_top_k=-1)
        run = trainer(max_epochs=4, enable_checkpointing=True, callbacks=[keep])
        run.fit(build(method, drop_path=0.1, warmup_epochs=1.0), datamodule=data(), ckpt_path=ckpt_path)
        return torch.load(tmp_path / folder / "epoch=3.ckpt", weights_only=True)

    whole = fit("whole")
    torch.manual_seed(99)  # a new process would not be where the first run was
    resumed = fit("resumed", tmp_path / "whole" / "epoch=1.ckpt")
    assert set(whole["state_dict"]) == set(resumed["state_dict"])
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name
    states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (whole, resumed)]
    assert all(torch.equal(states[0][i][key], states[1][i][key]) for i in states[0] for key in states[0][i])


@pytest.mark.parametrize(("method", "backbone"), [(m, b) for m in FACTS for b in FACTS[m].COUNTS])
def test_parameter_count(method: str, backbone: str) -> None:
    cls = composed(method)
    # a selection needs values; all others take no time on the meta device
    with torch.device("cpu" if issubclass(cls, Selective) and method != "diff_pruning" else "meta"):
        model = cls(backbone=backbone, pretrained=False, num_classes=100)
        adapt(method, model)
    assert model.parameter_counts()["method"] == FACTS[method].COUNTS[backbone]


@every_method
def test_cli_fit_on_eight_images(method: str, images: Path, weights: Path, tmp_path: Path) -> None:
    options = {"backbone": BACKBONE, "pretrained": weights, "lr": 0.01}
    options |= {f"backbone_args.{key}": value for key, value in TINY.items()} | TINY_OPTIONS.get(method, {})
    cli = GraftCLI.run(
        ["fit", "--method", STACK[method], "--data=ImageDataset", f"--data.root={images}", "--data.batch_size=4"]
        + [f"--model.{key}={value}" for key, value in options.items()]
        + ["--trainer.limit_train_batches=2", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
        + ["--trainer.enable_progress_bar=false", "--run_root", str(tmp_path), "--test_after_fit=true"]
    )
    folder = Path(cli.trainer.default_root_dir)
    expected = {"config.yaml", "metrics.csv", "result.json", "curves.png", "checkpoints", "adapter"}
    assert expected <= {path.name for path in folder.iterdir()}


def fit_on_two_ranks(rank: int, method: str, images: Path, weights: Path, folder: Path) -> dict[str, Any]:
    model = build_tiny(weights, method)
    run = quiet_trainer(folder, devices=2, strategy="ddp")
    run.fit(model, datamodule=ImageDataset(root=str(images), batch_size=4, resize="direct"))
    metrics = {key: float(value) for key, value in run.callback_metrics.items()}
    return {"delta": model.delta_state_dict(), "metrics": metrics, "selection": model.selection}


@every_method
def test_ddp(
    method: str,
    two_ranks: TwoRanks,
    build: Build,
    data: Data,
    trainer: MakeTrainer,
    images: Path,
    weights: Path,
    tmp_path: Path,
) -> None:
    """Plain DDP without a search for unused parameters; ranks end equal; evaluation counts every sample once."""
    ranks = two_ranks(fit_on_two_ranks, method, images, weights, tmp_path)
    for name, tensor in (ranks[0]["selection"] or {}).items():
        assert torch.equal(tensor, ranks[1]["selection"][name]), name
    for name, tensor in ranks[0]["delta"].items():
        assert torch.equal(tensor, ranks[1]["delta"][name]), name
    model = build(method)
    model.selection = ranks[0]["selection"]
    adapt(method, model)
    model.take_sizes(ranks[0]["delta"])
    model.load_state_dict(model.state_dict() | ranks[0]["delta"])
    single = trainer().validate(model, datamodule=data(), verbose=False)[0]
    for name, value in single.items():
        assert ranks[0]["metrics"][name] == pytest.approx(value, abs=1e-6), name
