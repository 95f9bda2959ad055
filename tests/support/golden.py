"""Reference outputs of the original implementations, and how a model is compared with them."""

import json
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from lightning import LightningDataModule, Trainer
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from callbacks.scoring.score_before_fit import ScoreBeforeFit
from lightning_modules.batch import Batch
from lightning_modules.classification import Classification
from methods import METHODS, PEFTMethod
from tests.conftest import quiet_trainer

LOGITS, GRADIENTS = 1e-5, 2e-5
Tensors = dict[str, Tensor]


class Golden:
    """One fixture: its tensors, and the model that its ``config`` describes."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            self.tensors: Tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.metadata: dict[str, str] = file.metadata() or {}
        self.config = json.loads(self.metadata.get("config", "{}"))

    def part(self, prefix: str) -> Tensors:
        return {n.removeprefix(f"{prefix}."): t for n, t in self.tensors.items() if n.startswith(f"{prefix}.")}

    def plain_backbone(self) -> nn.Module:
        arguments = dict(self.config["backbone"])
        headless = arguments.pop("num_classes_of_backbone_state", None) == 0
        model = getattr(timm.models, arguments.pop("arch"))(**arguments)
        head = {f"head.{name}": tensor for name, tensor in model.head.state_dict().items()} if headless else {}
        model.load_state_dict(head | self.part("backbone"))
        return model.eval()

    def build(self, method: str, **options: Any) -> PEFTMethod:
        """The method, or a stack of them, on the fixture's backbone, without Lightning's own way through files."""
        backbone = self.plain_backbone()

        class Task(Classification):
            def build(self) -> None:
                self.backbone = backbone

        methods = tuple(METHODS[name] for name in method.split("+"))
        model = type("Golden", (*methods, Task), {})(num_classes=backbone.num_classes, **options)
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


class ScoringBatches(LightningDataModule):
    """The batches of a fixture, which a fit scores."""

    def __init__(self, batches: list[Batch]) -> None:
        super().__init__()
        self.batches, self.batch_size = batches, batches[0].size

    def score_batches(self, rank: int, world: int, **options: Any) -> list[Batch]:
        return self.batches[rank::world]

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]

    val_dataloader = train_dataloader


class Kept(ScoreBeforeFit):
    """Keeps the scores."""

    def select(self, trainer: Trainer, pl_module: Any, scores: Tensors) -> Tensors:
        self.found = scores
        return super().select(trainer, pl_module, scores)


def score_in_a_fit(model: PEFTMethod, batches: list[Batch]) -> Tensors:
    """Scores of a fit that ends before its first step; the model has its selection and is adapted afterwards."""
    scoring = Kept()
    with tempfile.TemporaryDirectory() as folder:
        run = quiet_trainer(Path(folder), max_steps=0, num_sanity_val_steps=0, callbacks=[scoring])
        run.fit(model, datamodule=ScoringBatches(batches))
    assert scoring.passes == 1
    model.eval()
    return scoring.found
