"""What can be said of the table-top, and what hindsight makes of play: sentences, goals, key frames, what is held out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_play import cache, pushed_left

from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.data.subgoals import GROUPS
from emu_embodied.envs.pusht.geometry import AIMS_CM, TIP_CM, turn
from emu_embodied.envs.tabletop.tasks import COLOURS, EDITS, OBJECTS, PHRASES, TEMPLATES, goal_tasks, parse_task
from emu_embodied.errors import DatasetError
from emu_embodied.rollouts.goals import hindsight_pusht
from emu_embodied.rollouts.goals.hindsight_tabletop import HELD_OUT, HindsightConfig, in_px, is_held_out, relabel
from emu_embodied.rollouts.goals.task_costs import TaskGoal
from emu_embodied.types import DONE

places = st.lists(st.floats(-10, 10), min_size=12, max_size=12).map(lambda x: np.array(x).reshape(6, 2))






def test_there_are_forty_sentences_and_each_means_what_it_says():
    templates = [text for kinds in (PHRASES, EDITS) for texts in kinds.values() for text in texts]
    assert len(templates) == len(set(templates)) == 40
    assert all(set(TEMPLATES[kind]) <= set(PHRASES[kind]) for kind in TEMPLATES)
    for task in goal_tasks(COLOURS):
        for text in (*task.phrases(), *task.edits()):
            assert replace(parse_task(text), text="") == task


@settings(max_examples=60)
@given(places, st.sampled_from(goal_tasks(COLOURS)))
def test_at_its_target_a_task_is_done(positions, task):
    target = task.target(positions)
    there = positions.copy()
    there[OBJECTS.index(task.cube)] = target
    assert task.distance(there) == pytest.approx(0, abs=1e-6)


@settings(max_examples=60)
@given(places, st.sampled_from(goal_tasks(COLOURS)))
def test_the_planners_target_is_the_tasks(positions, task):
    many = TaskGoal(task, OBJECTS).target(torch.from_numpy(positions).float())
    np.testing.assert_allclose(many.numpy(), task.target(positions), atol=1e-4)


def test_a_push_becomes_an_instruction_and_its_key_frames():
    rows = relabel(cache([pushed_left()]), HindsightConfig(stride=5, held_out=()))
    of = {
        group: [
            (rows.start[i], rows.target[i], rows.captions[rows.caption[i]]) for i in np.flatnonzero(rows.group == g)
        ]
        for g, group in enumerate(GROUPS)
    }
    asked = {text for i in np.flatnonzero(rows.group == GROUPS.index("goal")) for text in rows.goals[rows.goal[i]]}
    assert "push the red cube to the left" in asked
    assert (0, 3, "move behind the red cube pusher 40 30") in of["behind"]
    x, y = in_px(pushed_left()[6, OBJECTS.index("red")])  # x = -6 at frame 6: the first that counts
    assert any(
        entry[:2] == (3, 6) and entry[2].startswith(f"the red cube is at the left edge at {x} {y}")
        for entry in of["goal"]
    )
    assert all(start == target and caption == DONE for start, target, caption in of["done"])
    assert (0, 6) in {entry[:2] for entry in of["edit"]}
    edits = rows.goals[rows.goal[np.flatnonzero(rows.group == GROUPS.index("edit"))[0]]]
    assert all(text.startswith(("make", "show")) for text in edits)
    assert all(rows.goals[rows.goal[i]] == () for i in np.flatnonzero(rows.group == GROUPS.index("next")))


def test_a_long_push_has_key_frames_on_the_way():
    rows = relabel(cache([pushed_left(steps=8, size=1.0)]), HindsightConfig(stride=3, held_out=()))
    pushes = np.flatnonzero(rows.group == GROUPS.index("push"))
    assert len(pushes) and (rows.target - rows.start)[pushes].tolist() == [3] * len(pushes)


def test_pushes_that_move_others_too_are_not_told():
    path = pushed_left()
    path[4:, OBJECTS.index("blue"), 0] += 3.0
    rows = relabel(cache([path]), HindsightConfig(held_out=()))
    behind = rows.group == GROUPS.index("behind")
    assert not (behind & (rows.target == 3) & (rows.start < 3)).any()


def test_what_is_held_out_is_never_said():
    rows = relabel(cache([pushed_left() * np.array([-1, 1])]))  # to the right
    assert ("red", "right") in HELD_OUT
    for texts in rows.goals:
        for text in texts:
            assert not is_held_out(parse_task(text)), text
    assert len(HELD_OUT) / (len(COLOURS) * 4) == pytest.approx(0.2, abs=0.02)


def test_worlds_without_the_table_tops_states_are_refused():
    with pytest.raises(DatasetError, match="state names"):
        relabel(replace(cache([pushed_left()]), names={"state": ["x"], "agent_pos": [], "action": []}))
    with pytest.raises(DatasetError, match="no goal came true"):
        relabel(cache([np.zeros((3, 6, 2))]))


def tee_cache(poses: list[np.ndarray], pushers: list[np.ndarray]) -> FrameCache:
    """Episodes of PushT's T (T, 3), x, y in cm and yaw, and pusher (T, 2)."""
    states = []
    for pose, pusher in zip(poses, pushers, strict=True):
        tips = pose[:, :2] + np.stack([turn(yaw) @ TIP_CM for yaw in pose[:, 2]])
        state = np.zeros((len(pose), 3, 4), np.float32)
        state[:, :, 3] = 1
        state[:, 0, :2], state[:, 1, :3], state[:, 2, :2], state[:, 2, 2] = pusher, pose, tips, pose[:, 2]
        states.append(state.reshape(len(pose), -1))
    whole = cache([np.zeros((len(pose), 6, 2)) for pose in poses])
    names = whole.names | {"state": list(hindsight_pusht.STATES)}
    return replace(whole, states=np.concatenate(states), names=names)


