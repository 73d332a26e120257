"""The GPU's part in one go, under ten minutes: parity first, then the speed of every engine, at the nano and the base size.

    python -m benchmarks.gpu [--sizes nano base] [--precisions bf16 fp32] [--budget SECONDS] [--out FILE]

Random weights of the presets' sizes: speed does not depend on what was learnt, but for the exact decoding, which is left out.
Beside each figure stand the FLOPs and bytes of a frame and the share of what the device was measured to do. The JSON is
written anew after each engine, so that a run that is cut off leaves what it had. `--device cpu --sizes tiny` tries the
command out where there is no GPU.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from benchmarks.decoding import random_histories
from benchmarks.timing import machine, speedups, summary, time_calls, time_frames, versions
from emu_embodied.commands._config import compose_config
from emu_embodied.commands.train import make_recipe
from emu_embodied.errors import EmuEmbodiedError
from emu_embodied.inference.decoding.config import DecodingConfig
from emu_embodied.inference.engines.parity import measure_parity
from emu_embodied.inference.engines.registry import ENGINES, make_engine
from emu_embodied.model.config import TokenModelConfig
from emu_embodied.model.token_model import TokenModel
from emu_embodied.model.transformer import TransformerConfig
from emu_embodied.model.vocabulary import Vocabulary
from emu_embodied.storage.atomic import write_json

DECODINGS = {
    "autoregressive": DecodingConfig("autoregressive"),
    "k1": DecodingConfig(passes=1),
    "k4": DecodingConfig(passes=4),
}
# Where each decoding is timed: token by token at large batches says nothing that these do not.
CASES = ((1, 64, tuple(DECODINGS)), (256, 64, tuple(DECODINGS)), (1, 256, tuple(DECODINGS)), (16, 256, ("k1", "k4")))


def random_model(size: str, tokens: int, device: torch.device) -> TokenModel:
    """A model of a preset's sizes with random weights, `tokens` visual tokens a frame, float32, in eval mode."""
    recipe = make_recipe(compose_config("train", [f"preset={size}"]))
    vocabulary = Vocabulary(recipe.text_size, recipe.tokenizer.codebook_size, recipe.action_bins)
    config = TokenModelConfig(
        vocabulary,
        TransformerConfig(vocabulary.size, **recipe.transformer),
        grid=round(tokens**0.5),
        action_dim=2,
        text_length=recipe.text_length,
        context_frames=recipe.context_frames,
        previous_frame_source=recipe.previous_frame_source,
        objects=("pusher", "cube"),
    )
    torch.manual_seed(0)
    return TokenModel(config).to(device).eval()


