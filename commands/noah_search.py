"""Search for the best sub-net of a super-net of NOAH by evolution (arXiv:2206.04673)."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import datamodules  # noqa: F401  (so that --data finds the classes by their names)
from commands.soup import validated
from datamodules.image_module import ImageModule

Sizes = dict[str, list[int]]
"""Size for each block by kind of module, as in ``methods.noah``."""


class Settings(NamedTuple):
    """Numbers of the evolution.

    Args:
        generations: Number of generations.
        population: Sub-nets of a generation.
        parents: Best sub-nets so far, of which children are made.
        mutations: Children of one parent in a generation, at most.
        crossovers: Children of two parents in a generation, at most.
        change: Probability that a mutation changes a kind of modules.
    """

    generations: int
    population: int
    parents: int
    mutations: int
    crossovers: int
    change: float


def noah_search(
    ckpt_path: Path,
    data: ImageModule,
    output: Path,
    most_parameters: int | None = None,
    generations: int = 15,
    population: int = 50,
    parents: int = 10,
    mutations: int = 25,
    crossovers: int = 25,
    change: float = 0.2,
    seed: int = 0,
) -> None:
    """Write the options of the best sub-net, with which ``--method adapter+lora+vpt`` trains it anew.

    Args:
        ckpt_path: Checkpoint file or adapter folder of a fit with ``--method adapter+lora+vpt+noah``.
        data: The data of the fit, as it got them: ``--data ImageDataset --data.root DIR``. Sub-nets are compared by the
            headline metric on its validation split.
        output: New YAML file, for ``--config`` of the next fit.
        most_parameters: Largest number of parameters of a sub-net, without the head; by default no limit.
        generations: Number of generations.
        population: Sub-nets of a generation.
        parents: Best sub-nets so far, of which children are made.
        mutations: Children of one parent in a generation, at most.
        crossovers: Children of two parents in a generation, at most.
        change: Probability that a mutation changes a kind of modules (adapters, LoRA, prompts).
        seed: Seed of the draws.
    """
    # imported late, so that --help is fast
    import yaml

    from checkpoints.atomic import write_atomically
    from checkpoints.delta import read_checkpoint
    from commands.lightning.runs import quiet_lightning
    from methods import PEFTMethod
    from methods.noah import NOAH

    settings = Settings(generations, population, parents, mutations, crossovers, change)
    check_settings(settings)
    if output.exists():
        raise FileExistsError(f"output={str(output)!r} exists already; nothing was written")
    model: Any = PEFTMethod.from_delta(read_checkpoint(ckpt_path, "ckpt_path"))
    if not isinstance(model, NOAH):
        raise ValueError(
            f"ckpt_path={str(ckpt_path)!r} was trained with {model.method_name()}; expected a super-net of --method "
            "adapter+lora+vpt+noah"
        )
    headline = model.headline
    sign = 1 if headline.higher_is_better else -1

    def score(sizes: Sizes) -> float | None:
        model.chosen = sizes
        model.use(sizes)
        if most_parameters is not None and model.count() > most_parameters:
            return None
        return sign * validated(model, data)

    with quiet_lightning():  # otherwise each validation prints the devices once more
        best, value = evolve(model, score, Random(seed), settings)
    model.use(best)
    count, shown = model.count(), f"{headline.label} {sign * headline.scale * value:.2f}"
    text = yaml.safe_dump({"model": {"init_args": model.options_of(best)}}, default_flow_style=None, sort_keys=False)
    comment = f"# {count:,} parameters without the head; {shown} on the validation split, in the super-net\n"
    write_atomically(output, lambda path: path.write_text(comment + text))
    print(f"wrote {output}: {count:,} parameters without the head, {shown}")


def check_settings(settings: Settings) -> None:
    """Refuse numbers of the evolution that are too small.

    Raises:
        ValueError: With the first of them.
    """
    for name, value in settings._asdict().items():
        if name == "change":
            if not 0 < value <= 1:
                raise ValueError(f"change={value}: expected a probability above 0, at most 1")
        elif value < (0 if name in ("mutations", "crossovers") else 1):
            raise ValueError(f"{name}={value}: expected a larger number")


def evolve(
    model: Any, score: Callable[[Sizes], float | None], random: Random, settings: Settings
) -> tuple[Sizes, float]:
    """Best sub-net of an evolution, and its score.

    Each generation has children of the best sub-nets so far, by mutation and crossover, and new ones in the other
    places. Each sub-net is scored once.

    Args:
        model: The super-net.
        score: Score of a sub-net, higher is better; None for one that is too large.
        random: Source of the draws.
        settings: Numbers of the evolution.

    Raises:
        ValueError: If no sub-net is small enough.
    """
    scores: dict[str, float | None] = {}
    found: list[tuple[float, Sizes]] = []

    def try_new(make: Callable[[], Sizes], number: int) -> int:
        """Score up to ``number`` new sub-nets; a small super-net has few of them."""
        scored = 0
        for _ in range(10 * number):
            sizes = make()
            if scored < number and repr(sizes) not in scores:
                value = scores[repr(sizes)] = score(sizes)
                if value is not None:
                    found.append((value, sizes))
                    scored += 1
        return scored

    for generation in range(settings.generations):
        best = sorted(found, key=lambda pair: pair[0], reverse=True)[: settings.parents]
        children = 0
        if best:
            pool = [sizes for _, sizes in best]
            children += try_new(partial(mutated, model, pool, random, settings.change), settings.mutations)
            children += try_new(partial(crossed, pool, random), settings.crossovers)
        try_new(partial(model.draw, random), settings.population - children)
        if not found:
            raise ValueError("no sub-net has so few parameters: pass a larger most_parameters")
        print(f"generation {generation + 1} of {settings.generations}: {len(found)} sub-nets")
    value, sizes = max(found, key=lambda pair: pair[0])
    return sizes, value


def mutated(model: Any, pool: list[Sizes], random: Random, change: float) -> Sizes:
    """Child of one parent: with a probability, a kind has another number of blocks, and new sizes in the added ones."""
    parent = random.choice(pool)
    child = {}
    for kind, sizes in parent.items():
        kept = tuple(size for size in sizes if size)
        child[kind] = model.draw_kind(random, len(sizes), kept) if random.random() < change else sizes
    return child


def crossed(pool: list[Sizes], random: Random) -> Sizes:
    """Child of two parents, with each kind from one of them."""
    one, other = random.choice(pool), random.choice(pool)
    return {kind: random.choice([one[kind], other[kind]]) for kind in one}
