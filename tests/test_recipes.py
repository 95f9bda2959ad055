"""Every recipe parses for every task, holds the numbers of its source, and yields to what the user writes."""

import contextlib
import inspect
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn

import datamodules
from commands.lightning.recipes import RECIPES, SOURCES, read_recipe, recipe_files, recipe_of
from commands.lightning.shortcuts import expand
from lightning_modules import TASKS
from lightning_modules.classification import Classification
from lightning_modules.optim.optimized import Optimized
from methods import METHODS, compose
from tests.conftest import BACKBONE, TINY
from tests.lightning_modules.test_binary_segmentation import ARGS as TINY_SAM
from tests.test_configs import leaves, printed
from train import main

NAMES = list(recipe_files())
every_recipe = pytest.mark.parametrize("name", NAMES)
BENCHMARKS = {"vtab": "VTAB", "fgvc": "FGVC", "few_shot": "FewShot", "imagenet": "ImageNet"}
BENCHMARKS |= {"ade20k": "ADE20K", "coco_stuff": "COCOStuff", "polyps": "Polyps", "coco": "COCO"}
BENCHMARKS |= {"k400": "K400", "ssv2": "SSv2"}


def resolved(capsys: pytest.CaptureFixture[str], name: str, *more: str) -> dict[str, Any]:
    """What ``fit --recipe`` comes to, with the options of classes named as on the command line."""
    config = leaves(printed(["fit", "--recipe", name, "--data.root", "DIR", *more], capsys))
    return {key.replace(".init_args.", "."): value for key, value in config.items()}


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        main(args)
    return capsys.readouterr().err


def options_of(name: str, task: str) -> dict[str, Any]:
    """Options that the recipe gives for a task, named as on the command line."""
    config = leaves(recipe_of(name, "fit", [f"--data.task={task}"] if task else []).config)
    return {key.replace(".init_args.", "."): value for key, value in config.items() if key != "data.class_path"}


