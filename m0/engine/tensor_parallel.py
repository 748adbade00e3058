"""One model over several processes: each holds a part of every layer (Shoeybi et al. 2019, Megatron-LM), through DTensor.

    torchrun --nproc-per-node=2 script.py   # and there: with processes(): split(reranker.model); reranker.rank(...)

Query, key, value, gate and up are cut by outputs (heads, hidden units), the output projection and down by inputs, so that each
layer adds up over processes twice. Of the vision tower the MLPs are cut; embeddings, norms and score head are whole in every
process. All processes make the same calls and get the same scores. It pays for one large batch on several GPUs with a fast
connection; for many documents, sharing these out (`rank(..., shared=True)`) needs no such connection.
"""

from __future__ import annotations

from typing import cast

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from m0.engine.parallel import is_split
from m0.errors import InputError
from m0.model.decoder import Attention
from m0.model.reranker_model import RerankerModel


def split(model: RerankerModel, mesh: DeviceMesh | None = None) -> None:
    """Cut the layers of a model for the processes of a mesh, each of which holds the whole model when it calls this.

    Args:
        mesh: one-dimensional; None: all processes.

    Raises InputError where there are no processes, or where their number does not divide heads and hidden units.
    """
    if not dist.is_initialized():
        raise InputError("a model is split over processes that torchrun has started, within m0.engine.parallel.processes().")
    mesh = init_device_mesh(model.device.type, (dist.get_world_size(),)) if mesh is None else mesh
    parts, config = mesh.size(), model.config.decoder
    for name, count in (
        ("key/value heads", config.num_kv_heads),
        ("MLP units", config.intermediate_size),
        ("vision MLP units", model.config.vision.mlp_size),
    ):
        if count % parts:
            raise InputError(f"the model has {count} {name}, which {parts} processes cannot share evenly.")
    if is_split(model):
        raise InputError("the model is split already.")
    if any(type(module).__name__ != "Linear" for module in model.modules() if hasattr(module, "in_features")):
        raise InputError(
            "a model with an adapter or in 8 bits cannot be split; merge the adapter, save the model and load that."
        )
    by_outputs, by_inputs = ColwiseParallel(), RowwiseParallel()
    for layer in model.decoder.layers:
        plan: dict[str, ParallelStyle] = {f"self_attn.{name}_proj": by_outputs for name in "qkv"} | {
            "self_attn.o_proj": by_inputs
        }
        plan |= {"mlp.gate_proj": by_outputs, "mlp.up_proj": by_outputs, "mlp.down_proj": by_inputs}
        parallelize_module(layer, mesh, plan)
        attention = cast(Attention, layer.self_attn)
        attention.num_heads //= parts
        attention.num_kv_heads //= parts
    for block in model.vision.blocks:
        parallelize_module(block, mesh, {"mlp.fc1": by_outputs, "mlp.fc2": by_inputs})
