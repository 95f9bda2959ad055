"""DiffFit."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from methods import PEFTMethod
from tests.conftest import perturb
from tests.support.golden import Golden, head_parameters

# 102,912 biases, 25 norm weights and 24 scales of 768: 0.141M, as the tables of arXiv:2409.16434 print
COUNTS = {"vit_base_patch16_224": 102_912 + (25 + 24) * 768}
IDENTITY: dict[str, Any] | None = {}
Build = Callable[..., PEFTMethod]
PLACES = {"difffit_gamma1": "attn.proj.difffit.gamma", "difffit_gamma2": "mlp.fc2.difffit.gamma"}


def check_difffit(golden: Golden) -> None:
    model: Any = golden.build("difffit")
    ours: dict[str, Tensor] = {}
    for name, value in golden.part("peft").items():
        place = name
        for theirs, our in PLACES.items():
            place = place.replace(theirs, our)
        ours[name] = model.backbone.get_parameter(place)
        ours[name].data.copy_(value)
    trained = {name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad}
    assert len(ours) + len(head_parameters(model)) == len(trained)
    golden.check_logits(model)
    golden.check_gradients(model, ours | head_parameters(model))
    golden.check_merge(model)


GOLDEN = {"difffit": check_difffit}


def test_a_scale_multiplies_its_branch(build: Build) -> None:
    model: Any = build("difffit")
    model.configure_model()
    perturb(model)
    block, x = model.backbone.blocks[0], torch.randn(2, 5, 48)
    gamma = [branch.difffit.gamma.data.clone() for branch in (block.attn.proj, block.mlp.fc2)]
    adapted = block(x)
    for branch in (block.attn.proj, block.mlp.fc2):
        branch.difffit.gamma.data.fill_(1.0)
    middle = x + gamma[0] * block.attn(block.norm1(x))
    torch.testing.assert_close(adapted, middle + gamma[1] * block.mlp(block.norm2(middle)))
