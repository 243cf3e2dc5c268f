"""DeepSpeed's ZeRO as a strategy: Lightning's, on CPUs too, with this trainer's steps, precision and checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from lightning_fabric.utilities.seed import reset_seed
from pytorch_lightning.plugins.precision import DeepSpeedPrecision
from pytorch_lightning.strategies import DeepSpeedStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor, zeros

from llm_scale.deepspeed_tools import load_deepspeed
from llm_scale.trainer.checkpoints import ShardedCheckpoints, load_tensors
from llm_scale.trainer.settings import Parallel

AVERAGES = ("exp_avg", "exp_avg_sq")  # AdamW's, of each weight


def with_gradients(optimizer: Any) -> Any:
    """A view of DeepSpeed's optimiser after a backward pass, in which the parts of the gradient that this rank's next
    step takes are where other optimisers have theirs."""
    parts = [SimpleNamespace(grad=part) for group in optimizer.averaged_gradients.values() for part in group]
    return SimpleNamespace(param_groups=[{**optimizer.param_groups[0], "params": parts}])


@contextlib.contextmanager
def whole_shapes(module: nn.Module) -> Iterator[None]:
    """Let parameters that stage 3 has cut show their shape, of a number that is repeated; without it they have none."""
    cut = [(parameter, parameter.data) for parameter in module.parameters() if hasattr(parameter, "ds_shape")]
    for parameter, data in cut:
        parameter.data = data.new_zeros(()).expand(parameter.ds_shape)
    try:
        yield
    finally:
        for parameter, data in cut:
            parameter.data = data


class Autocast(DeepSpeedPrecision):
    """bf16-mixed as the other strategies have it: float32 weights, and 16 bits where autocast takes them. DeepSpeed's
    own "bf16" keeps the model's weights in 16 bits, beside their float32 copies."""

    def __init__(self, device: str, mixed: bool) -> None:
        super().__init__("32-true")
        self._device, self._mixed = device, mixed

    @contextlib.contextmanager
    def forward_context(self) -> Iterator[None]:
        with torch.autocast(self._device, torch.bfloat16, enabled=self._mixed):
            yield


