"""Muon: its updates are orthogonal, and it descends."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emu_embodied.training.muon import Muon, orthogonalise


@given(st.integers(2, 24), st.integers(2, 24), st.integers(0, 99), st.sampled_from([1e-4, 1.0, 1e4]))
@settings(max_examples=40)
def test_orthogonalised_matrices_have_singular_values_near_one(rows, columns, seed, scale):
    u, _ = torch.linalg.qr(torch.randn(rows, min(rows, columns), generator=torch.Generator().manual_seed(seed)))
    v, _ = torch.linalg.qr(torch.randn(columns, min(rows, columns), generator=torch.Generator().manual_seed(seed + 1)))
    values = torch.linspace(0.2, 1.0, min(rows, columns)) * scale
    out = torch.linalg.svdvals(orthogonalise((u * values) @ v.T))
    assert out.min() > 0.5 and out.max() < 1.4


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (4, 2, 3, 3)])
def test_it_fits_a_linear_map(shape):
    generator = torch.Generator().manual_seed(0)
    goal = torch.randn(shape, generator=generator)
    weight = torch.nn.Parameter(torch.zeros(shape))
    optimiser = Muon([weight], lr=0.05)
    for step in range(300):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 - step / 300)
        optimiser.zero_grad()
        (weight - goal).square().sum().backward()
        optimiser.step()
    assert (weight - goal).abs().max() < 0.05
