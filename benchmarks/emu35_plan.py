"""What Emu3.5-34B needs and how fast it can be at best, per device; and one of its layers timed here. Loads no checkpoint.

    python -m benchmarks.emu35_plan [--device cpu] [--budget 20] [--out FILE] [--quick]

Floors are arithmetic (`emu35.memory_estimate`) on the sizes of a model on the meta device: what must be read from memory over
the bandwidth, or what must be computed over the operations a second, whichever is longer; no program is as fast. The layer has
the true sizes and random weights; 64 of them and the head, whose rows are timed in part, extrapolate to the model. `--quick`
times a small layer, to try the command.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.timing import machine, summary, time_calls, versions
from emu_embodied.emu35 import memory_estimate as estimate
from emu_embodied.emu35.language_model import meta_model
from emu_embodied.emu35.quantisation import BITS
from emu_embodied.model.transformer import Transformer, TransformerConfig
from emu_embodied.storage.atomic import write_json

SEED = 0
PASSES = (None, 1, 4, 8, 16)  # None: token by token
WORKLOADS = {  # name -> height and width of the image, tokens before it
    "image of 1024 tokens": (32, 32, 50),
    "image of 4096 tokens": (64, 64, 50),
    "robot frame of 256 tokens, two before": (16, 16, 50 + 2 * 280),
}
TOKENS = (1, 256, 1024)
HEAD_ROWS = 8192  # of the head, timed
SMALL = replace(
    estimate.RELEASED, hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=16
)


def sizes(config: TransformerConfig) -> dict:
    """Memory in GB and operations."""
    counted = sum(p.numel() for p in meta_model(config).parameters())
    if counted != estimate.parameters(config):
        raise AssertionError(f"the meta model has {counted} weights, the plan says {estimate.parameters(config)}")
    return {
        "parameters": counted,
        "weights_GB": {kind or "bf16": estimate.weight_bytes(config, kind) / 1e9 for kind in BITS},
        "cache_GB_per_1000_tokens": estimate.cache_bytes(config, 1000) / 1e9,
        "operations_of_a_token": estimate.pass_flops(config, 1, 1),
        "adapters_of_rank_16": estimate.adapter_parameters(config, 16),
        "training_adapters_GB_2048_tokens": {
            kind or "bf16": estimate.training_bytes(config, 16, 2048, kind) / 1e9 for kind in BITS if kind != "int4"
        },
        "training_all_GB_2048_tokens": estimate.training_bytes(config, 0, 2048) / 1e9,
    }


def floors(config: TransformerConfig) -> dict:
    """Least seconds of each workload on each device, with the largest weights that leave room for the cache."""
    found = {}
    for device in estimate.DEVICES:
        fitting = [
            kind for kind in BITS if estimate.weight_bytes(config, kind) + estimate.cache_bytes(config, 8192) < device.memory
        ]
        if not fitting:
            found[device.name] = None
            continue
        rows = {
            name: {
                "token by token" if k is None else f"K={k}": estimate.image_seconds(
                    config, device, h, w, before, k, fitting[0]
                )
                for k in PASSES
            }
            for name, (h, w, before) in WORKLOADS.items()
        }
        found[device.name] = {**asdict(device), "weights": fitting[0] or "bf16", "seconds": rows}
    return found


@torch.inference_mode()
def time_layer(config: TransformerConfig, dtype: torch.dtype, device: torch.device, budget: float) -> dict:
    """Seconds of one layer and of the head, for some numbers of tokens, and what they make of the whole model."""
    torch.manual_seed(SEED)
    whole = config.num_hidden_layers
    with torch.device("meta"):
        model = Transformer(replace(config, num_hidden_layers=1, vocab_size=HEAD_ROWS)).to(dtype)
    model.to_empty(device=device)
    for parameter in model.parameters():
        parameter.normal_(std=0.02) if parameter.ndim > 1 else parameter.fill_(1.0)
    rows = {}
    for tokens in TOKENS:
        x = torch.randn(1, tokens, config.hidden_size, dtype=dtype, device=device)
        positions = torch.arange(tokens, device=device)
        layer = summary(time_calls(lambda x=x, p=positions: model.hidden(x, p, None), device, budget), 1)
        head = summary(time_calls(lambda x=x: model.lm_head(x), device, budget / 4), 1)
        seconds = (whole * layer["ms"] + head["ms"] * config.vocab_size / HEAD_ROWS) / 1e3
        rows[str(tokens)] = {"layer": layer, "head_rows": HEAD_ROWS, "head": head, "model_seconds": seconds}
    return rows


def report(result: dict) -> None:
    """Prints the tables."""
    console, measured = Console(), result["measured"]
    table = Table("device", "weights", "what", *("token by token" if k is None else f"K={k}" for k in PASSES))
    table.title = "least seconds, by arithmetic"
    for name, row in result["floors"].items():
        if row is None:
            table.add_row(name, "do not fit", "split them over several (doctor checkpoint=...)", *[""] * len(PASSES))
        for what, seconds in (row["seconds"] if row else {}).items():
            table.add_row(name, row["weights"], what, *(f"{value:.3g}" for value in seconds.values()))
    console.print(table)
    table = Table(
        "dtype", "tokens in a pass", "a layer, ms", "the model, s (extrapolated)", title=str(result["machine"])
    )
    for dtype, rows in measured.items():
        for tokens, row in rows.items():
            table.add_row(dtype, tokens, f"{row['layer']['ms']:.1f}", f"{row['model_seconds']:.3g}")
    console.print(table)


def main() -> None:
    """Computes, measures, prints, and writes JSON where asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.emu35_plan", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds for each timing")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--quick", action="store_true", help="a small layer and short timings")
    arguments = parser.parse_args()
    device, timed = torch.device(arguments.device), SMALL if arguments.quick else estimate.RELEASED
    kinds = {"bfloat16": torch.bfloat16} | ({"float32": torch.float32} if device.type == "cpu" else {})
    budget = 0.05 if arguments.quick else arguments.budget
    result = {
        "sizes": sizes(estimate.RELEASED),
        "floors": floors(estimate.RELEASED),
        "measured": {name: time_layer(timed, dtype, device, budget) for name, dtype in kinds.items()},
        "layer": asdict(timed),
        "machine": machine(device),
        "seed": SEED,
        "versions": versions(),
    }
    report(result)
    if arguments.out:
        write_json(arguments.out, result)
    print(json.dumps({"sizes": result["sizes"], "machine": result["machine"]}))


if __name__ == "__main__":
    main()
