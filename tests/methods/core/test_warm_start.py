"""Starting a method from the trained values of another run, as PVP does (arXiv:2304.13639)."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from checkpoints.delta import WEIGHTS, write_adapter
from commands.lightning.cli import GraftCLI
from datamodules import ImageDataset
from lightning_modules.classification import Classification
from methods import METHODS, PEFTMethod, compose
from tests.conftest import BACKBONE, TINY, build_tiny, checkpoint_of, perturb, quiet_trainer
from tests.methods.test_contract import adapt, batch, every_method
from tests.support.adapters import change_tensors
from tests.support.ranks import TwoRanks

Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
MakeTrainer = Callable[..., Trainer]


def save(model: PEFTMethod, folder: Path, **more: Any) -> str:
    """Move every trained value and write an adapter folder."""
    perturb(model)
    checkpoint = checkpoint_of(model) | more
    write_adapter(folder, checkpoint)
    torch.save(checkpoint, folder / "last.ckpt")
    return str(folder)


def trained(method: str, build: Build, folder: Path, **options: Any) -> PEFTMethod:
    model = build(method, **options)
    adapt(method, model)
    save(model, folder)
    return model


@every_method
def test_values_are_taken_over(method: str, build: Build, tmp_path: Path) -> None:
    """Bit by bit without the head, with other classes, from the folder, its weights or a checkpoint."""
    if METHODS[method].one_pass:
        pytest.skip("it is computed from the training images alone")
    source = trained(method, build, tmp_path)
    torch.manual_seed(7)
    plain = build(method, num_classes=4)
    plain.selection = source.selection
    plain.configure_model()
    # the three files are read by one function, so one method tries them all
    for file in ("", WEIGHTS, "last.ckpt") if method == "gps" else ("",):
        model = build(method, num_classes=4, init_from=str(tmp_path / file))
        model.configure_model()  # nothing is scored: what was selected comes along
        delta, expected = model.delta_state_dict(), source.delta_state_dict()
        assert set(delta) == set(expected)
        for name, tensor in delta.items():
            head = name.startswith("backbone.head.")
            assert tensor.shape == (plain if head else source).state_dict()[name].shape
            assert head or torch.equal(tensor, expected[name]), name
        assert model.parameter_counts() == plain.parameter_counts()
        names = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (model, plain)]
        assert names[0] == names[1]
        with torch.no_grad():
            x = batch().inputs
            features = [m.eval().features(x) for m in (model, source)]
            torch.testing.assert_close(features[0], features[1], atol=1e-6, rtol=0)
            if model.mergeable:
                torch.testing.assert_close(model.merge()(x), model(x), atol=1e-5, rtol=0)
        assert model.started_from is not None


def test_head_only_when_asked(build: Build, tmp_path: Path) -> None:
    source = trained("ssf", build, tmp_path)
    weight = source.state_dict()["backbone.head.weight"]
    for asked in (False, True):
        model = build("ssf", init_from=str(tmp_path), init_head=asked)
        model.configure_model()
        assert torch.equal(model.state_dict()["backbone.head.weight"], weight) == asked


def test_head_of_other_classes_is_refused(build: Build, tmp_path: Path) -> None:
    source: Any = build("ssf")
    source.configure_model()
    source.class_names = ["a", "b", "c"]
    save(source, tmp_path)
    model: Any = build("ssf", init_from=str(tmp_path), init_head=True)
    model.class_names = ["a", "c", "b"]
    with pytest.raises(ValueError, match="the classes are a, b, c in that run, a, c, b in this run"):
        model.configure_model()
    model = build("ssf", num_classes=4, init_from=str(tmp_path), init_head=True)
    with pytest.raises(ValueError, match=re.escape("backbone.head.weight has shape (3, 48), expected (4, 48)")):
        model.configure_model()


@pytest.mark.parametrize(
    ("method", "there", "here", "message"),
    [
        (
            "lora",
            {},
            {"lora_rank": 4, "lora_alpha": 2.0},
            "lora_alpha: 1.0 in that run, 2.0 in this run; lora_rank: 8 in that run, 4 in this run",
        ),
        ("vpt", {"prompt_length": 3}, {}, "prompt_length: 3 in that run, 10 in this run"),
        ("vpt", {}, {"prompt_deep": False}, "prompt_deep: True in that run, False in this run"),
        ("vpt", {}, {"prompt_length": 20, "prompt_resize": "truncate"}, "has shape (10, 48), expected (20, 48)"),
        ("lora", {}, {"pretrained": False}, "trained on other weights: vit_tiny_patch16_224 (sha256"),
        (
            "hst",
            {},
            {"hst_dims": [32, 48, 64, 96]},
            "hst_dims: [32, 48, 64, 72] in that run, [32, 48, 64, 96] in this run",
        ),
    ],
)
def test_every_difference_is_named(
    method: str, there: dict[str, Any], here: dict[str, Any], message: str, build: Build, tmp_path: Path
) -> None:
    trained(method, build, tmp_path, **there)
    with pytest.raises(ValueError, match=rf"init_from='{tmp_path}'.*{re.escape(message)}"):
        build(method, **here, init_from=str(tmp_path)).configure_model()


def test_other_methods_are_refused(build: Build, tmp_path: Path) -> None:
    trained("ssf", build, tmp_path)
    for method, name in (("lora", "LoRA"), ("gps", "GPS")):
        with pytest.raises(ValueError, match=f"was trained with SSF, this run trains {name}"):
            build(method, init_from=str(tmp_path)).configure_model()


def test_damaged_files_are_refused(build: Build, tmp_path: Path) -> None:
    trained("ssf", build, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    name = next(name for name in tensors if "ssf" in name)
    changes: list[tuple[dict[str, Tensor], str]] = [
        ({name: torch.full_like(tensors[name], float("nan"))}, f"{name} holds NaN or infinity"),
        ({name: torch.zeros(5)}, f"{name} has shape (5,)"),
        ({"backbone.more": torch.zeros(1)}, "unknown backbone.more"),
    ]
    for change, message in changes:
        change_tensors(tmp_path, lambda found, change=change: found.update(tensors | change))
        with pytest.raises(ValueError, match=rf"init_from=.*{re.escape(message)}"):
            build("ssf", init_from=str(tmp_path)).configure_model()
    change_tensors(tmp_path, lambda found: (found.pop(name), found.pop("backbone.more")))
    with pytest.raises(ValueError, match=f"init_from=.*missing {name}"):
        build("ssf", init_from=str(tmp_path)).configure_model()
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"init_from=.*cut.ckpt.*incomplete"):
        build("ssf", init_from=str(tmp_path / "cut.ckpt")).configure_model()
    with pytest.raises(FileNotFoundError, match=r"init_from='nowhere': no such file"):
        build("ssf", init_from="nowhere").configure_model()
    with pytest.raises(ValueError, match="set init_from"):
        build("ssf", init_head=True)


def test_other_backbone_when_allowed(build: Build, tmp_path: Path) -> None:
    source = trained("ssf", build, tmp_path)
    model = build("ssf", pretrained=False, init_from=str(tmp_path), init_other_backbone=True)
    with pytest.warns(UserWarning, match="was trained on other weights, of vit_tiny_patch16_224"):
        model.configure_model()
    name = "backbone.blocks.0.attn.qkv.ssf.scale"
    assert torch.equal(model.state_dict()[name], source.state_dict()[name])
    assert model.fingerprint != source.fingerprint


def test_what_only_says_how_to_draw_may_differ(build: Build, tmp_path: Path) -> None:
    trained("vpt", build, tmp_path, prompt_dropout=0.1)
    build("vpt", init_from=str(tmp_path)).configure_model()
    trained("ssf", build, tmp_path)
    build("ssf", init_from=str(tmp_path), ssf_init="identity").configure_model()


@pytest.mark.parametrize(
    ("how", "length", "expected"),
    [
        ("truncate", 2, [0.0, 1.0]),
        ("tile", 5, [0.0, 1.0, 2.0, 0.0, 1.0]),
        ("interpolate", 5, [0.0, 0.5, 1.0, 1.5, 2.0]),
        ("interpolate", 2, [0.0, 2.0]),
    ],
)
def test_prompts_of_another_length(how: str, length: int, expected: list[float], build: Build, tmp_path: Path) -> None:
    source: Any = build("vpt", prompt_length=3)
    source.configure_model()
    for block in source.backbone.blocks:
        block.prompt.tokens.data.copy_(torch.arange(3.0)[:, None].expand(3, 48))
    write_adapter(tmp_path, checkpoint_of(source))
    model: Any = build("vpt", prompt_length=length, prompt_resize=how, init_from=str(tmp_path))
    model.configure_model()
    for block in model.backbone.blocks:
        assert block.prompt.tokens.data[:, 7].tolist() == expected


def test_schedule_and_optimizer_begin_anew(build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path) -> None:
    first = trainer(max_epochs=2)
    first.fit(build("lora"), datamodule=data())
    first.save_checkpoint(tmp_path / "source.ckpt")
    second = trainer(max_epochs=1)
    second.fit(build("lora", init_from=str(tmp_path / "source.ckpt")), datamodule=data())
    steps = second.global_step
    assert first.global_step == 2 * steps
    assert {int(state["step"]) for state in second.optimizers[0].state.values()} == {steps}
    assert second.lr_scheduler_configs[0].scheduler.last_epoch == steps


def test_a_checkpoint_of_the_run_itself_wins(build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path) -> None:
    trained("gps", build, tmp_path / "source")
    model = build("gps", init_from=str(tmp_path / "source"))
    fit = trainer(max_epochs=1)
    fit.fit(model, datamodule=data())
    fit.save_checkpoint(tmp_path / "own.ckpt")
    for file in (tmp_path / "source").iterdir():
        file.unlink()
    again = PEFTMethod.load_from_checkpoint(tmp_path / "own.ckpt")  # the source is not read again
    assert again.started_from == model.started_from
    assert again.started_from is not None
    assert again.started_from["path"] == str(tmp_path / "source")
    for name, tensor in model.delta_state_dict().items():
        assert torch.equal(again.delta_state_dict()[name], tensor)


def test_lineage_on_the_command_line(
    build: Build, images: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--data", "ImageDataset", "--data.root", str(images), "--data.batch_size", "4"]
    args += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--run_root", str(tmp_path)]
    model = ["--method", "ssf", "--model.backbone", BACKBONE, "--model.pretrained", str(weights)]
    model += [f"--model.backbone_args.{key}={value}" for key, value in TINY.items()]
    first = GraftCLI.run(["fit", *model, *args, "--trainer.max_epochs=1"])
    adapter = Path(first.trainer.default_root_dir) / "adapter"
    second = GraftCLI.run(["fit", *model, *args, "--trainer.max_epochs=1", "--model.init_from", str(adapter)])
    folder = Path(second.trainer.default_root_dir)
    assert f'"path": "{adapter}"' in (folder / "result.json").read_text()
    (adapter / WEIGHTS).unlink()
    checkpoint = str(folder / "checkpoints/last.ckpt")
    GraftCLI.run(["test", *args, "--ckpt_path", checkpoint])
    assert "is not read" not in capsys.readouterr().out
    start = ["--model.init_from", str(adapter)]
    GraftCLI.run(["fit", *args, *start, "--trainer.max_epochs=2", "--ckpt_path", checkpoint])
    assert "is not read: ckpt_path=" in capsys.readouterr().out


def fit_from(rank: int, adapters: list[Path], images: Path, weights: Path, folder: Path) -> dict[str, Tensor] | str:
    """The delta of a step from this rank's adapter, or why there is none."""
    model = build_tiny(weights, "lora", lr=1e-9, init_from=str(adapters[rank]))
    run = quiet_trainer(folder, devices=2, strategy="ddp", max_steps=1)
    try:
        run.fit(model, datamodule=ImageDataset(root=str(images), batch_size=4, resize="direct"))
    except ValueError as error:
        return str(error)
    return model.delta_state_dict()


