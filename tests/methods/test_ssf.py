"""SSF."""

from typing import Any

import torch

from tests.methods.golden import LOGITS, Golden, head_parameters

COUNTS = {
    "vit_base_patch16_224": 205_824,
    "vit_small_patch16_224": 102_912,
    "swin_base_patch4_window7_224": 267_264,
    "convnext_base": 255_232,
}
IDENTITY: dict[str, Any] | None = {"ssf_init": "identity"}


def check_ssf(golden: Golden) -> None:
    model = golden.build("ssf")
    with torch.no_grad():
        torch.testing.assert_close(
            golden.plain_backbone()(golden.tensors["input"]), golden.tensors["frozen_logits"], atol=LOGITS, rtol=0
        )
    ours = {}
    for name, value in golden.part("peft").items():
        path, _, kind = name.rpartition(".")
        parameter = model.backbone.get_parameter(f"{path.replace('final', 'norm_pre')}.ssf.{kind}")
        parameter.data.copy_(value.view_as(parameter))
        ours[name] = parameter
    added = {n for n, _ in model.backbone.named_parameters() if ".ssf." in n}
    assert len(added) == len(ours), "the fixture has other pairs than the model"
    golden.check_logits(model)
    golden.check_gradients(model, ours | head_parameters(model))
    merged = golden.check_merge(model)
    assert ("norm_pre.ssf.scale" in merged.state_dict()) == ("final.scale" in golden.part("peft"))


GOLDEN = {"ssf": check_ssf, "ssf_swin": check_ssf, "ssf_convnext": check_ssf}
