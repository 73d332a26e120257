"""The benchmark of random worlds: broken frames are told from whole ones, and true outcomes start alike and differ."""

import gymnasium
import numpy as np
import pytest

from benchmarks.stochastic import ENV, NAMES, OPTIONS, Start, faults, figures_of, look, play, summarise

PALETTE = np.array([(26, 26, 31), (219, 41, 33), (41, 166, 66), (38, 84, 219), (242, 196, 31)], np.float32)
PRESENT = np.array([True, True, False, False, False])


def scene(*squares: tuple[int, int, int, int, int]) -> np.ndarray:
    """A table with the pusher and squares of (object, row, column, height, width)."""
    frame = np.full((64, 64, 3), 222, np.uint8)
    for index, row, column, height, width in ((0, 2, 2, 6, 6), *squares):
        frame[row : row + height, column : column + width] = PALETTE[index]
    return frame


@pytest.mark.parametrize(
    ("frame", "wrong"),
    [
        (scene((1, 20, 20, 9, 9)), set()),
        (scene((1, 40, 30, 9, 9)), set()),
        (scene(), {"missing", "broken"}),
        (scene((1, 20, 20, 9, 4), (1, 20, 40, 9, 4)), {"doubled", "broken"}),
        (scene((1, 20, 20, 9, 9), (3, 40, 40, 5, 5)), {"invented", "broken"}),
        (scene((1, 20, 20, 9, 4)), {"broken"}),
    ],
)
def test_an_object_that_is_not_whole_is_found(frame, wrong):
    _, first_areas, _ = look(scene((1, 20, 20, 9, 9)), PALETTE)
    _, areas, pieces = look(frame[None], PALETTE)
    assert {name for name, where in faults(areas, pieces, first_areas, PRESENT).items() if where.all()} == wrong


def test_samples_like_the_outcomes_score_best():
    rng, first = np.random.default_rng(0), scene((1, 20, 20, 9, 9))

    def futures(columns) -> np.ndarray:
        return np.array([[scene((1, 20, int(c), 9, 9))] * 2 for c in columns])

    outcomes, like, one = (futures(c) for c in (rng.choice([12, 44], 16), rng.choice([12, 44], 16), [28] * 16))
    start = Start({}, np.zeros((4, 2), np.float32), PRESENT)
    rows = {n: [figures_of(f, outcomes, first, start, PALETTE)[0]] * 2 for n, f in (("like", like), ("one", one))}
    figures = summarise(rows["one"], rows["like"], rows["one"])
    assert figures["energy_score_over_simulator"]["value"] > 3 and figures["crps_over_simulator"]["value"] > 1
    assert figures["spread_over_true"]["value"] == 0 and figures["broken"]["value"] == 0
    assert rows["like"][0]["whole_and_far"] == 1  # 8 and 24 px to the sides
    assert figures["energy_score_over_k1"]["value"] == 0
    assert summarise(rows["like"], rows["like"], rows["one"])["spread_over_true"]["value"] == pytest.approx(1, abs=0.3)


def test_outcomes_start_alike_differ_and_repeat():
    env = gymnasium.make(ENV, **OPTIONS)
    set_by_hand = {"pusher": (-4.4, 0.0), "cubes": {"red": (0.0, 0.0, 0.3)}, "instruction": "push the red cube to the left"}
    present = np.array([name in ("pusher", "red") for name in NAMES])
    start = Start(set_by_hand, np.tile(np.float32([0.8, 0.0]), (4, 1)), present)
    first, outcomes = play(env, start, range(8))
    other, again = play(env, start, range(8))
    env.close()
    assert first.shape == (64, 64, 3) and outcomes.shape == (8, 2, 64, 64, 3)
    assert (first == other).all() and (outcomes == again).all()
    positions, areas, pieces = look(outcomes, PALETTE)
    assert not faults(*look(first[None], PALETTE)[1:], look(first, PALETTE)[1], present)["broken"].any()
    assert positions[:, -1, 1].std(0).max() > 1  # px, of the cube