class DeepSpeed(ShardedCheckpoints, DeepSpeedStrategy):
    """ZeRO's stages 1 to 3 by DeepSpeed.

    BabyGPT makes a mean of the gradients when a step's backward passes are over, and clips them: DeepSpeed is told
    nothing of clipping, nor of the number of batches.
    """

    def __init__(self, parallel: Parallel) -> None:
        load_deepspeed()
        super().__init__(
            config={
                "zero_allow_untested_optimizer": True,  # torch's own AdamW
                # Without the second, stage 3 leaves every parameter below 100,000 numbers whole on every rank.
                "zero_optimization": {"stage": parallel.zero_stage, "stage3_param_persistence_threshold": 0},
                "gradient_clipping": 0.0,
                "train_micro_batch_size_per_gpu": 1,  # of its log alone
            },
            precision_plugin=Autocast(parallel.device, parallel.precision == "bf16-mixed"),
            timeout=timedelta(seconds=parallel.timeout),
        )
        self._groups: list[list[str]] = []

    def setup_environment(self) -> None:
        super(DeepSpeedStrategy, self).setup_environment()  # its own refuses CPUs, on which DeepSpeed itself runs

    def setup_distributed(self) -> None:
        if self.root_device.type == "cuda":
            super().setup_distributed()
            return
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def _init_optimizers(self) -> Any:
        """The optimiser of whole parameters, whose names its groups have from then on."""
        optimizer, scheduler = super()._init_optimizers()
        names = {id(parameter): name for name, parameter in self._module.named_parameters()}
        self._groups = [[names[id(each)] for each in group["params"]] for group in optimizer.param_groups]
        return optimizer, scheduler

    def _setup_model_and_optimizer(self, model: nn.Module, optimizer: Any, lr_scheduler: Any = None) -> tuple[Any, Any]:
        """DeepSpeed's engine, which takes the device from the rank's number; Lightning tells it the index of a GPU."""
        engine, optimizer, *_ = load_deepspeed().initialize(
            model=model, optimizer=optimizer, lr_scheduler=lr_scheduler, config=self.config, dist_init_required=False
        )
        return engine, optimizer

    def _initialize_deepspeed_train(self, model: nn.Module) -> None:
        """The engine, and AdamW's states at once: DeepSpeed ties them to the parameters after the first group's first
        step, when the second group has none."""
        super()._initialize_deepspeed_train(model)
        optimizer = self.deepspeed_engine.optimizer
        for flat in self._flats:
            averages = {key: torch.zeros_like(flat, requires_grad=False) for key in AVERAGES}
            optimizer.state[flat].update(step=torch.zeros((), device=flat.device), **averages)
        if not self.zero_stage_3:
            optimizer._lazy_init_hp_params_optimizer_state()

    @property
    def _flats(self) -> list[Tensor]:
        """The float32 weights of which this rank's optimiser has the states."""
        optimizer = self.deepspeed_engine.optimizer
        three = self.zero_stage_3
        flats: list[Tensor] = (
            optimizer.fp32_partitioned_groups_flat if three else optimizer.single_partition_of_fp32_groups
        )
        return flats

    @property
    def handles_gradient_accumulation(self) -> bool:
        return False  # Lightning then asks for a step where BabyGPT has a whole one

    @contextlib.contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        yield  # without DDP's `no_sync`, which an engine has no form of where gradients are cut

    def backward(self, closure_loss: Tensor, optimizer: Any, *arguments: Any, **options: Any) -> Tensor:
        assert self.lightning_module is not None
        last = not self.lightning_module.trainer.fit_loop._should_accumulate()
        self.deepspeed_engine.set_gradient_accumulation_boundary(last)
        # Lightning has divided the loss by the number of batches already.
        return super().backward(closure_loss, optimizer, *arguments, scale_wrt_gas=False, **options)

    # -- checkpoints ----------------------------------------------------------------------------------------------

    @cached_property
    def _mesh(self) -> DeviceMesh:
        return init_device_mesh(self.root_device.type, (self.world_size,))

    def _part(self, whole: Tensor) -> Tensor:
        """A rank's part along the first dimension, as `fully_shard` has it, so that no rank holds the whole."""
        return distribute_tensor(whole, self._mesh, [Shard(0)], src_data_rank=None).clone() if whole.ndim else whole

    def lightning_module_state_dict(self) -> dict[str, Any]:
        from deepspeed.utils import safe_get_full_fp32_param

        return {
            name: self._part(safe_get_full_fp32_param(value)) if isinstance(value, nn.Parameter) else value
            for name, value in self._module.state_dict(keep_vars=True).items()
        }

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        from deepspeed.utils import safe_set_full_fp32_param

        values = self._module.state_dict(keep_vars=True)
        weights = {name: value for name, value in values.items() if isinstance(value, nn.Parameter)}
        parts = {name: self._empty(checkpoint["state_dict"][name].shape) for name in weights}
        load_tensors(self._path, {"model": {**values, **parts}})
        for name, weight in weights.items():
            whole = parts.pop(name).full_tensor()
            with load_deepspeed().zero.GatheredParameters([weight], modifier_rank=0), torch.no_grad():
                weight.copy_(whole)
            safe_set_full_fp32_param(weight, whole)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        from deepspeed.utils import safe_get_full_optimizer_state

        step = self.deepspeed_engine.optimizer.state[self._flats[0]]["step"]
        weights = dict(self._module.named_parameters())
        state = {
            name: {
                "step": step.clone(),
                **{key: self._part(safe_get_full_optimizer_state(weights[name], key)) for key in AVERAGES},
            }
            for names in self._groups
            for name in names
        }
        groups = zip(self.deepspeed_engine.optimizer.param_groups, self._groups, strict=True)
        return {"state": state, "param_groups": [{**group, "params": names} for group, names in groups]}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        weights, ours = dict(self._module.named_parameters()), self.deepspeed_engine.optimizer
        shapes = {name: checkpoint["state_dict"][name].shape for names in self._groups for name in names}
        state: dict[str, dict[str, Any]] = {
            name: {"step": torch.zeros(()), **{key: self._empty(shape) for key in AVERAGES}}
            for name, shape in shapes.items()
        }
        load_tensors(self._path, {"optimizer_0": state})
        for name, values in state.items():
            step = values["step"]  # of all the same
            for key in AVERAGES:
                safe_set_full_optimizer_state(weights[name], values.pop(key).full_tensor(), key)
        for flat in self._flats:
            ours.state[flat]["step"].copy_(step)
        (saved,) = checkpoint["optimizer_states"]
        for group, values in zip(ours.param_groups, saved["param_groups"], strict=True):
            group.update({key: value for key, value in values.items() if key != "params"})

    def _empty(self, shape: torch.Size) -> Any:
        return zeros(shape, dtype=torch.float32, device_mesh=self._mesh, placements=[Shard(0)])
