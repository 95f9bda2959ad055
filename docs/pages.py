"""Pages of the site that are made from the code: one for each method and each task, and the table of costs.

MkDocs calls the functions with the prefix ``on_``. A new method or task has its page without any further work.
"""

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from backbones.shared import shared_backbone  # noqa: E402
from commands.lightning.recipes import read_recipe, recipe_files  # noqa: E402
from commands.methods.costs import Costs, Work, costs, work  # noqa: E402
from commands.methods.listing import merges, paper, summary, tasks  # noqa: E402
from commands.methods.matrix import MARKS, STACK, read_page  # noqa: E402
from commands.report.printed import printed  # noqa: E402
from datamodules import DATAMODULES  # noqa: E402
from docs.pictures import trained_picture  # noqa: E402
from lightning_modules import TASKS  # noqa: E402
from lightning_modules.batch import Batch  # noqa: E402
from methods import METHODS  # noqa: E402
from methods.core.selective import Selective  # noqa: E402

BACKBONE, CLASSES = "vit_base_patch16_224.augreg_in21k", 100
MICRO, IMAGES = f"local-dir:{ROOT / 'assets/micro_vit'}", 16
# options without which a method cannot start on the micro ViT, or would load weights from a network
OPTIONS: dict[str, dict[str, Any]] = {"sidetune": {"sidetune_pretrained": False}, "width_scaling": {"width_base": 192}}
COMMAND = re.compile(r"# (python train\.py (?:[^\\\n]|\\\n)*)")  # in the first lines of a config
SHORT = 30  # characters of a reason in a table
COSTS = "<!-- costs of all methods -->"
MEANS = "<!-- means of one protocol -->"
ASSETS = ("map/map.svg", "segmentation/validation.png")  # pictures outside docs/ that pages show


def on_config(config: Any) -> Any:
    parts = {"Methods": [f"method/{name}.md" for name in METHODS], "Tasks": [f"task/{name}.md" for name in TASKS]}
    for entry in config.nav:
        ((title, pages),) = entry.items()
        if title in parts:
            folder = "method" if title == "Methods" else "task"
            pages[:] = [f"{folder}/index.md", *parts[title]]
    return config


