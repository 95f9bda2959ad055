"""Values of a GPU that the host reads later, so that it does not wait for the work that is queued after them."""

import torch
from torch import Tensor


class HostCopy:
    """Copy of a tensor in the memory of the host, which is made while the device goes on.

    Args:
        tensor: The tensor, on any device.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.copy = tensor.to("cpu", non_blocking=True)
        self.event: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self.event = torch.cuda.Event()
            self.event.record()

    def read(self) -> Tensor:
        """The copy, after a wait for the work that was queued before it."""
        if self.event is not None:
            self.event.synchronize()
        return self.copy
