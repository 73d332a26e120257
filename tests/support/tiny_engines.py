"""Frames through any step engine, and random inputs for its static steps: for tests of engines."""


import torch
from tiny_token_model import batch

from emu_embodied.inference.decoding import autoregressive, dida, exact
from emu_embodied.inference.decoding.config import DecodingConfig

WAYS = ("dida", "exact", "autoregressive", "mixed")


def dream(engine, model, way: str, frames: int, copies: int):
    """Codes and hidden states of `frames` frames after a prefix of two, for `copies` candidates of each of two worlds."""
    text, codes, actions, *_ = batch(model)
    generator = torch.Generator().manual_seed(0)
    ahead = torch.rand(frames, 2 * copies, 2, generator=generator) * 2 - 1
    rows = []
    with torch.no_grad():
        cache = engine.prefill(text, codes[:, :2], actions[:, :1], ahead=frames).expand(copies)
        for t, action in enumerate(ahead):
            how = ("dida", "exact", "autoregressive")[t % 3] if way == "mixed" else way
            decode = {"dida": dida, "exact": exact, "autoregressive": autoregressive}[how].decode_frame
            drawn, hidden, _ = decode(engine, cache, action, DecodingConfig(passes=2))
            rows.append((drawn, hidden))
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def arguments(executor, batch: int, seed: int = 0) -> list[torch.Tensor]:
    """Random tensors that a step takes, Gumbel noise among them."""
    generator, config = torch.Generator().manual_seed(seed), executor.exporter.model.config
    made = []
    for port in executor.inputs:
        shape = port.shape(batch)
        if port.dtype == torch.bool:
            made.append(torch.rand(shape, generator=generator) < 0.6)
        elif port.name == "start":
            made.append(torch.tensor(config.text_length + config.frame_tokens))
        elif port.dtype == torch.int64:
            made.append(torch.randint(0, config.vocabulary.codebook_size, shape, generator=generator))
        elif port.name.startswith("gumbel"):
            made.append(-torch.log(-torch.log(torch.rand(shape, generator=generator).clamp(1e-9, 1 - 1e-7))))
        elif port.name == "inverse_temperature":
            made.append(torch.tensor(1.7))
        else:
            made.append(torch.rand(shape, generator=generator) * 2 - 1)
    return made