def ceilings(device: torch.device) -> dict[str, float]:
    """What the device does at best here: TFLOP/s of a large matrix product by precision, and GB/s of a copy."""
    n = 8192 if device.type == "cuda" else 1024
    found = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        x = torch.randn(n, n, dtype=dtype, device=device)
        found[f"{name}_tflops"] = 2 * n**3 / summary(time_calls(lambda x=x: x @ x, device, 0.5), 1)["ms"] / 1e9
    x = torch.empty(64 * n * n // 8, dtype=torch.uint8, device=device)
    found["copy_gb_per_s"] = 2 * x.numel() / summary(time_calls(lambda: x.clone(), device, 0.5), 1)["ms"] / 1e6
    return found


def work(config: TokenModelConfig, passes: int, batch: int, itemsize: int) -> dict[str, float]:
    """GFLOP and MB that a frame cannot do without: matrix products, convolutions and attention; weights and keys once a pass.

    The commit rides in the first pass where there is a context; without one there is none. `passes` of 0 means token by token.
    """
    t, d, tokens = config.transformer, config.transformer.hidden_size, config.frame_tokens
    inner = t.num_attention_heads * t.head_dim
    layer = d * (2 * inner + 2 * t.num_key_value_heads * t.head_dim) + 3 * d * t.intermediate_size
    read = tokens if not passes else tokens * (passes + bool(config.context_frames))
    seen = config.text_length + (config.context_frames + 0.5) * tokens
    matrices = t.num_hidden_layers * layer * read + d * config.vocabulary.codebook_size * config.slots * max(1, passes)
    source = 2 * 9 * d * d * config.slots * max(1, passes)
    attention = 2 * t.num_hidden_layers * inner * seen * read
    weights = t.num_hidden_layers * layer + d * config.vocabulary.codebook_size + 18 * d * d
    rounds = passes or tokens
    keys = 2 * t.num_hidden_layers * t.num_key_value_heads * t.head_dim * seen
    return {
        "gflop_per_frame": 2 * (matrices + source + attention) / 1e9,
        "mb_per_frame": itemsize * rounds * (weights / batch + keys) / 1e6,
    }


def measure_engine(name: str, precision: str, models: dict[int, TokenModel], top: dict, deadline: float) -> dict:
    """Parity, then the cases that there is time for; a fault in place of them where the engine does not run."""
    try:
        engines = {tokens: make_engine(name, model, precision=precision) for tokens, model in models.items()}
        parity = measure_parity(engines[64], models[64])
    except (EmuEmbodiedError, RuntimeError) as error:
        return {"fault": " ".join(str(error).split())[:300]}
    found = {"parity": vars(parity) | {"holds": parity.holds}, "speed": {}}
    itemsize = {"fp32": 4}.get(precision, 2)
    for batch, tokens, decodings in CASES:
        row = found["speed"].setdefault(f"batch_{batch}_tokens_{tokens}", {})
        for decoding in decodings:
            if time.monotonic() > deadline:
                found["cut_off"] = True
                continue
            model, config = models[tokens], DECODINGS[decoding]
            device = model.noised.device
            times = time_frames(engines[tokens], random_histories(model, batch), config, budget=1.0)
            passes = 0 if decoding == "autoregressive" else config.passes
            row[decoding] = summary(times, batch) | work(model.config, passes, batch, itemsize)
            done = row[decoding]["frames_per_second"] * row[decoding]["gflop_per_frame"] / 1e3
            row[decoding]["share_of_ceiling"] = done / top[f"{precision}_tflops"]
            if device.type == "cuda":
                row[decoding]["peak_memory_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
                torch.cuda.reset_peak_memory_stats(device)
    found["speedup"] = speedups(found["speed"])
    return found


def main() -> None:
    """Measures, prints a line a figure, and writes JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["base", "nano"], help="presets")
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--engines", nargs="+", default=["compiled", "eager", "tensorrt", "tensorrt_rtx", "onnx"])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--budget", type=float, default=520, help="seconds after which no further case is begun")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    arguments = parser.parse_args()
    unknown = set(arguments.engines) - set(ENGINES)
    if unknown:
        parser.error(f"engines {sorted(unknown)}: choose among {ENGINES}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no CUDA device here: --device cpu --sizes tiny tries the command out")
    device, deadline = torch.device(arguments.device), time.monotonic() + arguments.budget
    top = ceilings(device)
    result = {"ceilings": top, "machine": machine(device), "versions": versions(), "seed": 0, "sizes": {}}
    for size in arguments.sizes:
        models = {tokens: random_model(size, tokens, device) for tokens in (64, 256)}
        count = sum(p.numel() for p in models[64].parameters())
        result["sizes"][size] = {"parameters": count, "engines": {}}
        for precision in arguments.precisions:
            for name in arguments.engines:
                found = measure_engine(name, precision, models, top, deadline)
                result["sizes"][size]["engines"][f"{name}_{precision}"] = found
                write_json(arguments.out, result)
                _print(f"{size} {name} {precision}", found)


def _print(title: str, found: dict) -> None:
    print(title, found.get("fault", ""), found.get("parity", ""), flush=True)
    for case, row in found.get("speed", {}).items():
        for decoding, figures in row.items():
            share, fps = 100 * figures["share_of_ceiling"], figures["frames_per_second"]
            print(f"  {case:20} {decoding:15} {figures['ms']:9.2f} ms {fps:9.0f} frames/s, {share:.1f}% of ceiling", flush=True)


if __name__ == "__main__":
    main()
