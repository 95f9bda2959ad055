"""Values that the host reads later."""

import torch

from lightning_modules.host_copy import HostCopy


def test_value() -> None:
    copy = HostCopy(torch.tensor([1.0, 2.0]))
    assert copy.read().tolist() == [1.0, 2.0]
    assert copy.copy.device.type == "cpu"
