"""Reference outputs of the original implementations, and how a model is compared with them."""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.classification import Classification
from methods import METHODS, PEFTMethod

LOGITS, GRADIENTS = 1e-5, 2e-5
Tensors = dict[str, Tensor]


class Golden:
    """One fixture: its tensors, and the model that its ``config`` describes."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            self.tensors: Tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.config = json.loads((file.metadata() or {}).get("config", "{}"))

    def part(self, prefix: str) -> Tensors:
        return {n.removeprefix(f"{prefix}."): t for n, t in self.tensors.items() if n.startswith(f"{prefix}.")}

    def plain_backbone(self) -> nn.Module:
        arguments = dict(self.config["backbone"])
        model = getattr(timm.models, arguments.pop("arch"))(**arguments)
        model.load_state_dict(self.part("backbone"))
        return model.eval()

    def build(self, method: str, **options: Any) -> PEFTMethod:
        """The method on the backbone of the fixture, without Lightning's own way through names and files."""
        backbone = self.plain_backbone()

        class Task(Classification):
            def build_backbone(self) -> None:
                self.backbone = backbone

        model = type("Golden", (METHODS[method], Task), {})(num_classes=backbone.num_classes, **options)
        model.configure_model()
        return model.eval()

    def check_logits(self, model: nn.Module) -> None:
        torch.testing.assert_close(model(self.tensors["input"]), self.tensors["logits"], atol=LOGITS, rtol=0)

    def check_gradients(self, model: PEFTMethod, names: dict[str, Tensor]) -> None:
        """Compare every gradient of the file; ``names`` maps the file's parameter names to our parameters."""
        loss = F.cross_entropy(model(self.tensors["input"]), self.tensors["label"].long())
        torch.testing.assert_close(loss.view(1), self.tensors["loss"].view(1), atol=LOGITS, rtol=0)
        model.zero_grad()
        loss.backward()
        expected = self.part("grad")
        assert expected
        assert set(expected) == set(names), set(expected) ^ set(names)
        for name, gradient in expected.items():
            found = names[name].grad
            assert found is not None, name
            torch.testing.assert_close(
                found.view_as(gradient), gradient, atol=GRADIENTS, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
            )

    def check_merge(self, model: PEFTMethod) -> nn.Module:
        merged = model.merge()
        torch.testing.assert_close(merged(self.tensors["input"]), model(self.tensors["input"]), atol=LOGITS, rtol=0)
        return merged


def head_parameters(model: PEFTMethod) -> Tensors:
    return {n: p for n, p in model.backbone.named_parameters() if n.startswith("head.") and p.requires_grad}
