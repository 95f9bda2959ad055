"""Strategy for backbones that do not fit on one device: torch's FSDP2."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer

from backbones.blocks import attention_blocks, convolutional_blocks
from callbacks.measures import forward_gflops
from checkpoints.fingerprint import fingerprint
from checkpoints.whole import shard_like, whole
from methods.core.checkpoint import DeltaCheckpoint

ENTRIES = ("forward_features", "forward_head")  # methods of a timm model that a task calls instead of ``forward``


class Sharded(ModelParallelStrategy):
    """Keeps a part of each parameter on each device, trained and frozen ones alike (FSDP2).

    A block has its whole weights only while it computes; the devices send each other their parts. Checkpoints hold the
    delta in whole tensors, as those of all other strategies. A run can therefore resume with another number of
    devices, or with another strategy.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def connect(self, model: LightningModule) -> None:
        """Take the model of a run.

        Raises:
            ValueError: If it cannot be sharded, with its method and what to use instead.
        """
        check_method(model)
        super().connect(model)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    # the model

    def setup(self, trainer: Trainer) -> None:
        # the order of all plain strategies: cast, move, build the optimizer. ModelParallelStrategy casts shards
        Strategy.setup(self, trainer)
        if trainer.state.fn == TrainerFn.FITTING:
            # buffers of whole weights are made by the first pass. In an evaluation before the first step they would be
            # tensors of the inference mode, of which autograd refuses to save any
            forward_gflops(self.module)

    def model_to_device(self) -> None:
        self.check_ranks()
        shard(self.module, self.device_mesh["data_parallel"])
        super().model_to_device()

    @property
    def module(self) -> DeltaCheckpoint:
        assert isinstance(self.lightning_module, DeltaCheckpoint)
        return self.lightning_module

    def check_ranks(self) -> None:
        """Refuse ranks with different values, because each rank gives its part of a tensor.

        Raises:
            ValueError: If frozen weights or initial values differ.
        """
        here = self.module.fingerprint, fingerprint(whole(self.module.delta_state_dict()))
        equal = torch.tensor(float(self.broadcast(here) == here), device=self.root_device)
        if self.reduce(equal, reduce_op="sum") < self.world_size:
            raise ValueError(
                "trainer.strategy=Sharded: the ranks have different initial values; set seed_everything, and give all "
                "ranks the same weight file"
            )

    # checkpoints

    def lightning_module_state_dict(self) -> dict[str, Tensor]:
        return whole(self.module.delta_state_dict())

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        own = self.module.state_dict()
        state = {name: shard_like(tensor, own[name]) for name, tensor in checkpoint["state_dict"].items()}
        Strategy.load_model_state_dict(self, {"state_dict": state}, strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return whole(Strategy.optimizer_state(self, optimizer))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        states = [
            sharded_state(state, optimizer)
            for state, optimizer in zip(checkpoint["optimizer_states"], self.optimizers, strict=True)
        ]
        Strategy.load_optimizer_state_dict(self, {"optimizer_states": states})

    load_checkpoint = Strategy.load_checkpoint
    restore_checkpoint_after_setup = Strategy.restore_checkpoint_after_setup
    lightning_restore_optimizer = Strategy.lightning_restore_optimizer


def check_strategy(strategy: Strategy) -> None:
    """Refuse strategies of Lightning that change parameters in their own way, or leave the sharding to the model.

    Raises:
        ValueError: With the strategy and what to use instead.
    """
    plain = isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)) and not isinstance(strategy, DeepSpeedStrategy)
    if not plain and not isinstance(strategy, Sharded):
        raise ValueError(
            f"trainer.strategy={type(strategy).__name__}: expected one device or ddp, or configs/trainer/fsdp.yaml "
            "for a backbone that does not fit on one device"
        )


def check_method(model: LightningModule) -> None:
    """Refuse a model of which a part cannot be sharded.

    Raises:
        ValueError: With the names of the methods.
    """
    refused = [type(model).__name__]
    if isinstance(model, DeltaCheckpoint):
        own = [cls for cls in model.own_classes() if issubclass(cls, DeltaCheckpoint)]
        refused = [cls.__name__ for cls in own if not vars(cls).get("shardable")]
    if refused:
        raise ValueError(
            f"trainer.strategy=Sharded: {', '.join(refused)} cannot be sharded; use ddp (configs/trainer/ddp.yaml), or "
            "a method of the list in configs/trainer/fsdp.yaml"
        )


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shard the parameters of a module over the devices of a mesh, in place; a second call has no effect.

    Each block of the backbone is one group, whose weights are whole at the same time. The rest is another one.

    Args:
        module: A model on any device; it comes to that of this rank, one group after the other.
        mesh: The devices, in one dimension.
    """
    for child in module.children():
        if isinstance(child, FSDPModule) or not any(True for _ in child.parameters()):
            continue
        for block in [*attention_blocks(child), *(block for block, _ in convolutional_blocks(child))]:
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
        # the rest too, so that outside of ``forward`` all parameters are shards
        fully_shard(child, mesh=mesh, reshard_after_forward=True)
        for name in ENTRIES:
            if hasattr(child, name):
                register_fsdp_forward_method(child, name)


def sharded_state(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """State of an optimizer in shards.

    Args:
        state: The state, in whole tensors.
        optimizer: The optimizer that it is for. A tensor is sharded as its parameter is, if it has the same shape.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    indices = [index for group in state["param_groups"] for index in group["params"]]
    sharded = {}
    for index, parameter in zip(indices, parameters, strict=True):
        entries = state["state"].get(index, {})
        fits = {k: isinstance(v, torch.Tensor) and v.shape == parameter.shape for k, v in entries.items()}
        sharded[index] = {k: shard_like(v, parameter) if fits[k] else v for k, v in entries.items()}
    return {**state, "state": {index: entries for index, entries in sharded.items() if entries}}
