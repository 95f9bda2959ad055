"""A dry run of each recipe and dataset, and the numbers of five published scripts."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import datamodules
from commands.lightning.recipes import read_recipe, recipe_files
from tests.recipes import dry_run

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden.json").read_text())
pytestmark = pytest.mark.filterwarnings(
    "ignore:adapter_init='vpt_dead_zero'",  # as VPT's table was made
    "ignore:gps_k",  # the narrow stand-in has rows with fewer columns
)


def pairs(name: str) -> dict[str, dict[str, Any]]:
    """Options of a recipe by dataset; a recipe with one setting for several datasets has the same for each."""
    recipe = read_recipe(name)
    every = recipe.get("grid", {}).get("data.task") or getattr(getattr(datamodules, recipe["data"]), "tasks", [""])
    tasks = recipe.get("tasks") or {key: {} for key in every or [""]}
    return {task: recipe["all"] | own | ({"data.task": task} if task else {}) for task, own in tasks.items()}


@pytest.mark.parametrize("name", GOLDEN)
def test_numbers_are_those_of_the_published_script(name: str, tmp_path: Path) -> None:
    golden, recipe = GOLDEN[name], read_recipe(name)
    assert golden["tasks"].keys() == pairs(name).keys()
    for task, options in pairs(name).items():
        data = dry_run.data_of(recipe["data"], options | {"data.root": str(tmp_path)})
        steps, expected = dry_run.steps_per_epoch(data), golden["tasks"][task]
        assert expected["steps_per_epoch"][data.split] == steps
        for split, number in expected["steps_per_epoch"].items():
            other = dry_run.data_of(recipe["data"], options | {"data.root": str(tmp_path), "data.split": split})
            assert dry_run.steps_per_epoch(other) == number
        rates = {str(step): rate for step, rate in dry_run.rates(options, steps).items()}
        assert rates == pytest.approx(expected["rates"], rel=1e-9, abs=1e-20)
        model = dry_run.adapted(recipe["method"], dry_run.shapes(options), narrow=False)
        model.num_classes, model.weight_decay = data.num_classes, options["model.weight_decay"]
        with torch.device("meta"):
            model.resize_head(768)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert (trained, dry_run.decayed(model)) == (expected["trained"], expected["decayed"])
    assert dry_run.image_steps(data, train=True, draws=12) == golden["train_image"]
    assert dry_run.image_steps(data, train=False, draws=1) == golden["test_image"]


@cache
def images_are_made(data: str, options: str, root: Path) -> None:
    """Fails if an image has no way to the size of the backbone; the same options are tried once."""
    made = dry_run.data_of(data, json.loads(options) | {"data.root": str(root)})
    checks = {"masks": dry_run.masks_are_made, "objects": dry_run.objects_are_made}
    if made.unit == "clip":
        dry_run.clips_are_made(made)
    elif made.targets in checks:
        checks[made.targets](made)
    else:
        dry_run.image_steps(made, train=True, draws=1)
        dry_run.image_steps(made, train=False, draws=1)


@cache
def model_is_made(method: str, shapes: str, task: str) -> None:
    """Fails if the method does not take the backbone, or if its optimizer does not get all that trains."""
    model = dry_run.adapted(method, shapes, narrow=True, task=task)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert sum(p.numel() for group in model.param_groups() for p in group["params"]) == trained > 0


@pytest.mark.parametrize("name", [name for name in recipe_files() if name not in GOLDEN])
def test_it_runs(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    recipe, root = read_recipe(name), tmp_path_factory.getbasetemp()
    for task, options in pairs(name).items():
        of_images = {
            key: value
            for key, value in options.items()
            if key == "model.backbone" or (key.startswith("data.") and key not in ("data.batch_size", "data.task"))
        }
        images_are_made(recipe["data"], json.dumps(of_images, sort_keys=True), root)
        data = dry_run.data_of(recipe["data"], options | {"data.root": str(root)})
        steps = dry_run.steps_per_epoch(data) if task else 100
        assert steps > 0, f"{task}: no training batch of {options['data.batch_size']} images"
        assert 0 < max(dry_run.rates(options, steps).values()) <= options["model.lr"]
        model_is_made(recipe["method"], dry_run.shapes(options), recipe.get("task", "classification"))
