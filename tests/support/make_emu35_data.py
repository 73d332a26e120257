"""Writes `tests/support/data/emu35`: what the tiny tokenizers gave when they agreed with the official code, for later ones.

    python tests/support/make_emu35_data.py [--out FOLDER]

Run it only where the tests against the reference data pass (test_ibq.py, test_emu35_text.py, test_emu35_loading.py). The
weights and the image are integer arithmetic (tests/support/tiny_emu35.py), so they need not be stored.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_emu35 import DATA, MERGES, fill, tiny_ibq, tiny_image, tiny_text
from tiny_emu35_lm import TINY

from emu_embodied.emu35.images import image_ids
from emu_embodied.model.transformer import Transformer
from emu_embodied.tokenizers.frames import to_float

TEXTS = [
    "push the red cube to the left of the blue cube",
    "Héllo — 世界, 今天 \U0001f916",
    "a\n\n  b\t1234567890 * 12*34   \r\n",
    "<|extra_203|>USER: <|IMAGE|> it's<|visual token 000063|><|visual token 000064|><|image end|><|extra_205|>",
    "cafe\u0301 vs caf\u00e9",
    "",
]
MARGIN = 1e-2  # by which each code's dot product leads, so that another platform's rounding cannot change it


@torch.inference_mode()
def main() -> None:
    """Writes `ibq.safetensors`, `lm.safetensors` and `text.json`."""
    parser = argparse.ArgumentParser(prog="python tests/support/make_emu35_data.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=DATA)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    model, image = tiny_ibq(), tiny_image()
    codes = model.encode(to_float(image))
    latents = model.quant_conv(model.encoder(to_float(image)))
    best = torch.einsum("bdhw,vd->bhwv", latents, model.quantize.embedding.weight).topk(2).values
    lead, kinds = float((best[..., 0] - best[..., 1]).min()), len(codes.unique())
    assert lead > MARGIN and kinds > 4, (lead, kinds)
    save_file({"image": image, "codes": codes, "decoded": model.decode(codes)}, out / "ibq.safetensors")
    ids = torch.arange(26).view(2, 13) * 7 % TINY.vocab_size
    save_file({"input_ids": ids, "logits": fill(Transformer(TINY))(ids)}, out / "lm.safetensors")
    text = tiny_text()
    texts = [{"text": t, "ids": text.encode(t), "decoded": text.decode(text.encode(t))} for t in TEXTS]
    written = {
        "merges": [list(merge) for merge in MERGES],
        "codes": text.vocabulary.codebook_size,
        "texts": texts,
        "images": [{"codes": codes[0].tolist(), "ids": image_ids(codes[0], text.vocabulary)}],
    }
    (out / "text.json").write_text(json.dumps(written, indent=1) + "\n")
    print(f"{out}: {kinds} codes of {codes.numel()} differ, each leads by {lead:.4f} or more")


if __name__ == "__main__":
    main()