def text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@every_recipe
def test_every_value_is_one_of_its_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All in one command line: the parser checks every occurrence of a flag, and the last one counts."""
    recipe = read_recipe(name)
    found = [pair for flags in recipe.get("tasks", {}).values() for pair in flags.items()]
    found += [(key, value) for key, values in recipe.get("grid", {}).items() for value in values]
    every = list(dict.fromkeys(f"--{key}={text(value)}" for key, value in found))
    task = [f"--data.task={task}" for task in recipe.get("tasks", {})]
    last = [f"--{key}={text(value)}" for key, value in recipe["all"].items()]
    config = resolved(capsys, name, *task, *every, *last)
    expected = leaves(recipe["all"])
    assert {key: config[key] for key in expected} == expected
    assert config["data.class_path"] == f"datamodules.{recipe['data']}"


@every_recipe
def test_every_task_gets_its_options(name: str) -> None:
    recipe = read_recipe(name)
    for task, own in recipe.get("tasks", {"": {}}).items():
        assert options_of(name, task) == leaves(recipe["all"] | own)


@pytest.mark.filterwarnings("ignore:adapter_init='vpt_dead_zero'")  # as VPT's table was made
@every_recipe
def test_method_and_data_accept_every_value(name: str, tmp_path: Path) -> None:
    """What constructors check and a parser does not: ranges, and what goes together."""
    recipe = read_recipe(name)
    tiny = {"model.backbone": BACKBONE, "model.pretrained": False, "model.backbone_args": TINY, "data.root": tmp_path}
    task = recipe.get("task", "classification")
    if task == "binary_segmentation":
        tiny |= {
            "model.backbone": "samvit_base_patch16",
            "model.backbone_args": TINY_SAM,
            "model.decoder_weights": False,
        }
    if "model.map_blocks" in recipe["all"]:
        tiny |= {"model.backbone_args": TINY | {"depth": 12}}
    if task == "detection":
        tiny |= {"model.head_channels": 8, "model.box_channels": 8}
    model = compose(*(METHODS[method] for method in recipe["method"].split("+")), task=TASKS[task])
    data = getattr(datamodules, recipe["data"])
    searched = [{key: value} for key, values in recipe.get("grid", {}).items() for value in values]
    for own in [*recipe.get("tasks", {}).values(), *searched, {}]:
        options = recipe["all"] | own | tiny
        for group, cls in {"model.": model, "data.": data}.items():
            cls(**{key.removeprefix(group): value for key, value in options.items() if key.startswith(group)})


@every_recipe
def test_its_place_and_header(name: str) -> None:
    benchmark, method = name.split("/")
    recipe, header = read_recipe(name), (RECIPES / f"{name}.yaml").read_text().splitlines()
    assert method.startswith(recipe["method"].replace("+", "_"))
    assert recipe["data"] in (BENCHMARKS.get(benchmark), "ImageDataset")
    command = shlex.split(header[0].removeprefix("# python train.py "))
    assert command[:3] == ["fit", "--recipe", name]
    assert ("--data.root" in command) != ("data.root" in recipe["all"])
    assert expand(command).subcommand == "fit"
    assert header[1].startswith("# "), "where the numbers are from"
    assert not all(line.startswith("#") for line in header[:7]), "a header has at most six lines"
    assert all(len(set(values)) == len(values) > 1 for values in recipe.get("grid", {}).values())


@pytest.mark.parametrize("name", [name for name in NAMES if "tasks" in read_recipe(name)])
def test_the_tasks_are_those_of_the_benchmark(name: str) -> None:
    recipe = read_recipe(name)
    tasks = list(getattr(datamodules, recipe["data"]).tasks)
    if recipe["all"].get("data.shots", 16) < 16:
        tasks.remove("imagenet")  # NOAH has a sub-net for its 16 shots alone
    assert list(recipe["tasks"]) == tasks
    options = [set(recipe["all"]) | set(flags) for flags in recipe["tasks"].values()]
    for needed in ("model.lr", "model.weight_decay", "data.batch_size"):
        assert all(needed in keys for keys in options), needed


@pytest.mark.parametrize(
    ("name", "task", "values"),
    [
        ("vtab/ssf", "caltech101", {"model.lr": 1e-3, "model.weight_decay": 0.05, "model.drop_path": 0.1}),
        ("vtab/ssf", "clevr_dist", {"model.lr": 0.05, "model.weight_decay": 0.05, "model.drop_path": 0.1}),
        ("vtab/ssf", "smallnorb_azi", {"model.lr": 0.02, "model.weight_decay": 5e-5, "data.batch_size": 64}),
        ("fgvc/ssf", "dogs", {"model.lr": 2.5e-4, "model.drop_path": 0.0, "ema.decay": 0.9998}),
        ("fgvc/ssf", "flowers", {"model.lr": 0.01, "model.drop_path": 0.1, "ema.decay": 0.999}),
        ("vtab/gps", "sun397", {"model.lr": 2.5e-3, "data.batch_size": 16, "model.drop_path": 0.0, "model.gps_k": 1}),
        ("vtab/gps", "patch_camelyon", {"model.lr": 4e-3, "data.batch_size": 32, "model.gps_k": 2}),
        ("vtab/gps", "smallnorb_ele", {"model.lr": 3e-4, "data.batch_size": 32, "model.drop_path": 0.2}),
        ("fgvc/gps", "nabirds", {"model.lr": 1e-4, "model.drop_path": 0.1, "model.gps_k": 20}),
        ("fgvc/gps", "dogs", {"model.lr": 1e-4, "data.batch_size": 64, "model.gps_k": 1, "ema.decay": 0.9998}),
        ("vtab/sct", "cifar", {"model.lr": 0.013, "model.weight_decay": 1.0, "model.label_smoothing": 0.1}),
        ("vtab/sct", "oxford_iiit_pet", {"model.lr": 7e-4, "model.weight_decay": 0.8}),
        ("vtab/sct", "dmlab", {"model.label_smoothing": 0, "data.augmentation": "flip_randaug"}),
        ("vtab/sct", "smallnorb_ele", {"model.lr": 1.1e-3, "model.weight_decay": 5e-4, "model.label_smoothing": 0}),
        ("vtab/fact_tt", "clevr_dist", {"model.fact_form": "tt", "model.fact_rank": 4, "model.fact_scale": 10.0}),
        ("vtab/fact_tt", "resisc45", {"model.fact_rank": 8, "model.fact_scale": 0.1}),
        ("vtab/fact_tk", "cifar", {"model.fact_form": "tk", "model.fact_rank": 32, "model.fact_scale": 0.1}),
        ("vtab/fact_tk", "sun397", {"model.fact_rank": 16, "model.fact_scale": 1.0}),
        ("vtab/convpass", "dtd", {"model.convpass_scale": 0.01, "model.convpass_xavier": True, "data.split": "final"}),
        ("vtab/convpass", "dmlab", {"model.convpass_scale": 10.0, "model.convpass_xavier": False}),
        ("vtab/repadapter", "svhn", {"model.repadapter_scale": 10.0}),
        ("vtab/repadapter", "dsprites_ori", {"model.repadapter_scale": 0.1}),
        ("vtab/adapter_lora_vpt_noah", "kitti", {"model.adapter_dims": [5, 1, 10, 10, 1, 10, 1, 1, 5, 10, 5, 5]}),
        ("vtab/convpass_attn", "caltech101", {"model.convpass_scale": 100.0, "model.convpass_xavier": True}),
        (
            "vtab/convpass_attn",
            "diabetic_retinopathy",
            {"model.convpass_scale": 0.1, "model.convpass_branches": "attn"},
        ),
        ("vtab/repadapter_attn", "eurosat", {"model.repadapter_scale": 5.0, "model.repadapter_branches": "attn"}),
        ("few_shot/repadapter", "", {"model.repadapter_scale": 1.0, "model.lr": 1e-3, "data.resize": "direct"}),
        ("few_shot/adapter_lora_vpt_noah_shot1", "pets", {"model.prompt_lengths": [50, 10, 10, *[0] * 9]}),
        (
            "few_shot/adapter_lora_vpt_noah_shot16",
            "food101",
            {"model.adapter_dims": [50, *(10, 10, 50, 10, 5), 5, 10, *[5] * 4]},
        ),
        ("vtab/ln_tuning_vpetl", "cifar", {"model.lr": 8e-3, "model.weight_decay": 0.01, "data.drop_last": False}),
        ("vtab/bitfit_vpetl", "caltech101", {"model.lr": 6e-3, "model.weight_decay": 0.25, "model.decayed": "all"}),
        ("vtab/full_vpetl", "dtd", {"model.lr": 1e-4, "model.weight_decay": 0.5, "model.warmup_lr": 1e-4}),
        ("vtab/linear_probe_vpetl", "kitti", {"model.lr": 7.2e-3, "model.weight_decay": 1e-4}),
        ("vtab/lora_vpetl", "cifar", {"model.lr": 5e-3, "model.weight_decay": 5e-3, "data.interpolation": "bilinear"}),
        ("vtab/adapter_vpetl", "cifar", {"model.lr": 0.01, "model.weight_decay": 1.0, "model.label_smoothing": 0.1}),
        ("vtab/adaptformer_sct", "dmlab", {"model.lr": 9e-3, "model.weight_decay": 0.1, "model.label_smoothing": 0}),
        ("cifar100/hst_mae", "", {"model.backbone": "vit_base_patch16_224.mae", "model.lr": 5e-3}),
        ("vtab/e2vpt_mae", "caltech101", {"model.prompt_length": 32, "data.batch_size": 128, "model.lr": 2.5}),
        ("fgvc/e2vpt_mocov3", "", {"data.batch_size": 64, "model.prompt_length": 5}),
        ("cifar100/ssf_swin", "", {"model.lr": 5e-3, "model.warmup_lr": 5e-7, "model.min_lr": 5e-8, "ema.decay": None}),
        ("imagenet/full_convnext", "", {"model.lr": 5e-5, "model.drop_path": 0.2, "ema.decay": 0.99992}),
        ("vtab/gps", "kitti", {"data.resize": "direct", "data.split": "final", "model.warmup_inside": True}),
        ("fgvc/gps", "cub", {"data.split": "final", "data.random_erasing": None}),
        ("fgvc/hst_mae", "cub", {"data.normalization": "inception"}),
        ("vtab/dyt", "", {"data.split": "final", "model.backbone": "vit_base_patch16_224.orig_in21k"}),
        ("cifar100/dyt", "", {"data.crop_pct": 0.875, "data.drop_last": False, "model.decayed": "all"}),
        ("vtab/bitfit", "", {"model.optimizer": "adamw", "model.warmup_epochs": 5, "model.decayed": "all_but_bias"}),
        ("fgvc/adapter_vpt", "", {"model.lr": 1.5e-3, "data.batch_size": 384, "model.adam_eps": 1e-6}),
        ("vtab/vpt_deep", "", {"data.resize": "tensorflow", "data.drop_last": False, "model.prompt_dropout": 0.1}),
        ("vtab/vpt_shallow", "", {"model.prompt_dropout": 0.0, "model.decayed": "all_but_head_bias"}),
        ("vtab/mlp_head", "", {"model.mlp_head_layers": 2}),
        ("vtab/lora_noah", "", {"model.lora_init": "trunc_normal", "model.decayed": "matrices", "model.lr_late": True}),
        ("few_shot/vpt_deep", "", {"model.prompt_init": "xavier", "model.prompt_dropout": 0.1}),
        ("fgvc/spt_lora", "", {"data.augmentation": "crop", "data.resize": "square_crop", "data.drop_last": False}),
        ("ade20k/dyt", "", {"model.head_channels": 768, "model.warmup_steps": 1500, "trainer.max_steps": 160_000}),
        ("coco_stuff/dyt", "", {"model.lr": 1e-3, "model.weight_decay": 0.05, "data.version": "164k"}),
        ("coco/hst_1x", "", {"model.lr_drops": [8, 11], "trainer.max_epochs": 12, "data.short_sides": [800]}),
        ("coco/hst_cascade_3x", "", {"model.lr_drops": [27, 33], "model.head": "cascade_mask_rcnn"}),
        ("ade20k/hst_upernet", "", {"model.hst_dims": [64, 128, 256, 384], "model.head_channels": 512}),
        ("ade20k/hst_semantic_fpn", "", {"model.head": "semantic_fpn", "trainer.max_steps": 80_000}),
        ("ade20k/spt_lora", "", {"model.head": "setr_pup", "model.backbone_args.img_size": 512}),
        ("polyps/gps", "", {"model.lr": 2e-4, "model.min_lr": 1e-7, "data.square": True, "trainer.max_epochs": 20}),
        ("cifar100/ssf", "", {"data.erase_mixed": True, "data.randaug_fill": "grey", "model.cooldown_epochs": 10}),
    ],
)
def test_numbers_of_the_source(name: str, task: str, values: dict[str, Any]) -> None:
    found = options_of(name, task)
    assert {key: found.get(key) for key in values} == values


def test_task_of_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    """It stands in the recipe, also beside a method of the user."""
    assert resolved(capsys, "ade20k/dyt")["model.class_path"] == "methods.DyTSegmentation"
    config = resolved(capsys, "ade20k/vpt_deep", "--method=vpt+bitfit", "--task=segmentation")
    assert config["model.class_path"] == "methods.VPTBitFitSegmentation"
    assert (config["trainer.max_steps"], config["trainer.max_epochs"]) == (160_000, -1)


@pytest.mark.parametrize(
    ("name", "late", "epochs", "t_initial", "warmup", "start", "end"),
    [
        ("vtab/ssf", False, 110, 100, 10, 1e-7, 1e-8),
        ("vtab/gps", False, 110, 100, 10, 1e-7, 1e-8),
        ("imagenet/ssf", False, 40, 30, 5, 1e-7, 1e-8),
        ("fgvc/hst", False, 110, 100, 10, 1e-7, 1e-8),
        ("vtab/fact_tt", True, 100, 100, 10, 1e-6, 1e-5),
        ("vtab/convpass", True, 100, 100, 10, 1e-6, 1e-5),
        ("vtab/repadapter", True, 100, 100, 10, 1e-6, 1e-5),
        ("vtab/sct", True, 100, 100, 10, 1e-6, 1e-5),
        ("vtab/spt_lora", True, 100, 100, 10, 1e-6, 1e-5),
        ("few_shot/adapter", True, 100, 100, 10, 1e-6, 1e-5),
    ],
)
def test_learning_rates_are_those_of_the_source(
    name: str, late: bool, epochs: int, t_initial: int, warmup: int, start: float, end: float
) -> None:
    """Against timm's own schedule, stepped after each epoch with the next number or, late, with that of the epoch."""
    recipe = read_recipe(name)
    options = recipe["all"] | next(iter(recipe.get("tasks", {"": {}}).values()))
    names = inspect.signature(Optimized.__init__).parameters
    own = {key.removeprefix("model."): value for key, value in options.items() if key.removeprefix("model.") in names}
    module: Any = Optimized(**own)
    assert options["trainer.max_epochs"] == epochs
    module._trainer = SimpleNamespace(max_epochs=epochs, estimated_stepping_batches=15 * epochs)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=own["lr"])
    schedule = CosineLRScheduler(optimizer, t_initial, end, warmup_t=warmup, warmup_lr_init=start)
    factor = module.lr_factor()
    for epoch in range(epochs):
        assert own["lr"] * factor(epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        schedule.step(epoch if late else epoch + 1)


def by_timm(model: nn.Module) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)] for group in param_groups_weight_decay(model, 0.1)[1:] for p in group["params"]}


