"""`m0 info`."""

from __future__ import annotations

import argparse
import json
import textwrap


def run_info(options: argparse.Namespace) -> int:
    """Print a model's sizes; its weights are not read."""
    from m0.checkpoints.files import list_tensors, match_tensors, parameter_shapes
    from m0.checkpoints.hub import locate
    from m0.model.config import RerankerConfig

    directory = locate(options.model)
    config = RerankerConfig.load(directory)
    shapes = parameter_shapes(config)
    matched = match_tensors(list_tensors(directory), shapes, directory)
    parts = {
        part: sum(s.numel() for key, s in shapes.items() if key.startswith(part)) for part in ("vision", "decoder", "head")
    }
    total = sum(parts.values())
    types = sorted({tensor.type for tensor in matched.values()})
    memory = {"float32": 4 * total, "bfloat16 or float16": 2 * total}
    if options.json:
        sizes = {"path": str(directory), **config.sizes(), "parameters": {**parts, "total": total}, "stored_as": types}
        print(json.dumps({**sizes, "memory_bytes": memory}, indent=2))
        return 0
    vision, decoder = config.vision, config.decoder
    embeddings = shapes["decoder.embed_tokens.weight"].numel()
    stored = sum(tensor.num_bytes for tensor in matched.values())
    print(
        textwrap.dedent(f"""\
        {directory}
        vision tower   {_count(parts["vision"])} parameters: {vision.depth} blocks, width {vision.hidden_size}, \
{vision.num_heads} heads of {vision.head_dim}, {vision.patch_size} px patches merged {vision.spatial_merge_size}x{vision.spatial_merge_size}
        decoder        {_count(parts["decoder"])} parameters ({_count(embeddings).strip()} of them embeddings): \
{decoder.num_layers} layers, width {decoder.hidden_size}, {decoder.num_heads} query and {decoder.num_kv_heads} key/value heads \
of {decoder.head_dim}, MLP {decoder.intermediate_size}, vocabulary {decoder.vocab_size}, {decoder.max_positions} positions
        score head     {_count(parts["head"])} parameters
        total          {_count(total)} parameters, stored as {" and ".join(types)}, {stored / 2**20:,.0f} MiB
        memory needed  {memory["float32"] / 2**20:,.0f} MiB in float32, \
{memory["bfloat16 or float16"] / 2**20:,.0f} MiB in bfloat16 or float16, plus what a batch needs""")
    )
    return 0


def _count(number: int) -> str:
    return f"{number / 1e6:9,.2f} M"
