"""Adam without epsilon."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamATan2(Optimizer):
    """Adam-atan2 (Everett et al., ICML 2024, arXiv:2407.05872), unchanged by the scale of the gradients.

    ``theta <- (1 - lr weight_decay) theta - lr a atan2(m, b sqrt(v))`` with the bias-corrected moments m and v of Adam.
    The moments are fp32 for parameters of smaller dtypes. To first order the step is ``a / b`` times that of AdamW. It
    is never larger than ``lr a pi / 2``. In fp32 it is exact for gradients above about 1e-18; below, v underflows.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate.
        betas: Decays of the two moments.
        weight_decay: Decoupled weight decay.
        a: Factor of the step. With 4 / pi, a constant gradient changes a parameter by ``lr`` per step, as with Adam.
        b: Factor of the root inside atan2.
        foreach: Whether the moments of all parameters are updated together; by default only on a GPU.
        maximize: Whether to maximise the loss instead of minimising it.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        a: float = 4 / math.pi,
        b: float = 1.0,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        for name, value in {"lr": lr, "weight_decay": weight_decay}.items():
            if value < 0:
                raise ValueError(f"{name}={value}: expected at least 0")
        for name, value in {"a": a, "b": b}.items():
            if value <= 0:
                raise ValueError(f"{name}={value}: expected a positive number")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={betas}: expected decays of at least 0 and below 1")
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "a": a, "b": b}
        super().__init__(params, defaults | {"foreach": foreach, "maximize": maximize})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters once; returns the loss of ``closure`` if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            foreach = group["foreach"]
            if foreach is None:
                foreach = all(p.is_cuda for p in params)
            # the key has the step count too, because it is lower for a parameter that had no gradient in some steps
            batches: dict[tuple[Any, ...], list[Tensor]] = {}
            for i, p in enumerate(params):
                state = self.state[p]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    for name in MOMENTS:
                        state[name] = torch.zeros_like(p, dtype=moment_dtype(p))
                state["step"] += 1
                key = (int(state["step"]), p.device, p.dtype) if foreach else (i,)
                batches.setdefault(key, []).append(p)
            for batch in batches.values():
                self.update(batch, group)
        return loss

    def update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Update parameters of one device, dtype and step count."""
        (beta1, beta2), lr = group["betas"], group["lr"]
        states = [self.state[p] for p in params]
        first, second = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        grads = [p.grad.to(m.dtype) for p, m in zip(params, first, strict=True)]  # type: ignore[union-attr]
        if group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        step = int(states[0]["step"])
        mean = torch._foreach_div(first, 1 - beta1**step)
        root = torch._foreach_div(second, 1 - beta2**step)
        torch._foreach_sqrt_(root)
        torch._foreach_mul_(root, group["b"])
        updates = [m.atan2_(r) for m, r in zip(mean, root, strict=True)]
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_add_(
            params, [u.to(p.dtype) for u, p in zip(updates, params, strict=True)], alpha=-lr * group["a"]
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load moments in their own precision, because torch would cast them to the dtype of the parameters."""
        super().load_state_dict(state_dict)
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for i, p in zip(saved, params, strict=True):
            for name in MOMENTS if i in state_dict["state"] else ():
                self.state[p][name] = state_dict["state"][i][name].to(p.device, moment_dtype(p), copy=True)


def moment_dtype(parameter: Tensor) -> torch.dtype:
    return torch.float32 if parameter.dtype in (torch.bfloat16, torch.float16) else parameter.dtype