def everything(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.filterwarnings("ignore:adapter_init='vpt_dead_zero'")
@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("few_shot/adapter", by_timm),
        ("vtab/lora_noah", by_timm),
        ("few_shot/vpt_deep", by_timm),
        ("vtab/ssf", by_timm),
        ("vtab/repadapter", everything),
        ("vtab/convpass", everything),
        ("vtab/fact_tt", everything),
        ("vtab/dyt", everything),
        ("vtab/vpt_shallow", lambda model: everything(model) - {"backbone.head.bias"}),
        ("vtab/mlp_head", lambda model: everything(model) - {"backbone.head.bias"}),
        ("vtab/partial", lambda model: {name for name in everything(model) if "bias" not in name}),
        ("fgvc/adapter_vpt", lambda model: {name for name in everything(model) if "bias" not in name}),
    ],
)
def test_decayed_parameters_are_those_of_the_source(name: str, source: Callable[[nn.Module], set[str]]) -> None:
    """Names of a ViT-B without data, by the rule of the source's optimizer."""
    recipe = read_recipe(name)
    options = recipe["all"] | next(iter(recipe.get("tasks", {"": {}}).values())) | {"model.pretrained": False}
    own = {key.removeprefix("model."): value for key, value in options.items() if key.startswith("model.")}
    with torch.device("meta"):
        model: Any = compose(METHODS[recipe["method"]], task=Classification)(**own)
        model.configure_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [group for group in model.param_groups() if group["weight_decay"] == own["weight_decay"]]
    assert {names[id(p)] for group in groups for p in group["params"]} == source(model)