def test_ddp(two_ranks: TwoRanks, build: Build, images: Path, weights: Path, tmp_path: Path) -> None:
    source = trained("lora", build, tmp_path / "adapter")
    for rank in (0, 1):
        save(source, tmp_path / f"adapter{rank}")  # moved on each time
    one, other = [tmp_path / "adapter"] * 2, [tmp_path / "adapter0", tmp_path / "adapter1"]
    ranks = two_ranks(fit_from, one, images, weights, tmp_path)
    start = load_file(tmp_path / "adapter" / WEIGHTS)
    for name, tensor in ranks[0].items():
        assert torch.equal(tensor, ranks[1][name])
        if "head" not in name:
            torch.testing.assert_close(tensor, start[name], atol=1e-7, rtol=0)
    assert "the ranks read different files" in two_ranks(fit_from, other, images, weights, tmp_path)[1]


# the point of it


def draw(classes: list[dict[str, Tensor]], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (K count, 3, 16, 16) of classes of three coloured blobs, shifted, faded and with noise."""
    grid = torch.arange(16.0)
    images, labels = [], []
    for label, blobs in enumerate(classes):
        shift = 1.5 * torch.randn(count, 1, 2, generator=generator)
        power = 0.7 + 0.6 * torch.rand(count, 3, generator=generator)
        centre = blobs["centre"] + shift  # (count, 3, 2)
        x, y = ((grid - centre[..., i, None]) ** 2 for i in (0, 1))
        bumps = torch.exp(-(x[..., None, :] + y[..., None]) / (2 * blobs["sigma"][:, None, None] ** 2))
        image = torch.einsum("nb,bc,nbhw->nchw", power, blobs["colour"], bumps)
        images.append(image + 0.35 * torch.randn(image.shape, generator=generator))
        labels += [label] * count
    return torch.cat(images), torch.tensor(labels)


def new_classes(count: int, generator: torch.Generator) -> list[dict[str, Tensor]]:
    return [
        {
            "centre": 3 + 10 * torch.rand(3, 2, generator=generator),
            "colour": torch.randn(3, 3, generator=generator),
            "sigma": 1.5 + 1.5 * torch.rand(3, generator=generator),
        }
        for _ in range(count)
    ]


def learn(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, generator: torch.Generator) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(images), generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()


def test_pretrained_lora_beats_random_lora_at_one_shot(tmp_path: Path) -> None:
    """Stage 1 on 20 classes, then one image of each of 5 others: the mean gain over 5 seeds."""
    args: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4}
    args |= {"global_pool": "avg", "class_token": False, "fc_norm": False}
    options: dict[str, Any] = {"lora_targets": ["qkv", "proj", "fc1", "fc2"], "lora_rank": 4}

    def build(**more: Any) -> PEFTMethod:
        torch.manual_seed(0)
        model = compose(METHODS["lora"], task=Classification)(
            backbone=BACKBONE, backbone_args=args, pretrained=False, **options, **more
        )
        model.configure_model()
        return model

    generator = torch.Generator().manual_seed(0)
    source = build(num_classes=20)
    learn(source, *draw(new_classes(20, generator), 30, generator), epochs=25, generator=generator)
    write_adapter(tmp_path, checkpoint_of(source))
    gains = []
    for seed in range(5):
        generator.manual_seed(100 + seed)
        classes = new_classes(5, generator)
        few, test = draw(classes, 1, generator), draw(classes, 40, generator)
        accuracy = []
        for start in (None, str(tmp_path)):
            model = build(num_classes=5, init_from=start)
            learn(model, *few, epochs=40, generator=generator)
            with torch.no_grad():
                accuracy.append((model.eval()(test[0]).argmax(1) == test[1]).float().mean())
        gains.append(accuracy[1] - accuracy[0])
    assert torch.stack(gains).mean() > 0.05
