"""What a model needs, by arithmetic: held to a model on the meta device, to known sums, and to what cannot be otherwise."""

import json
import sys

import pytest
from tiny_emu35_lm import TINY

from benchmarks import emu35_plan
from emu_embodied.emu35 import memory_estimate as estimate
from emu_embodied.emu35.language_model import meta_model
from emu_embodied.emu35.memory_estimate import RELEASED
from emu_embodied.emu35.quantisation import BITS

H100 = next(device for device in estimate.DEVICES if device.name == "H100 80 GB")


@pytest.mark.parametrize("sizes", [RELEASED, TINY], ids=["34B", "tiny"])
def test_weights_and_their_bytes_are_those_of_the_model(sizes):
    parameters = dict(meta_model(sizes).named_parameters())
    matrices = sum(p.numel() for name, p in parameters.items() if "layers" in name and p.ndim == 2)
    count = sum(p.numel() for p in parameters.values())
    assert estimate.parameters(sizes) == count
    assert estimate.layer_weights(sizes) * sizes.num_hidden_layers == matrices
    for kind, bits in BITS.items():
        assert estimate.weight_bytes(sizes, kind) == pytest.approx(2 * (count - matrices) + bits / 8 * matrices)


def test_the_published_model_in_round_figures():
    assert estimate.weight_bytes(RELEASED) / 1e9 == pytest.approx(68.2, abs=0.1)
    assert estimate.cache_bytes(RELEASED, 1) == 2 * 64 * 8 * 128 * 2  # keys and values, layers, heads, sizes, bfloat16
    assert estimate.pass_flops(RELEASED, 1, 1) == pytest.approx(2 * 32.65e9, rel=1e-2)  # all weights but the embedding


def test_a_cache_takes_the_bytes_that_the_plan_says():
    cache = meta_model(TINY).bfloat16().new_cache(3, 7)
    assert sum(t.nbytes for t in (*cache.keys, *cache.values)) == estimate.cache_bytes(TINY, 7, 3)


def test_one_token_waits_for_memory_and_a_whole_image_for_arithmetic():
    memory, arithmetic = estimate.pass_seconds(RELEASED, H100, 1, 1000)
    assert memory > 50 * arithmetic
    memory, arithmetic = estimate.pass_seconds(RELEASED, H100, 4096, 4096, 4096)
    assert arithmetic > memory


def test_passes_cost_what_they_count_and_fewer_bits_are_faster_token_by_token():
    seconds = {k: estimate.image_seconds(RELEASED, H100, 32, 32, 0, k) for k in (None, 1, 4, 8, 16)}
    assert seconds[1] < seconds[4] < seconds[8] < seconds[16] < seconds[None]
    assert seconds[16] - seconds[8] == pytest.approx(2 * (seconds[8] - seconds[4]))
    kinds = [estimate.image_seconds(RELEASED, H100, 32, 32, 0, None, kind) for kind in (None, "int8", "int4", "nf4")]
    assert kinds == sorted(kinds, reverse=True)


def test_training_adapters_takes_less_than_training_all_and_nothing_is_trained_over_int4():
    least, middle, most = (estimate.training_bytes(RELEASED, 16, 2048, kind) for kind in ("nf4", "int8", None))
    assert estimate.weight_bytes(RELEASED, "nf4") < least < middle < most < estimate.training_bytes(RELEASED, 0, 2048)
    assert estimate.training_bytes(RELEASED, 16, 2048, "int4") == float("inf")


def test_the_benchmark_runs_quickly_and_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    out = tmp_path / "plan.json"
    monkeypatch.setattr(sys, "argv", ["emu35_plan", "--device", "cpu", "--quick", "--out", str(out)])
    emu35_plan.main()
    result = json.loads(out.read_text())
    assert result["sizes"]["parameters"] == 34_103_460_864
    assert {"bfloat16", "float32"} == set(result["measured"]) and result["seed"] == 0
    assert all(row["layer"]["n"] >= 3 for rows in result["measured"].values() for row in rows.values())
    assert "least seconds" in capsys.readouterr().out