def test_every_source_is_used() -> None:
    used = {yaml.safe_load(path.read_text()).get("source") for path in RECIPES.rglob("*.yaml")}
    assert {path.stem for path in SOURCES.glob("*.yaml")} == used - {None, *NAMES}


@pytest.mark.parametrize(("form", "parameters"), [("tt", 39_734), ("tk", 68_985)])
def test_the_ranks_of_fact_average_to_the_known_count(form: str, parameters: int) -> None:
    ranks = [flags["model.fact_rank"] for flags in read_recipe(f"vtab/fact_{form}")["tasks"].values()]
    cores = [144 * r * r if form == "tt" else 144 * r + r**3 for r in ranks]
    assert round(sum(2 * 768 * r + core for r, core in zip(ranks, cores, strict=True)) / len(ranks)) == parameters


def test_what_the_user_writes_wins(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "decay.yaml").write_text("model: {init_args: {weight_decay: 0.25}}")
    options = ["--config", str(tmp_path / "decay.yaml"), "--model.lr=0.5", "--data.task", "cifar"]
    config = resolved(capsys, "vtab/gps", *options)
    assert (config["model.lr"], config["model.weight_decay"], config["model.gps_k"]) == (0.5, 0.25, 1)
    assert config["trainer.max_epochs"] == 110


