"""Hydra."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from methods import PEFTMethod
from tests.support.golden import Golden, head_parameters

# with the classifiers of VTAB-1k, 49.5 classes on average, this is the paper's 0.28M
COUNTS = {"vit_base_patch16_224": 239_712}
IDENTITY: dict[str, Any] | None = {}
Build = Callable[..., PEFTMethod]
PLACES = {
    "hydra_mlp_par": "fc2.hydra.parallel",
    "hydra_mlp_seq": "fc2.hydra.sequential",
    "hydra_proj_par": "proj.hydra.parallel",
    "hydra_proj_seq": "proj.hydra.sequential",
}


def check_hydra(golden: Golden) -> None:
    settings = golden.config["method"]
    model: Any = golden.build("hydra", hydra_rank=settings["dim"], hydra_scale=settings["scale"])
    ours: dict[str, Tensor] = {}
    for name, value in golden.part("peft").items():
        place = name.replace("_proj.", ".")  # down_proj and up_proj of the published layers
        for theirs, our in PLACES.items():
            place = place.replace(theirs, our)
        ours[name] = model.backbone.get_parameter(place)
        ours[name].data.copy_(value)
    assert len(ours) == sum(".hydra." in name for name, _ in model.backbone.named_parameters())
    golden.check_logits(model)
    golden.check_gradients(model, ours | head_parameters(model))
    golden.check_merge(model)


GOLDEN = {"hydra": check_hydra}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hydra_rank": 0}, "^hydra_rank=0: expected a positive rank$"),
        ({"hydra_scale": 0.0}, r"^hydra_scale=0\.0: expected a positive number; at 0 nothing would train$"),
        ({"hydra_dropout": 1.0}, r"^hydra_dropout=1\.0: expected a probability of at least 0 and below 1$"),
    ],
    ids=str,
)
def test_refusals(options: dict[str, Any], message: str, build: Build) -> None:
    with pytest.raises(ValueError, match=message):
        build("hydra", **options)
