"""The transformer is Emu3.5's: its logits are those of the official code, whole and split over a cache."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from emu_embodied.emu35.config import read_config
from emu_embodied.errors import InputError
from emu_embodied.model.transformer import Transformer, TransformerConfig

REFERENCE = Path(os.environ.get("EMU35_REFERENCE", Path(__file__).parents[3] / "shared" / "emu3.5")) / "tiny"


@pytest.mark.skipif(not (REFERENCE / "lm").is_dir(), reason=f"no reference data at {REFERENCE}; set EMU35_REFERENCE")
@pytest.mark.parametrize("cuts", [[], [20], [1, 2, 30]])
def test_logits_are_those_of_the_official_code(cuts):
    model = Transformer(read_config(REFERENCE / "lm"))
    model.load_state_dict(load_file(REFERENCE / "lm" / "model.safetensors"))  # strict: the keys are the official ones
    expected = load_file(REFERENCE / "lm_expected.safetensors")
    ids = expected["input_ids"]
    cache = model.new_cache(len(ids), ids.shape[1])
    with torch.no_grad():
        parts = [model(part, cache) for part in torch.tensor_split(ids, cuts, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), expected["logits"], atol=1e-4, rtol=0)


def seeded_model() -> Transformer:
    """Weights from integer arithmetic alone, the same on every platform."""
    model = Transformer(TransformerConfig(64, 32, 48, 2, 4, 2, 8))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            start = int(hashlib.sha256(name.encode()).hexdigest()[:6], 16)
            steps = (torch.arange(parameter.numel(), dtype=torch.int64) * 7919 + start) % 1009
            parameter.copy_((steps.float() / 1009 - 0.5).view_as(parameter) * 0.4 + (parameter.ndim == 1))
    return model


def test_logits_stay_what_they_were():
    """Figures computed when `logits are those of the official code` passed, for machines without the reference data."""
    ids = (torch.arange(24) * 5 % 64).view(2, 12)
    with torch.no_grad():
        logits = seeded_model()(ids)
    expected = torch.tensor(EXPECTED)
    torch.testing.assert_close(logits[:, -1, :4], expected, atol=1e-4, rtol=0)


EXPECTED = [[-0.209785, -0.859081, -0.770109, -0.6095], [0.867881, 1.065497, 0.373882, -0.327408]]


def test_a_cache_changes_nothing_and_the_future_is_not_seen():
    model, ids = seeded_model(), (torch.arange(20) * 3 % 64)[None]
    with torch.no_grad():
        whole = model(ids)
        cache = model.new_cache(1, 20)
        stepwise = torch.cat([model(ids[:, i : i + 1], cache) for i in range(20)], 1)
        changed = ids.clone()
        changed[:, 10:] = 1
        assert torch.allclose(model(changed)[:, :10], whole[:, :10], atol=1e-5)
    torch.testing.assert_close(stepwise, whole, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="the cache holds"):
        model(ids[:, :1], cache)
