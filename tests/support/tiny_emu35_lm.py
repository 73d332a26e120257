"""Tiny language models in the released format, written from a seed; and a whole released folder."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_emu35 import tiny_ibq, tiny_text, tiny_text_files, write_ibq

from emu_embodied.model.transformer import Transformer, TransformerConfig

TINY = TransformerConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rope_theta=1e6,
)


def tiny_language_model(config: TransformerConfig = TINY, seed: int = 0) -> Transformer:
    """Random weights, large enough that every part makes a difference."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Transformer(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.15)
    return model.eval().requires_grad_(False)


def official_config(config: TransformerConfig, **changes) -> dict:
    """What stands in the released `config.json`."""
    values = asdict(config)
    kind, factor = values.pop("rope_scaling"), values.pop("rope_factor")
    scaling = {"type": kind, "factor": factor} if kind else None
    fixed = {"model_type": "Emu3", "hidden_act": "silu", "tie_word_embeddings": False, "pretraining_tp": 1}
    return values | fixed | {"rope_scaling": scaling} | changes


def write_language_model(folder: Path, model: Transformer, shards: int = 1, **changes) -> Path:
    """The official files: `config.json` (with `changes`), and one or several safetensors with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(official_config(model.config, **changes)))
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names, places = list(tensors), {}
    for i in range(shards):
        file, mine = f"model-{i + 1:05d}-of-{shards:05d}.safetensors", names[i::shards]
        save_file({name: tensors[name] for name in mine}, folder / file)
        places |= dict.fromkeys(mine, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_released(folder: Path, seed: int = 0) -> Path:
    """Language model, vision tokenizer and text tokenizer, all tiny, in one folder."""
    model = tiny_language_model(replace(TINY, vocab_size=tiny_text().vocabulary.size), seed)
    write_language_model(folder, model, shards=2)
    for name, content in tiny_text_files().items():
        (folder / name).write_bytes(content)
    return write_ibq(folder, tiny_ibq())
