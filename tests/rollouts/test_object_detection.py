"""Positions by eye, intervals, and the quality table on models whose quality is known."""

from dataclasses import replace

import numpy as np
import pytest
from known_quality import WORLD, Replayer, held_out
from tiny import tiny_world_model

from emu_embodied.errors import DatasetError
from emu_embodied.metrics import bootstrap_interval, colour_centroids, energy_score, spread, wilson_interval
from emu_embodied.rollouts.evaluation import prediction
from emu_embodied.rollouts.evaluation.tables import as_markdown

WILSON = [  # successes, n, and the interval, by the formula with z = 1.96
    (0, 0, 0.0, 1.0),
    (0, 20, 0.0, 0.1611301254949332),
    (8, 10, 0.49015684672072346, 0.9433190520193067),
    (94, 100, 0.8752303146877749, 0.9722142547333434),
    (100, 100, 0.963005192523998, 1.0),
]
PALETTE = np.array([(26, 26, 31), (219, 41, 33), (41, 166, 66)])


@pytest.mark.parametrize("size", [64, 96, 128])
def test_centroids_are_found_at_every_size(size):
    frame = np.full((size, size, 3), 222, np.uint8)
    scale = size // 32
    frame[4 * scale : 8 * scale, 10 * scale : 14 * scale] = PALETTE[1]
    positions, areas = colour_centroids(frame, PALETTE)
    assert positions[1] == pytest.approx([24, 12], abs=0.05) and areas[1] == pytest.approx(64, abs=1)
    assert np.isnan(positions[[0, 2]]).all() and (areas[[0, 2]] < 4).all()


def test_the_energy_score_is_least_for_the_true_distribution():
    rng = np.random.default_rng(0)
    outcomes, normal = rng.normal(size=(2000, 1)), rng.normal(size=(2000, 1))
    assert spread(normal) == pytest.approx(2 / np.pi**0.5, abs=0.03)  # of two standard normal numbers
    assert energy_score(normal, outcomes) == pytest.approx(1 / np.pi**0.5, abs=0.03)  # the CRPS, in closed form
    for wrong in (normal + 1, 3 * normal, 0 * normal, np.sign(normal) * 0.8):
        assert energy_score(wrong, outcomes) > energy_score(normal, outcomes) + 0.01
    few = [energy_score(rng.normal(size=(2, 1)), outcomes) for _ in range(2000)]
    assert np.mean(few) == pytest.approx(1 / np.pi**0.5, abs=0.04)


def test_the_energy_score_sees_what_belongs_together():
    """Each coordinate alone is right in both; only one has them move together, as the outcomes do."""
    rng = np.random.default_rng(1)
    outcomes, together = (np.repeat(rng.choice([-1.0, 1.0], (400, 1)), 2, 1) for _ in range(2))
    alone = rng.choice([-1.0, 1.0], (400, 2))
    assert energy_score(together, outcomes) < energy_score(alone, outcomes) - 0.05


def test_intervals_are_the_known_ones():
    for successes, n, low, high in WILSON:
        assert wilson_interval(successes, n) == pytest.approx((low, high), abs=1e-9)
    low, high = bootstrap_interval(np.random.default_rng(0).normal(3, 1, 400), np.mean)
    assert low < 3.05 and high > 2.95 and high - low == pytest.approx(0.196, abs=0.03)
    assert np.isnan(bootstrap_interval(np.array([]))).all()


@pytest.mark.parametrize("lag", [0, 2])
def test_open_loop_errors_are_those_of_a_known_model(lag):
    truth = prediction.Truth(held_out(), WORLD)
    loop = prediction.OpenLoop(Replayer(truth, lag), truth, starts=(3,), steps=8)
    assert loop.present[:, :2].all() and not loop.present[:, 2:].any()
    assert loop.errors[:, :, 1] == pytest.approx(lag, abs=0.1)  # the red square is `lag` px behind
    assert loop.errors[:, :, 0] == pytest.approx(0, abs=0.1)
    assert loop.copy_errors[:, -1, 1] == pytest.approx(8, abs=1e-3)
    assert loop.head_errors[..., :2] == pytest.approx(0, abs=1e-3)
    assert loop.found[..., :2].all() and not loop.found[..., 2:].any()


def test_a_vanished_object_counts_sixty_four_pixels():
    errors = prediction.position_errors(np.zeros((2, 2)), np.array([True, False]), np.array([[3.0, 4.0], [0, 0]]))
    assert errors.tolist() == [5.0, 64.0]


def test_the_table_of_an_untrained_model_says_so(tmp_path):
    truth = prediction.Truth(held_out(), WORLD)
    model = tiny_world_model()
    rows = prediction.quality_table(model, truth, steps=4)
    table = as_markdown(rows)
    assert len(table.splitlines()) == len(rows) + 2 and all(len(r.cells()) == 8 for r in rows)
    one_step = next(r for r in rows if r.name.startswith("1 step, cubes"))
    assert one_step.value > 1 and one_step.copy_last == 1.0 and one_step.n > 0  # worse than copying
    assert prediction.picture_worst(model, truth, 2, tmp_path, steps=4) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["worst-01.png", "worst-02.png"]


def test_objects_without_labels_are_refused():
    with pytest.raises(DatasetError, match="teapot"):
        prediction.Truth(held_out(), replace(WORLD, objects={"teapot": (1, 2, 3)}))