def test_other_data_and_a_stacked_method(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data.task=cifar", "--method=ssf+bitfit"]
    assert resolved(capsys, "vtab/ssf", *options)["model.class_path"] == "methods.SSFBitFitClassification"
    assert resolved(capsys, "vtab/adapter", "--data", "ImageDataset")["data.class_path"] == "datamodules.ImageDataset"


def test_the_last_task_counts() -> None:
    args = expand(["fit", "--recipe", "vtab/gps", "--data.task", "dtd", "--data.task=patch_camelyon"]).args
    assert '"gps_k": 2' in args[2]


def test_a_task_by_another_of_its_names() -> None:
    args = ["fit", "--recipe", "vtab/gps", "--data.task"]
    assert expand([*args, "pets"]).args[:3] == expand([*args, "oxford_iiit_pet"]).args[:3]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--recipe", "vtab/gsp"], "unknown recipe 'vtab/gsp'; nearest: vtab/gps"),
        (["--recipe", "mine.yaml"], "unknown recipe 'mine.yaml'"),
        (["--recipe", "vtab/gps"], "--recipe vtab/gps needs a --data.task, one of: cifar, caltech101, dtd, oxford"),
        (["--recipe=vtab/gps", "--data.task=cifer"], "unknown task 'cifer'; nearest: cifar"),
        (
            ["--recipe=few_shot/adapter_lora_vpt_noah_shot1", "--data.task=imagenet"],
            "unknown task 'imagenet'; known: aircraft",
        ),
        (["--recipe=fgvc/gps", "--data.task", "cifar"], "unknown task 'cifar'; nearest: cars"),
        (["--recipe", "vtab/adapter", "--data", "ImageDataste"], "unknown data 'ImageDataste'; nearest: ImageDataset"),
        (["--recipe=vtab/gps", "--data.task=cifar", "--method=ssf"], "--method ssf: --recipe vtab/gps is one of gps"),
        (["--recipe=ade20k/dyt", "--task=classification"], "--task classification: --recipe ade20k/dyt is one of segm"),
    ],
)
def test_refused_recipe(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(["fit", *args], capsys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("method: [gps", "is no YAML: while parsing a flow sequence"),
        ("", "says no method and data; expected the keys method, data, all, tasks, grid"),
        ("- method", "says no method and data"),
        ("{method: gps}", "says no method and data"),
        ("{method: gps, data: VTAB, al: {}}", "'al'; nearest: all"),
        ("{method: gps, data: VTAB, all: [1]}", "all is [1]; expected a dict"),
        ("{method: gps, data: VTAB, tasks: {cifar: 1}}", "tasks.cifar is 1; expected a dict"),
        ("{method: gpss, data: VTAB}", "unknown method 'gpss'; nearest: gps"),
        ("{method: gps, data: VTAB, source: spf}", "unknown source of recipe"),
        ("{method: gps, data: VTABB}", "unknown data 'VTABB'; nearest: VTAB"),
        ("{method: gps, data: VTAB, all: {model.lrr: 1}}", "did you mean --model.lr"),
        ("{method: gps, data: VTAB, all: {model.gps_k: many}}", "many"),
        ("{method: gps, data: VTAB, all: {model.lora_rank: 4}}", "lora_rank"),
        ("{method: gps, data: VTAB, all: {data.shots: 1}}", "shots"),
        ("{source: vtab/gps, method: ssf}", "gps_k"),
        ("{method: gps, data: VTAB, tasks: {dtd: {model.lr: 1}}}", "unknown task 'cifar'; known: dtd"),
        ("{method: gps, data: VTAB, source: [ssf, spt]}", "source is ['ssf', 'spt']; expected a str"),
        (
            "{method: gps, data: VTAB, source: ssf, source: spt}",
            "'source' stands here a second time; keep one of the two",
        ),
    ],
)
def test_bad_recipe_of_the_user(content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    args = ["fit", "--recipe", str(tmp_path / "mine.yaml"), "--data.root", "DIR", "--data.task", "cifar"]
    assert message in refused(args, capsys)


def test_recipe_of_the_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {"method": "gps", "data": "ImageDataset", "all": {"model.lr": "3e-3", "model.backbone_args.depth": 2}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    config = resolved(capsys, str(tmp_path / "mine.yaml"))
    assert (config["model.lr"], config["model.backbone_args.depth"]) == (3e-3, 2)


def test_the_list_names_every_recipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    main(["recipes"])
    out = capsys.readouterr().out
    assert all(name in out for name in NAMES)


@pytest.mark.parametrize("args", [["--help"], ["fit", "--help"]])
def test_help_shows_the_flag(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        main(args)
    assert "--recipe" in capsys.readouterr().out