def onto_the_mark(way: tuple[float, float] = (-8.0, 0.0)) -> FrameCache:
    """The pusher walks for three steps, then pushes the T in eight by `way` to where it belongs; it stays there for two."""
    done = np.clip((np.arange(14) - 3) / 8, 0, 1)[:, None]
    pose = np.concatenate([AIMS_CM[0] - np.array(way) * (1 - done), np.full((14, 1), np.pi / 4)], 1)
    pusher = pose[:, :2] + (5, 0) + np.clip(3 - np.arange(14), 0, 3)[:, None] * (0, 1.0)
    return tee_cache([pose], [pusher])


def test_pushes_of_the_t_towards_its_mark_become_steps_on_the_way():
    rows = relabel(onto_the_mark())
    told = {
        (rows.groups[g], s, t, rows.captions[c])
        for g, s, t, c in np.stack([rows.group, rows.start, rows.target, rows.caption], 1)
    }
    assert ("behind", 0, 3, "move beside the T pusher {} {}".format(*in_tee_px(AIMS_CM[0] + (13, 0)))) in told
    assert {(s, t) for group, s, t, _ in told if group == "push"} == {(s, s + 2) for s in range(3, 9)}
    assert {(s, t) for group, s, t, _ in told if group == "goal"} == {(9, 11), (10, 11)}
    assert {(s, t) for group, s, t, _ in told if group == "done"} == {(11, 11), (12, 12), (13, 13)}
    assert all(caption == "done" for group, *_, caption in told if group == "done")
    assert {goal for goal, group in zip(rows.goal, rows.group, strict=True) if rows.groups[group] == "edit"} == {1}
    assert all(len(caption.split()) <= 12 for caption in rows.captions)


def in_tee_px(place: np.ndarray) -> np.ndarray:
    return np.round(32 + 2 * place).astype(int)


def test_pushes_away_from_the_mark_are_no_instructions():
    whole = onto_the_mark()
    with pytest.raises(DatasetError, match="never got onto its mark"):
        relabel(replace(whole, states=whole.states[::-1].copy()))
    with pytest.raises(DatasetError, match="state names"):
        hindsight_pusht.relabel_tee(cache([np.zeros((4, 6, 2))]))
