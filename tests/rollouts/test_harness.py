"""The harness of all evaluations: what is played, what is kept, how it goes on, and how sure its figures are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from emu_embodied.errors import ConfigError, InputError
from emu_embodied.rollouts.evaluation.harness import difference, evaluate, plan_costs, players, rate, ratio


@dataclass(frozen=True)
class Settings:
    name: str = "a"


def played(log: list[list[int]], broken: int | None = None):
    def play(seeds):
        log.append(list(seeds))
        for seed in seeds:
            if seed == broken:
                raise InputError("seed", seed, "mend it")
            yield {"seed": seed, "success": seed % 2 == 0}

    return play


def test_what_was_stopped_goes_on_and_ends_as_an_undisturbed_one(tmp_path: Path):
    journal, log, told = tmp_path / "a.jsonl", [], []
    whole = evaluate(Settings(), range(5), played(log))
    with pytest.raises(InputError, match="seed: 3"):
        evaluate(Settings(), range(5), played(log, broken=3), journal=journal, on_episode=told.append)
    assert evaluate(Settings(), range(5), played(log), journal=journal, on_episode=told.append) == whole
    assert evaluate(Settings(), [4, 1], played(log), journal=journal) == [whole[4], whole[1]]
    assert log == [[0, 1, 2, 3, 4]] * 2 + [[3, 4], []] and told == whole
    with pytest.raises(ConfigError, match="name: b"):
        evaluate(Settings("b"), range(5), played(log), journal=journal)


def test_episodes_that_depend_on_each_other_are_played_again_together(tmp_path: Path):
    journal, log = tmp_path / "a.jsonl", []
    with pytest.raises(InputError):
        evaluate(Settings(), range(6), played(log, broken=3), journal=journal, batch=2)
    lines = journal.read_text().splitlines()
    evaluate(Settings(), range(6), played(log), journal=journal, batch=2)
    assert log[1] == [2, 3, 4, 5] and journal.read_text().splitlines()[: len(lines)] == lines
    assert len(journal.read_text().splitlines()) == 1 + 6


def test_a_row_is_what_an_episode_says_and_nothing_is_made_in_vain():
    class Player:
        def play(self, seed, on_step=None, progress=False):
            return seed

    made = []
    play = players(lambda: made.append(1) or Player())
    assert evaluate(Settings(), [3, 4], play, lambda seed: {"seed": seed, "twice": 2 * seed})[1]["twice"] == 8
    assert evaluate(Settings(), [], play) == [] and made == [1]
    with pytest.raises(ConfigError, match="workers: 0"):
        players(Player, workers=0)


def test_figures_have_intervals_and_pairs_are_of_the_same_seeds():
    mine = [{"seed": i, "success": ok} for i, ok in enumerate([True, False, True, True])]
    theirs = [{"seed": i, "success": i == 0} for i in range(3)]
    found = rate(row["success"] for row in mine)
    assert (found["n"], found["successes"], found["rate"]) == (4, 3, 0.75)
    assert found["wilson_95"][0] < 0.75 < found["wilson_95"][1] and rate([])["wilson_95"] == [0.0, 1.0]
    assert difference(mine, theirs)["value"] == pytest.approx(1 / 3) and difference(mine, theirs)["n"] == 3
    assert ratio(mine, theirs)["value"] == pytest.approx(2.0) and ratio(mine, [])["value"] is None
    assert difference(mine, [])["value"] is None
    plans = plan_costs(
        [{"plan_seconds": [1.0, 3.0], "predicted_frames": 20}, {"plan_seconds": [], "predicted_frames": 0}]
    )
    assert plans == {"seconds_per_plan_median": 2.0, "predicted_frames_per_second": 5.0, "frames_per_plan": 10.0}
    assert set(plan_costs([]).values()) == {None}
