"""Average the adapters of several runs as long as the validation metric rises (greedy soup, arXiv:2203.05482)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datamodules  # noqa: F401  (so that --data finds the classes by their names)
from datamodules.image_module import ImageModule


def soup(ckpt_paths: list[Path], data: ImageModule, output: Path, most: int | None = None) -> None:
    """Write the greedy soup of checkpoints as an adapter folder.

    The checkpoints are validated and sorted, the best first. The soup starts with the best one. Each further one is
    averaged with those in the soup, and stays in it if the validation metric of the average is not worse.

    Args:
        ckpt_paths: Checkpoint files or adapter folders of at least two runs of one method on one backbone, with equal
            selections: ``[RUN1/adapter,RUN2/adapter]``.
        data: The data of the runs, as a fit would get them: ``--data ImageDataset --data.root DIR``.
        output: New adapter folder.
        most: Number of the best checkpoints that are tried; all by default.
    """
    # imported late, so that --help is fast
    from checkpoints.delta import read_checkpoint, write_adapter
    from methods import PEFTMethod

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"output={str(output)!r} exists and is not empty; nothing was written")
    if len(ckpt_paths) < 2 or (most is not None and most < 2):
        raise ValueError(f"ckpt_paths={[*map(str, ckpt_paths)]}, most={most}: expected at least 2 checkpoints")
    found = {str(path): read_checkpoint(path, "ckpt_paths") for path in ckpt_paths}
    check_equal(found)
    model: Any = PEFTMethod.from_delta(next(iter(found.values())))
    headline = model.headline

    def score(checkpoints: Sequence[Mapping[str, Any]]) -> float:
        model.load_state_dict(averaged([c["state_dict"] for c in checkpoints]), strict=False)  # names are checked
        return validated(model, data)

    scores = {name: score([checkpoint]) for name, checkpoint in found.items()}
    order = sorted(scores, key=lambda name: scores[name], reverse=headline.higher_is_better)[:most]
    for name in order:
        print(f"{headline.label} {headline.scale * scores[name]:.2f}: {name}")
    kept, best = [order[0]], scores[order[0]]
    for name in order[1:]:
        value = score([found[n] for n in [*kept, name]])
        stays = value >= best if headline.higher_is_better else value <= best
        print(f"{headline.label} {headline.scale * value:.2f} with {name}: {'kept' if stays else 'left out'}")
        if stays:
            kept, best = [*kept, name], value
    model.load_state_dict(averaged([found[name]["state_dict"] for name in kept]), strict=False)
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    write_adapter(output, checkpoint)
    write_soup_card(output, model, Path(kept[0]), len(kept), best)
    print(f"wrote {output}: the average of {len(kept)} of {len(order)} checkpoints, {headline.scale * best:.2f}")


def write_soup_card(output: Path, model: Any, first: Path, count: int, value: float) -> None:
    """Write the model card of a soup: the protocol of its best run, without that run's own results and costs.

    Args:
        output: Adapter folder of the soup.
        model: Model with the averaged values.
        first: Checkpoint of the best run.
        count: Number of averaged checkpoints.
        value: Headline metric of the soup on validation images.
    """
    from callbacks.model_card import LOAD
    from callbacks.result import task_name
    from checkpoints.model_card import read_result, write_card

    run = {name: v for name, v in read_result(first).items() if "/" not in name}
    run |= {"task": task_name(type(model)), "pretrained": model.pretrained, "metric": model.headline._asdict()}
    run["selection"] = f"average of {count} checkpoints, chosen by validation images"
    run[f"best/val/{model.headline.name}"] = value
    license = (getattr(model.backbone, "pretrained_cfg", None) or {}).get("license")
    write_card(output, run | model.description(), "graft", LOAD, license)


def check_equal(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse checkpoints whose averages mean nothing.

    Args:
        found: Results of ``read_checkpoint`` by path.

    Raises:
        ValueError: If they have several members, or differ in method, backbone, options of the method, classes,
            selection or tensors.
    """
    import torch

    (first, reference), *others = found.items()
    for name, checkpoint in found.items():
        if "members" in checkpoint:
            raise ValueError(f"{name} holds several members: give the adapter folder of its run")
    for name, checkpoint in others:
        for what, (one, other) in parts(reference, checkpoint).items():
            if one != other:
                raise ValueError(
                    f"{first} and {name} differ in {what}: {str(one)[:80]} and {str(other)[:80]}; expected equal ones"
                )
        one, other = (c["peft"]["selection"] or {} for c in (reference, checkpoint))
        same = one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
        integers = [key for key, tensor in reference["state_dict"].items() if not tensor.is_floating_point()]
        same_integers = all(torch.equal(reference["state_dict"][k], checkpoint["state_dict"][k]) for k in integers)
        if not (same and same_integers):
            raise ValueError(
                f"{first} and {name} have selected other weights or channels; a soup needs equal selections, such as "
                "those of runs with one --score.cache_dir"
            )


def parts(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What two checkpoints must have in common, by its name in messages."""
    from methods.core.saved_model import described_model

    both = (one, other)
    models = [described_model(checkpoint) for checkpoint in both]
    options = [cls.method_options() | chosen for cls, chosen in models]
    own = [{name: opts[name] for name in cls.method_options()} for (cls, _), opts in zip(models, options, strict=True)]

    def pair(*keys: str) -> tuple[Any, Any]:
        first, second = both
        for key in keys:
            first, second = first[key], second[key]
        return first, second

    shapes = [{name: tuple(tensor.shape) for name, tensor in c["state_dict"].items()} for c in both]
    return {
        "method": pair("peft", "method"),
        "backbone": pair("peft", "backbone"),
        "frozen weights": pair("peft", "fingerprint"),
        "options of the method": (own[0], own[1]),
        "classes": pair("identity"),
        "tensors": (shapes[0], shapes[1]),
    }


def averaged(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean of each tensor over several deltas, in its own dtype; integers are equal in all of them."""
    import torch

    first = states[0]
    if len(states) == 1:
        return dict(first)
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in first.items()
    }


def validated(model: Any, data: ImageModule) -> float:
    """Headline metric of a model on the validation split."""
    from lightning import Trainer

    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(**quiet, enable_model_summary=False, devices=1)
    trainer.validate(model, datamodule=data, verbose=False)
    return float(trainer.callback_metrics[f"val/{model.headline.name}"])