def on_files(files: Any, config: Any) -> Any:
    made = {"method/index.md": methods_page(), "task/index.md": tasks_page()}
    made |= {f"method/{name}.md": method_page(name) for name in METHODS}
    made |= {f"task/{name}.md": task_page(name) for name in TASKS}
    made |= {f"method/{name}.svg": trained_picture(cost.tensors) for name, cost in sizes().items() if cost.tensors}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    for path in ASSETS:
        files.append(File.generated(config, f"assets/{path}", abs_src_path=str(ROOT / "assets" / path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    for sign, rows in {COSTS: costs_rows, MEANS: means_rows}.items():
        if sign in markdown:
            markdown = markdown.replace(sign, table(rows()))
    return markdown.replace("](../assets/", "](assets/")


@cache
def sizes() -> dict[str, Costs]:
    """Costs of all methods on a ViT-B/16."""
    return dict(costs(BACKBONE, CLASSES))


@cache
def works() -> dict[str, Work | str]:
    """Work of a step of all methods on the micro ViT, or the reason why it could not be measured."""
    torch.set_num_threads(1)  # because the threads would only wait for each other
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 3, 32, 32, generator=generator)
    batch = Batch.of(images, torch.arange(IMAGES) % 4)
    found: dict[str, Work | str] = {}
    with shared_backbone():
        for name, stack in STACK.items():
            try:
                found[name] = work(stack, MICRO, batch, **OPTIONS.get(name, {}))
            except (ValueError, FileNotFoundError) as error:
                found[name] = str(error)
    return found


@cache
def methods_of_recipes() -> dict[str, list[str]]:
    """Methods of each recipe that ships."""
    return {recipe: read_recipe(recipe)["method"].split("+") for recipe in recipe_files()}


@cache
def marks() -> dict[str, dict[str, list[str]]]:
    """Families of timm on which a method merges, trains or is refused: by method, then by state."""
    page = read_page((ROOT / "docs/backbones.md").read_text())
    found: dict[str, dict[str, list[str]]] = {name: {state: [] for state in MARKS} for name in METHODS}
    states = {mark: state for state, mark in MARKS.items()}
    for (family, method), mark in page.items():
        if method in found:
            found[method][states[mark]].append(f"`{family}`")
    return found


def table(rows: list[list[str]]) -> str:
    """Markdown table of rows, the first one with the titles."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def kilobytes(size: int) -> str:
    return f"{size / 1e3:,.0f} kB"


def share(name: str) -> str:
    """Bytes that autograd keeps, in percent of those of full fine-tuning."""
    found, full = works()[name], works()["full"]
    if isinstance(found, str) or isinstance(full, str):
        return "-"
    return f"{100 * found.saved / full.saved:.0f} %"


def operations(name: str) -> str:
    """FLOPs of a forward pass, in percent of those of the plain network."""
    found, plain = works()[name], works()["linear_probe"]
    if isinstance(found, str) or isinstance(plain, str) or not plain.gflops:
        return "-"
    return "depends on the image" if found.gflops is None else f"{100 * found.gflops / plain.gflops:.0f} %"


def costs_rows() -> list[list[str]]:
    """Rows of the table of costs of all methods."""
    rows = [["method", "trained, no head", "adapter", "kept for gradients", "forward pass", "merges"]]
    for name, method in METHODS.items():
        cost = sizes()[name]
        counts = [f"{cost.method:,}", kilobytes(cost.storage)]
        if cost.reason:  # one with a remedy stands on the page of the method
            counts = [cost.reason if len(cost.reason) < SHORT else "needs an option", "-"]
        merged = merges(method).partition(":")[0]
        rows.append([f"[`{name}`](method/{name}.md)", *counts, share(name), operations(name), merged])
    return rows


def means_rows() -> list[list[str]]:
    """Rows of the printed means of one protocol, the best first."""
    means = {
        row["method"]: (mean(row["values"].values()), row["millions"])
        for row in printed("VTAB")
        if row["source"] == "OSU"
    }
    rows = [["method", "mean of 19 datasets (%)", "trained parameters, no head (millions)"]]
    for name, (value, millions) in sorted(means.items(), key=lambda item: -item[1][0]):
        rows.append([name, f"{value:.1f}", f"{millions:g}"])
    return rows


def methods_page() -> str:
    """List of the methods."""
    rows = [["`--method`", "method", "tasks", "merges"]]
    for name, method in METHODS.items():
        text = summary(method).replace("``", "`")
        rows.append([f"[`{name}`]({name}.md)", text, tasks(method), merges(method)])
    return f"# Methods\n\nWhich one fits is on the page [Which method when](../choose.md).\n\n{table(rows)}\n"


def method_page(name: str) -> str:
    """Page of a method: what it is, its costs, its backbones, its options and its code."""
    method = METHODS[name]
    recipes = [recipe for recipe, stack in methods_of_recipes().items() if name in stack]
    facts = [
        ["question", "answer"],
        ["Paper", paper(method) or "none"],
        ["Tasks", tasks(method)],
        ["Merges into a plain model", merges(method)],
        ["Chooses from data", "yes" if issubclass(method, Selective) else "no"],
        ["Recipes", ", ".join(f"`{recipe}`" for recipe in recipes) or "none"],
    ]
    config = (ROOT / f"configs/method/{name}.yaml").read_text()
    command = COMMAND.match(config)
    assert command is not None, f"configs/method/{name}.yaml does not begin with its command"
    shown = command.group(1).replace("\n# ", "\n")
    parts = [
        f"# {name}",
        summary(method).replace("``", "`") + ".",
        table(facts),
        f"```\n{shown}\n```",
        *picture(name),
        "## Costs",
        *method_costs(name),
        *what_trains(name),
        "## Backbones",
        *method_backbones(name),
        *options_and_code(method),
    ]
    return "\n\n".join(parts) + "\n"


def options_and_code(cls: type) -> list[str]:
    """Parts of a page with the docstring of a class and with its file."""
    path = cls.__module__.replace(".", "/") + ".py"
    docstring = f"::: {cls.__module__}.{cls.__qualname__}\n    options: {{members: false, show_source: false}}"
    return ["## Options", docstring, f"## {path}", f"```python\n{(ROOT / path).read_text()}```"]


def picture(name: str) -> list[str]:
    """Picture of the scores of a method, if there is one."""
    path = f"scores_{name}.png"
    return [f"![Scores and choice of {name}, by block and layer](../{path})"] if (ROOT / "docs" / path).exists() else []


def what_trains(name: str) -> list[str]:
    """Parts with the table of trained tensors, where the tensors of all blocks share a row."""
    groups: dict[str, list[int]] = {}
    for tensor, size in sizes()[name].tensors:
        groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", tensor), []).append(size)
    if not groups:
        return []
    rows = [["trained tensor, without the head", "number", "parameters"]]
    rows += [[f"`{tensor}`", str(len(group)), f"{sum(group):,}"] for tensor, group in groups.items()]
    shown = f"![Trained parameters of each block]({name}.svg)"
    return ["## What trains", "On a ViT-B/16; `*` is the number of a block.", shown, table(rows)]


def method_costs(name: str) -> Iterator[str]:
    """Paragraphs on the costs of a method."""
    cost, stack = sizes()[name], STACK[name]
    rows = [["with its default options", "costs"]]
    if cost.reason:
        rows.append(["Trained parameters", cost.reason])
    else:
        rows.append(["Trained parameters without the head, ViT-B/16", f"{cost.method:,}"])
        rows.append([f"Trained parameters with the head of {CLASSES} classes", f"{cost.method + cost.head:,}"])
        rows.append(["Adapter", kilobytes(cost.storage)])
    found = works()[name]
    if isinstance(found, str):
        yield table(rows)
        yield f"A training step was not measured: {found}."
        return
    note = "" if stack == name else f", as `{stack}`"
    rows.append([f"Activations kept for gradients, compared with full fine-tuning{note}", share(name)])
    rows.append([f"Operations of a forward pass, compared with the plain network{note}", operations(name)])
    yield table(rows)
    yield f"The last two are of a training step of the shipped micro ViT with {IMAGES} images, in fp32 on a CPU."


def method_backbones(name: str) -> Iterator[str]:
    """Paragraphs on the families of timm that a method works on."""
    found = marks()[name]
    total = sum(len(families) for families in found.values())
    if not total:
        yield "The page [Backbones](../backbones.md) does not have this method yet."
        return
    words = {"merges": "Trains and merges", "trains": "Trains, but does not merge", "refused": "Is refused"}
    for state, families in found.items():
        if families:
            yield f"**{words[state]}** on {len(families)} of {total} families of timm: {', '.join(families)}."
    yield f"Reasons: [Backbones](../backbones.md#{name})."


def tasks_page() -> str:
    """List of the tasks."""
    rows = [["`--task`", "task", "judged by"]]
    rows += [[f"[`{name}`]({name}.md)", summary_of(task), task.headline.label] for name, task in TASKS.items()]
    return f"# Tasks\n\nA task is a learning problem with its head, loss and metrics.\n\n{table(rows)}\n"


def task_page(name: str) -> str:
    """Page of a task: what it is judged by, its data, the methods that it refuses, its options and its code."""
    task = TASKS[name]
    kind = (task.targets, task.unit)
    data = [f"`{name}`" for name, cls in DATAMODULES.items() if kind_of(cls) == kind]
    refused = [f"`{other}`: {method.refusal(task)}." for other, method in METHODS.items() if method.refusal(task)]
    better = "larger" if task.headline.higher_is_better else "smaller"
    facts = [
        ["question", "answer"],
        ["Judged by", f"`{task.headline.name}`, {task.headline.label}; {better} is better"],
        ["Targets of a sample", task.targets],
        ["Data", ", ".join(data) or "none"],
        ["Counted in", f"{task.unit}s"],
    ]
    parts = [
        f"# {name}",
        summary_of(task) + ".",
        table(facts),
        f"```\npython train.py fit --method lora --task {name} --data DATA --data.root FOLDER\n```",
        "How the data must lie on the disk is on the page [Data](../data.md).",
        "## Methods",
        "All methods serve this task." if not refused else "All methods serve this task, except:",
        "\n".join(f"- {line}" for line in refused),
        *options_and_code(task),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def kind_of(data: type) -> tuple[str | None, str]:
    """Targets and unit of the samples of a datamodule."""
    return getattr(data, "targets", None), getattr(data, "unit", "image")


def summary_of(task: type) -> str:
    """First line of the docstring of a task, without its full stop."""
    return (task.__doc__ or "").strip().partition("\n")[0].rstrip(".")
