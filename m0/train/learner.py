"""A model that learns: which of its parameters are trained, how it is spread over processes, and its optimizer's state."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from m0.engine.batch import Batch
from m0.errors import TrainError
from m0.model.reranker_model import RerankerModel
from m0.model.rotary import working_dtype
from m0.reranker import Reranker
from m0.train.config import Stage, TrainConfig

ADAPTER_NAME = "trained"
"""Name of the adapter while it is trained."""
OPTIMIZER_STATE_KEYS = ("exp_avg", "exp_avg_sq", "step")


class PairScorer(nn.Module):
    """A packed batch -> its logits, as one module that can be wrapped for many processes.

    Args:
        model: the model.
        trains_vision: whether gradients reach the vision tower.
        always_run_vision: show the tower a small grey picture when a batch has none. Where parameters are spread over processes,
            every process must take the same path through the model.
    """

    def __init__(self, model: RerankerModel, trains_vision: bool, always_run_vision: bool) -> None:
        super().__init__()
        self.model, self.trains_vision, self.always_run_vision = model, trains_vision, always_run_vision

    def forward(self, batch: Batch) -> Tensor:
        """Logits, (prompts,)."""
        unused = None
        with torch.set_grad_enabled(self.trains_vision and torch.is_grad_enabled()):
            features = batch.compute_visual_features(self.model)
            if features is None and self.always_run_vision:
                config = self.model.config.vision
                grid = (config.spatial_merge_size, config.spatial_merge_size)
                unused = self.model.vision(torch.zeros(grid[0] * grid[1], config.patch_dim, device=self.model.device), [grid])
        logits = batch.score(self.model, features)
        return logits if unused is None else logits + 0.0 * unused.sum().to(logits.dtype)


class Learner:
    """One stage's model, spread over processes if there are several, with AdamW over what the stage trains.

    Args:
        config, stage: what to train.
        trained: values of what earlier stages have trained, by parameter name.

    Attributes:
        reranker: for encoding, and for scoring in one process.
        parameters: what this stage trains, by name.
    """

    def __init__(self, config: TrainConfig, stage: Stage, trained: Mapping[str, Tensor]) -> None:
        self.config, self.stage = config, stage
        self.reranker = load_reranker(config, trained)
        model = self.reranker.model
        trained_names = set(trained_parameter_names(model, stage.train))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained_names)
        if config.gradient_checkpointing:
            for layer in (*model.decoder.layers, *model.vision.blocks):
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        trains_vision = any(name.startswith("vision.") for name in trained_names)
        self.is_distributed = dist.is_initialized()
        sharded = self.is_distributed and config.parallel == "fsdp"
        scorer = PairScorer(model, trains_vision, always_run_vision=self.is_distributed and (trains_vision or sharded))
        self.scorer: nn.Module = scorer
        if sharded:
            self._shard(scorer)
        elif self.is_distributed:
            self.scorer = DistributedDataParallel(scorer, broadcast_buffers=False)
        model.train()
        self.parameters = {name: parameter for name, parameter in model.named_parameters() if name in trained_names}
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self.parameters.values() if p.ndim > 1], "weight_decay": stage.weight_decay},
                {"params": [p for p in self.parameters.values() if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=stage.learning_rate,
            betas=stage.betas,
        )

    def _shard(self, scorer: PairScorer) -> None:
        """FSDP2: the weights of each layer are shared out over the processes, and gathered while the layer computes."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        kind = torch.device(_process_device(self.config) or ("cuda" if torch.cuda.is_available() else "cpu")).type
        mesh = init_device_mesh(kind, (dist.get_world_size(),))
        for layer in (*scorer.model.decoder.layers, *scorer.model.vision.blocks):
            fully_shard(layer, mesh=mesh)
        fully_shard(scorer, mesh=mesh)

    def hold_gradient_sync(self, hold: bool) -> None:
        """While held, backward passes add up in each process; the one after releases them to be averaged over processes."""
        if isinstance(self.scorer, DistributedDataParallel):
            self.scorer.require_backward_grad_sync = not hold
        elif self.is_distributed:
            self.scorer.set_requires_gradient_sync(not hold)  # type: ignore[operator]

    def update(self) -> None:
        """One step of AdamW. A parameter that no query of the step reached has a gradient of zero, in one process as in many
        (where it may have been reached elsewhere), so that all do the same. Raises TrainError where the step overflows."""
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        try:
            self.optimizer.step()
        except (RuntimeError, OverflowError) as error:
            raise TrainError(f"the update cannot be computed: {str(error).splitlines()[0]}; lower learning_rate") from None

    def clip(self, max_norm: float) -> float:
        """Scale the gradient down to a norm of at most `max_norm`; returns the norm before."""
        norm = nn.utils.clip_grad_norm_(list(self.parameters.values()), max_norm)
        return float(_full_tensor(norm))

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Computes in bfloat16 what can be, where the config says so."""
        if not self.config.autocast:
            return contextlib.nullcontext()
        return torch.autocast(self.reranker.model.device.type, dtype=torch.bfloat16)

    def state(self) -> dict[str, Tensor]:
        """All that a continued run needs, whole and on the CPU, under names that do not depend on the number of processes:
        tensors of any shape."""
        tensors = {f"parameter/{name}": _cpu_copy(parameter) for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for moment, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{moment}/{name}"] = _cpu_copy(value)
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up a state that `state` gave: tensors of any shape, by name."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(_placed_like(parameter, tensors[f"parameter/{name}"]))
                if f"step/{name}" not in tensors:
                    continue  # saved before the first update
                self.optimizer.state[parameter] = {
                    moment: tensors[f"step/{name}"].clone()
                    if moment == "step"
                    else _placed_like(parameter, tensors[f"{moment}/{name}"])
                    for moment in OPTIMIZER_STATE_KEYS
                }


def load_reranker(config: TrainConfig, trained: Mapping[str, Tensor], finished: bool = False) -> Reranker:
    """The model to train, with its adapter if there is one, and with what earlier stages have trained.

    `trained`: values of parameters, of any shape, by name. `finished`: only to be written, so it stays on the CPU.
    """
    # FSDP moves and shards one layer after another, so that no device ever holds the whole model.
    sharded = dist.is_initialized() and config.parallel == "fsdp"
    device = "cpu" if sharded or finished else _process_device(config)
    reranker = Reranker.from_pretrained(config.model, dtype=config.dtype, device=device, max_pixels=config.max_pixels)
    if config.trains_lora:
        reranker.adapters.add(ADAPTER_NAME, config.adapter_config)
    model = reranker.model
    if config.trains_head:
        model.head.to(working_dtype(model.dtype))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in trained.items():
            parameters[name].copy_(value)
    return reranker


def trained_parameter_names(model: RerankerModel, kind: Literal["lora", "head", "all"]) -> list[str]:
    """Names of the parameters that a stage trains."""
    names = [name for name, _ in model.named_parameters()]
    if kind == "lora":
        return [name for name in names if f".adapters.{ADAPTER_NAME}." in name]
    return [name for name in names if name.startswith("head.")] if kind == "head" else names


def learning_rate_factor(step: int, steps: int, warmup: float, final: float) -> float:
    """Rises over the first `warmup` share of the steps, then falls to `final` along a cosine."""
    rising = warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    share = (step - rising) / max(steps - rising, 1)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share))


def sum_over_processes(values: Iterable[float]) -> list[float]:
    """Each value's sum over all processes (the values themselves where there is one)."""
    tensor = torch.tensor(list(values), dtype=torch.float64)
    if dist.is_initialized():
        if dist.get_backend() == "nccl":
            tensor = tensor.cuda()
        dist.all_reduce(tensor)
    return tensor.tolist()


def _process_device(config: TrainConfig) -> str | None:
    if dist.is_initialized() and config.device is None and torch.cuda.is_available():
        return f"cuda:{torch.cuda.current_device()}"
    return config.device


def _full_tensor(value: Any) -> Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _cpu_copy(value: Tensor) -> Tensor:
    return _full_tensor(value.detach()).cpu().clone().contiguous()


def _placed_like(parameter: Any, value: Tensor) -> Tensor:
    """A whole tensor in the place and shape of a parameter, which may be spread over processes."""
    value = value.to(parameter.device, parameter.dtype)
    if not hasattr(parameter, "device_mesh"):
        return value.clone()
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, parameter.device_mesh, parameter.placements)
