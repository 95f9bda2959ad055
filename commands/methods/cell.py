"""One method on one network: is the network refused, and if not, does the method train, and does it merge."""

import warnings
from copy import deepcopy
from typing import Any, ClassVar, Literal, NamedTuple

import timm
import torch
from torch import Tensor, nn

from backbones.evaluating import evaluating
from backbones.timm_models import bias_arguments, reset_head
from callbacks.scoring.undisturbed import unchanged
from commands.methods.families import Family
from lightning_modules.batch import Batch
from lightning_modules.classification import Classification
from methods import METHODS, PEFTMethod, compose
from methods.core.closed_form import ClosedForm
from methods.core.selective import Selective

CLASSES = 3
LABELS = (0, 0, 1, 1)  # the contrastive loss of GPS compares images of a class
CLOSE = 1e-4  # largest difference of a merged model's outputs, relative to the largest output
# what a method needs to fit a network that is a few channels wide
OPTIONS: dict[str, dict[str, Any]] = {
    "diff_pruning": {"diff_alpha_init": 1.0},  # half open, because an open gate has no gradient
    "hf_peft": {"peft_config": {"peft_type": "LORA", "r": 2, "target_modules": "all-linear"}},
    "noah": {"noah_sizes": [2, 8]},
    "sct": {"sct_channels": 4},
    "sidetune": {"sidetune_pretrained": False},
    "spt": {"spt_budget": 0.3, "spt_alpha": 0.5, "spt_beta": 1.3},
    "width_scaling": {"width_base": 48},
}


class Outcome(NamedTuple):
    """Result of a method on a network.

    Args:
        state: ``merges``: trains and merges into the plain network. ``trains``: trains; ``message`` is the reason why
            it does not merge. ``refused``: refused before any data are read, with ``message``.
        message: Reason, empty for ``merges``.
    """

    state: Literal["merges", "trains", "refused"]
    message: str = ""


class SmallClassification(Classification):
    """Classification that copies a network which was built already, because building takes longer than a step."""

    built: ClassVar[dict[str, nn.Module]] = {}  # by name and arguments

    def build(self) -> None:
        network = self.built.get(repr((self.backbone_name, self.backbone_args)))
        if network is None:
            super().build()
        else:
            self.backbone = deepcopy(network)
            reset_head(self.backbone, self.num_classes, self.head_init)


def outcome(method: str, family: Family, network: nn.Module) -> Outcome:
    """Adapt a copy of a network, train one step and merge.

    Args:
        method: Name of the method, or of several joined by ``+``.
        family: Name, arguments and input size of the network.
        network: Plain timm model; it stays as it is.

    Raises:
        AssertionError: If the method neither works nor refuses, with what is wrong.
    """
    names = method.split("+")
    cls = compose(*(METHODS[name] for name in names), task=SmallClassification)
    options = {option: value for name in names for option, value in OPTIONS.get(name, {}).items()}
    torch.manual_seed(0)
    images = torch.randn(len(LABELS), 3, family.size, family.size)
    batch = Batch.of(images, torch.tensor(LABELS))
    SmallClassification.built = {repr((family.model, family.args)): network}
    try:
        model: Any = cls(
            backbone=family.model, backbone_args=family.args, pretrained=False, num_classes=CLASSES, **options
        )
        model.budget_unit = 1e4  # of SPT, whose budgets are millions of parameters otherwise
        model.adapt_before_data()
    except ValueError as error:
        return Outcome("refused", str(error))
    select(model, batch)
    check_step(model, batch)
    if not model.mergeable:
        return Outcome("trains", model.unmergeable)
    perturb(model)
    try:
        merged = model.merge()
    except TypeError as error:
        return Outcome("trains", str(error))
    return check_merged(model.eval(), merged, family, images)


def select(model: PEFTMethod, batch: Batch) -> None:
    """Score a batch and adapt, for a method that selects from data; compute a method in closed form from the batch."""
    if isinstance(model, ClosedForm):
        with torch.no_grad(), evaluating(model):
            (features,) = model.frozen_features(batch.inputs)
            model.compute(features, torch.arange(batch.size) % CLASSES)  # an image of each class
    if model.adapted:
        return
    assert isinstance(model, Selective)
    with warnings.catch_warnings(), unchanged(model):
        warnings.simplefilter("ignore", UserWarning)  # about choices that a small network leaves
        selection = scored(model, batch)
    model.use_selection(selection)
    model.configure_model()
    assert model.adapted, "the backbone is not adapted, although there is a selection"


def scored(model: Selective, batch: Batch) -> dict[str, Tensor]:
    """Selection from the scores of a batch."""
    model.eval().requires_grad_(False)
    with model.build_scorer() as scorer:
        if scorer.needs_data:
            scorer.observe(batch.targets)
            loss = model.score_loss(batch)
            if loss is not None:
                scorer.backward(loss)
        scorer.check()
        return model.select({name: total.cpu() for name, total in scorer.sums.items()})


def check_step(model: PEFTMethod, batch: Batch) -> None:
    """Train one step: every trained parameter has a gradient, and frozen weights stay."""
    model.train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    loss = model.loss(batch)
    loss.backward()
    without = [name for name, p in trained.items() if p.grad is None]
    assert not without, f"no gradient: {', '.join(without[:5])}"
    broken = [name for name, p in trained.items() if p.grad is not None and not p.grad.isfinite().all()]
    assert not broken, f"gradient that is not finite: {', '.join(broken[:5])}"
    assert any(p.grad.any() for p in trained.values() if p.grad is not None), "all gradients are zero"
    torch.optim.Adam(trained.values(), lr=1e-4).step()  # of equal size in networks with huge gradients
    after = dict(model.named_parameters())
    moved = [name for name, value in before.items() if not torch.equal(after[name], value)]
    assert not moved, f"frozen, but changed: {', '.join(moved[:5])}"


def perturb(model: PEFTMethod) -> None:
    """Move every trained parameter away from its initial value, so that a merge must take all of them over."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.002)


@torch.no_grad()
def check_merged(model: PEFTMethod, merged: nn.Module, family: Family, images: Tensor) -> Outcome:
    """A merged model loads into the plain network and gives the outputs of the adapted one."""
    assert model.plain_keys is not None
    state = merged.state_dict()
    lost = sorted(model.plain_keys - state.keys())
    assert not lost, f"the merged model lacks {', '.join(lost[:5])}"
    extra = sorted(state.keys() - model.plain_keys)
    argument: dict[str, Any] = dict(bias_arguments(family.model, family.args, merged)) if extra else {}
    if extra and not argument:
        return Outcome("trains", f"no weight of the plain model can take {extra[0]}")
    plain = timm.create_model(family.model, num_classes=CLASSES, **family.args, **argument)
    plain.load_state_dict(state)
    difference = relative_difference(model, plain.eval(), images)
    if difference >= CLOSE:  # again in fp64, because some deep networks enlarge rounding errors
        difference = relative_difference(model.double(), plain.double(), images.double())
    assert difference < CLOSE, f"merged outputs differ by {difference:.1e}"
    return Outcome("merges")


def relative_difference(first: nn.Module, second: nn.Module, images: Tensor) -> float:
    """Largest difference of two networks' outputs, relative to the largest output of the first one."""
    expected = first(images)
    return float((second(images) - expected).abs().max() / expected.abs().max())
