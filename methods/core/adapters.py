"""Several adapters over one backbone: one forward pass for a batch whose rows name their adapter."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from checkpoints.delta import read_checkpoint
from methods.core.base import PEFTMethod

TOLERANCE = 1e-3  # of a mixed pass, relative to the largest output


class Adapters:
    """Adapters of one method with one set of options, on one frozen backbone.

    The tensors in which the adapters differ get one more dimension, and ``torch.vmap`` runs the model over it. Products
    with frozen weights stay one product for the whole batch.

    Args:
        model: The model of the first adapter.
        tensors: For each adapter, by its name, the tensors in which the adapters differ.
        class_names: Names of the classes, in the order of the outputs.
    """

    def __init__(self, model: Any, tensors: dict[str, dict[str, Tensor]], class_names: list[str]) -> None:
        self.model, self.class_names = model, class_names
        self.places = {name: place for place, name in enumerate(tensors)}
        first = next(iter(tensors.values()))
        self.stacked = {key: torch.stack([own[key] for own in tensors.values()]) for key in first}

    @property
    def names(self) -> list[str]:
        """Names of the adapters."""
        return list(self.places)

    @classmethod
    def load(cls, paths: Sequence[str | Path] | Mapping[str, str | Path], device: str = "cpu") -> Self:
        """Load adapters, and compare one mixed pass with a pass of each adapter alone.

        Args:
            paths: Adapter folders or checkpoint files by the names of the adapters; in a list, the paths are the names.
            device: Device of the model.

        Raises:
            FileNotFoundError: If a path does not exist.
            ValueError: If an adapter has another method, backbone or classes than the first one, or the method cannot
                serve several adapters in one pass.
        """
        named = dict(paths) if isinstance(paths, Mapping) else {str(path): path for path in paths}
        if not named:
            raise ValueError("expected at least one adapter")
        checkpoints = {name: read_checkpoint(path, "paths") for name, path in named.items()}
        check_family(checkpoints)
        images: Tensor | None = None
        model: Any = None
        found: dict[str, dict[str, Tensor]] = {}
        alone: list[Tensor] = []
        for name, checkpoint in checkpoints.items():
            one: Any = PEFTMethod.from_delta(checkpoint).to(device)
            if one.unit != "image":
                raise ValueError(f"{name} reads {one.unit}s; expected adapters of a task on single images")
            one.fix_shapes()
            if images is None:
                size = one.input_config["input_size"]
                images = torch.rand(2, *size, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1
                model = one
            with torch.no_grad():
                alone.append(one(images))
            found[name] = own_tensors(one)
        assert images is not None
        check_shapes(found, model.method_name())
        adapters = cls(model, differing(found), list(model.identity().get("class_names") or []))
        adapters.check(images, torch.cat(alone))
        return adapters

    def check(self, images: Tensor, alone: Tensor) -> None:
        """Refuse a method whose mixed pass differs from passes of each adapter alone.

        Args:
            images: Two images (2, C, H, W).
            alone: Outputs (2 A, ...) of each adapter alone, one adapter after the other.

        Raises:
            ValueError: With the method and the reason.
        """
        method = self.model.method_name()
        names = [name for name in self.names for _ in range(2)]
        try:
            mixed = self(images.repeat(len(self.places), 1, 1, 1), names)
        except (RuntimeError, NotImplementedError) as error:  # an operation that torch cannot vmap
            reason = str(error).partition("\n")[0][:200]
            raise ValueError(f"{method} cannot serve several adapters in one pass: {reason}") from error
        difference, largest = float((mixed - alone).abs().max()), max(float(alone.abs().max()), 1.0)
        if not difference <= TOLERANCE * largest:
            raise ValueError(
                f"{method} cannot serve several adapters in one pass: its outputs would differ by {difference:.1e}, "
                "because the adapters differ in more than their tensors"
            )

    def __call__(self, images: Tensor, names: Sequence[str]) -> Tensor:
        """Outputs (B, ...) of images (B, C, H, W), each by its adapter.

        Args:
            images: Normalised images on the device of the model.
            names: Name of the adapter of each image.

        Raises:
            ValueError: If a name is unknown, or there is not one for each image.
        """
        unknown = sorted(set(names) - self.places.keys())
        if unknown:
            raise ValueError(f"no adapter {unknown[0]!r} is loaded; there are {', '.join(self.names)}")
        if len(names) != len(images):
            raise ValueError(f"{len(names)} names of adapters for {len(images)} images; expected one for each")
        with torch.no_grad():
            if len(set(names)) == 1:
                own = {key: tensor[self.places[names[0]]] for key, tensor in self.stacked.items()}
                return functional_call(self.model, own, (images,))
            rows = torch.tensor([self.places[name] for name in names], device=images.device)
            chosen = {key: tensor[rows] for key, tensor in self.stacked.items()}
            # the fused kernels of attention cannot be mapped, and would run image by image
            with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop")  # of LoRA's small sums
                return torch.vmap(self.one)(chosen, images) if chosen else self.model(images)

    def one(self, own: dict[str, Tensor], image: Tensor) -> Tensor:
        """Output of one image (C, H, W) with the tensors of its adapter."""
        return functional_call(self.model, own, (image[None],))[0]


def check_family(checkpoints: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse adapters that cannot share a forward pass.

    Args:
        checkpoints: Results of ``read_checkpoint`` by the names of the adapters.

    Raises:
        ValueError: With the first difference from the first adapter.
    """
    (first, reference), *others = checkpoints.items()
    for name, checkpoint in others:
        wanted = {
            "method": [c["peft"]["method"] for c in (reference, checkpoint)],
            "backbone": [c["peft"]["backbone"] for c in (reference, checkpoint)],
            "frozen weights": [c["peft"]["fingerprint"] for c in (reference, checkpoint)],
            "classes": [c["identity"] for c in (reference, checkpoint)],
        }
        for what, (one, other) in wanted.items():
            if one != other:
                raise ValueError(
                    f"adapters {first!r} and {name!r} differ in {what}: {str(one)[:100]} and {str(other)[:100]}; a "
                    "batch can mix adapters of one method, backbone and list of classes only"
                )


def own_tensors(model: Any) -> dict[str, Tensor]:
    """The delta of a model and all buffers of its backbone that a plain one lacks, by name."""
    added = {name: tensor for name, tensor in model.named_buffers() if name.startswith("backbone.")}
    plain = {f"backbone.{name}" for name in model.plain_keys}
    found = {name: tensor for name, tensor in added.items() if name not in plain} | model.delta_state_dict()
    return {name: tensor.detach() for name, tensor in found.items()}


def check_shapes(found: Mapping[str, Mapping[str, Tensor]], method: str) -> None:
    """Refuse adapters whose tensors have other names or sizes.

    Raises:
        ValueError: With the first of them.
    """
    (first, reference), *others = found.items()
    for name, tensors in others:
        for key in sorted(reference.keys() | tensors.keys()):
            one, other = (t[key].shape if key in t else None for t in (reference, tensors))
            if one != other:
                sizes = " and ".join("none" if size is None else str(tuple(size)) for size in (one, other))
                raise ValueError(
                    f"adapters {first!r} and {name!r} of {method} have other sizes of {key}: {sizes}; a batch can mix "
                    "adapters of equal options only"
                )


def differing(found: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """The tensors in which adapters differ, by the names of the adapters."""
    first, *others = found.values()
    keys = [key for key, tensor in first.items() if not all(torch.equal(tensor, other[key]) for other in others)]
    return {name: {key: tensors[key] for key in keys} for name, tensors in found.items()}
