"""Key frames from words: chains end in their budget, are whole, repeat by seed, and refuse what they cannot follow."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from recorded_play import cache, pushed_left
from tiny import WORLD, tiny_world_model
from tiny_key_frames import SIZES, proposer, rows, world_model
from tiny_training import quiet

from emu_embodied.checkpoint import load_checkpoint, save_checkpoint
from emu_embodied.commands import main
from emu_embodied.data.frame_cache import FrameCache, load_frame_cache, save_frame_cache
from emu_embodied.errors import CheckpointError, ConfigError, InputError
from emu_embodied.generation.key_frames import DONE, SubgoalDecoding, TokenSubgoals, repeats
from emu_embodied.loading import load, load_proposer
from emu_embodied.rollouts.goals.hindsight_tabletop import HindsightConfig, relabel
from emu_embodied.training.folder import TrainingRun
from emu_embodied.training.key_frame_batches import LanguageConfig, SubgoalSampler
from emu_embodied.training.loop import LoopConfig
from emu_embodied.training.objectives import TrajectoryConfig
from emu_embodied.training.stages.language import teach_subgoals
from emu_embodied.types import Observation, Subgoal

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
RED = "push the red cube to the left"








def start(instruction: str = "push the cube to the left") -> Observation:
    return Observation(PIXELS, np.zeros(2, np.float32), instruction)


def same(one: list[Subgoal], other: list[Subgoal]) -> bool:
    return [s.caption for s in one] == [s.caption for s in other] and all(
        (a.frame == b.frame).all() and (a.codes == b.codes).all() for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"frames": {"decoding": "autoregressive"}},
        {"frames": {"guidance": 3.0}},
        {"samples": 3, "caption_temperature": 1.0},
    ],
)
def test_chains_are_whole_and_end_in_their_budget(how):
    draws = proposer(**{**how, "frames": {"temperature": 1.0, **how.get("frames", {})}})
    for seed in range(3):
        chain = draws.propose(start(), 3, seed)
        assert len(chain) <= 3
        for subgoal in chain:
            assert subgoal.frame.shape == (64, 64, 3) and subgoal.frame.dtype == np.uint8
            assert subgoal.codes.shape == (16,) and subgoal.places.shape == (len(draws.objects), 3)
            assert subgoal.caption != DONE and len(draws.text.encode(subgoal.caption)) <= 2 * SIZES.caption_length
            assert np.isfinite(subgoal.log_prob) and subgoal.log_prob < 0


def test_the_same_seed_draws_the_same():
    how = {"samples": 2, "caption_temperature": 1.0, "frames": {"temperature": 1.0}}
    chains = [proposer(**how).propose(start(), 2, seed) for seed in (1, 1, 2)]
    assert same(*chains[:2])
    assert not same(chains[0], chains[2])


def test_a_chain_is_the_same_whatever_is_drawn_beside_it():
    """A chain's noise is its own, word by word and frame by frame; others end earlier, and are asked again."""
    how = {"caption_temperature": 1.0, "frames": {"temperature": 1.0, "passes": 2}}
    chains = {n: proposer(samples=n, **how).chains(start(), 3, 4) for n in (1, 2, 5)}

    def drawn(samples: int, chain: int) -> list:
        return [(subgoal.caption, subgoal.codes.tolist(), subgoal.last) for subgoal in chains[samples][chain]]

    assert drawn(1, 0) == drawn(2, 0) == drawn(5, 0) and drawn(2, 1) == drawn(5, 1)
    assert len({str(drawn(5, chain)) for chain in range(5)}) == 5


def test_again_draws_by_chance_with_the_same_weights():
    draws = proposer()
    again = draws.again
    assert again.model is draws.model and again.config.frames.temperature == again.config.caption.temperature == 0.5
    assert same(draws.propose(start(), 2, 1), draws.propose(start(), 2, 2))
    assert not same(again.propose(start(), 2, 1), again.propose(start(), 2, 2))


def test_the_likeliest_of_several_chains_is_proposed():
    draws = proposer(samples=4, caption_temperature=1.0, frames={"temperature": 1.0})
    likelihoods = [np.mean([s.log_prob for s in chain]) for chain in draws.chains(start(), 2, 5)]
    assert np.mean([s.log_prob for s in draws.propose(start(), 2, 5)]) == pytest.approx(max(likelihoods), rel=1e-4)


def test_an_edit_is_one_frame_and_what_comes_next_needs_no_words():
    draws = proposer()
    assert isinstance(draws.edit(start("make the cube be in the middle")), Subgoal)
    assert len(draws.go_on(start(""), 2)) == 2
    assert same(draws.go_on(start(""), 2), draws.go_on(start("anything at all"), 2))


def test_captions_are_heard_as_they_grow():
    heard, draws = [], proposer(caption_temperature=1.0)
    chain = draws.chains(start(), 2, 3, heard.append)[0]
    assert heard and all(subgoal.caption in ("", *heard) for subgoal in chain)
    assert any(len(later) > len(earlier) for earlier, later in zip(heard, heard[1:], strict=False))


@pytest.mark.parametrize(
    ("instruction", "words"),
    [
        ("", "say what is to be done"),
        ("   ", "say what is to be done"),
        (None, "say what is to be done"),
        ("push " * 3000, "characters"),
        ("push the cube to the left and then again to the left and to the left", "tokens fit"),
    ],
)
def test_instructions_that_cannot_be_followed_are_refused(instruction, words):
    with pytest.raises(InputError, match=words):
        proposer().propose(start(instruction))


def test_unknown_words_and_absent_cubes_are_refused():
    draws = TokenSubgoals(world_model(), ("push", "the", "red", "cube", "to", "left"), SubgoalDecoding())
    with pytest.raises(InputError, match=r"trained without the words \['unicorn'\]"):
        draws.propose(start("push the unicorn to the left"))
    draws.look = lambda pixels: np.zeros((len(draws.objects), 3), np.float32)
    with pytest.raises(InputError, match="sees no red thing"):
        draws.propose(start(RED))


@pytest.mark.parametrize("count", [0, -1, 33, 2.0, True])
def test_counts_out_of_range_are_refused(count):
    with pytest.raises(InputError, match="count"):
        proposer().propose(start(), count)


def test_frames_of_another_shape_are_refused():
    with pytest.raises(InputError, match="pixels"):
        proposer().propose(Observation(PIXELS[:32], np.zeros(2, np.float32), "push the cube to the left"))


def test_a_world_model_without_captions_is_refused():
    with pytest.raises(InputError, match="stage=language"):
        TokenSubgoals(tiny_world_model())


def test_other_weights_stay_when_a_model_gets_prompts():
    plain, taught = tiny_world_model(0, context=0), world_model()
    old, new = plain.model.config.vocabulary, taught.model.config.vocabulary
    for table in ("embed_tokens",):
        before, after = (getattr(m.model.transformer.model, table).weight for m in (plain, taught))
        assert torch.equal(before[old.pad :], after[new.pad :])
    assert torch.equal(plain.model.noised, taught.model.noised)
    prompt = taught.model.prompt(
        *(torch.full((1, n), new.pad) for n in (14,)), torch.arange(16)[None], torch.full((1, 20), new.pad)
    )
    assert prompt.shape == (1, taught.model.config.text_length)
    assert (prompt[0, 17:33] - new.visual_offset).tolist() == list(range(16))


def pictures(episodes: FrameCache) -> FrameCache:
    """The cache with frames in which red and blue squares stand where the states say."""
    states = episodes.states.reshape(len(episodes), -1, 4)
    pixels = np.full((len(episodes), 64, 64, 3), 220, np.uint8)
    for frame, state in zip(pixels, states, strict=True):
        for row, colour in ((1, (219, 41, 33)), (3, (38, 84, 219)), (0, (26, 26, 31))):
            x, y = np.clip(np.round(32 + np.array([2, -2]) * state[row, :2]), 4, 60).astype(int)
            frame[y - 4 : y + 4, x - 4 : x + 4] = colour
    return replace(episodes, pixels=pixels)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A tiny checkpoint, its teaching through the command, and the frames."""
    folder = tmp_path_factory.mktemp("taught")
    plain = tiny_world_model(0, context=0)
    save_checkpoint(folder / "plain", plain.tokenizer, plain.text, plain.model, WORLD, {})
    save_frame_cache(folder / "frames", pictures(cache([pushed_left()] * 8)))
    words = [
        "train", "stage=language", f"from={folder / 'plain'}", f"frames={folder / 'frames'}", "recipe.held_out=1",
        "language.loop.steps=6", "language.loop.log_every=3", "language.loop.evaluate_every=100", "language.loop.save_every=3",
        "language.batch=4", "recipe.trajectory.batch=2", "device=cpu", f"out={folder / 'run'}",
    ]  # fmt: skip
    assert main(words) == 0
    return folder


def test_the_command_teaches_and_what_it_wrote_draws(taught, capsys):
    draws = load_proposer(taught / "run" / "checkpoint", passes=2)
    assert {"red", "left"} <= draws.words
    frame = taught / "frame.png"
    cv2.imwrite(str(frame), np.full((48, 80), 200, np.uint8))  # grey, and of another size
    draw = [
        "subgoal",
        f"checkpoint={taught / 'run' / 'checkpoint'}",
        f"image={frame}",
        f"out={taught / 'drawn'}",
        "passes=2",
    ]
    assert main([*draw, "mode=continue", "count=2"]) == 0
    (folder,) = (taught / "drawn").iterdir()
    facts = json.loads((folder / "subgoals.json").read_text())
    assert (folder / "strip.png").stat().st_size > 1000 and len(facts["chains"][0]) == 2
    capsys.readouterr()
    for wrong in (["instruction=''"], ["instruction='push the unicorn'"], ["mode=dream"], ["instruction=3"], []):
        assert main([*draw, *wrong]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert len(list((taught / "drawn").iterdir())) == 1


def test_teaching_goes_on_where_it_stopped(taught, tmp_path):
    frames = load_frame_cache(taught / "frames")
    known = relabel(frames.select(range(7)), HindsightConfig(held_out=()))
    loop = LoopConfig(4, warmup=1, save_every=2, log_every=4)
    config = LanguageConfig(batch=4, text_size=400)
    job = (frames, known, config, TrajectoryConfig(batch=2))
    source = taught / "plain"
    whole = load_checkpoint(teach_subgoals(*job, loop, source, quiet(tmp_path / "whole"), held_out=1))[2]

    class Killed(Exception):
        pass

    def kill(line: str) -> None:
        if line.startswith("language 3/"):
            raise Killed

    with pytest.raises(Killed):
        dying = TrainingRun(tmp_path / "parts", report=kill)
        teach_subgoals(*job, replace(loop, log_every=1), source, dying, held_out=1)
    parts = load_checkpoint(teach_subgoals(*job, loop, source, quiet(tmp_path / "parts"), held_out=1))[2]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_what_draws_already_is_taught_further_with_the_words_it_has(taught, tmp_path):
    frames = load_frame_cache(taught / "frames")
    known = relabel(frames.select(range(7)), HindsightConfig(held_out=()))
    source, loop = taught / "run" / "checkpoint", LoopConfig(1, learning_rate=1e-9, warmup=1, log_every=1)
    config = LanguageConfig(batch=4, text_size=500, caption_length=30)
    further = teach_subgoals(
        frames, known, config, TrajectoryConfig(batch=2), loop, source, quiet(tmp_path), held_out=1
    )
    (_, text, before, _, _), (_, same_text, after, _, _) = load_checkpoint(source), load_checkpoint(further)
    assert text.to_json() == same_text.to_json() and before.config == after.config
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_batches_are_balanced_and_told_what_they_show(taught):
    model = load(taught / "run" / "checkpoint")
    frames = cache([pushed_left()] * 3)
    codes = torch.arange(len(frames))[:, None].expand(-1, 16)
    config = LanguageConfig(batch=64, groups={"goal": 1.0})
    sampler = SubgoalSampler(rows(), frames, codes, model.text, model.model, config, 0)
    batch = sampler.batch(0, 0.0)
    goal = np.flatnonzero(rows().group == rows().groups.index("goal"))
    pairs = {(int(s), int(t)) for s, t in zip(rows().start[goal], rows().target[goal], strict=True)}
    assert {(int(a), int(b)) for a, b in zip(batch.codes_BN[:, 0], batch.target_BN[:, 0], strict=True)} <= pairs
    v = model.model.config.vocabulary
    assert all((ids == v.end).sum() == 1 for ids in batch.caption_BS)
    assert "is at" in model.text.decode(batch.caption_BS[0].tolist())
    with pytest.raises(ConfigError, match="groups"):
        SubgoalSampler(rows(), frames, codes, model.text, model.model, LanguageConfig(groups={"dance": 1.0}), 0)


def test_a_proposer_needs_a_checkpoint_that_learnt_it(taught):
    with pytest.raises(InputError, match="stage=language"):
        load_proposer(taught / "plain")
    with pytest.raises(CheckpointError, match="choose among"):
        load_proposer("nano-nothing")


@pytest.mark.parametrize(
    ("caption", "before", "same"),
    [
        ("move behind the red cube pusher 10 32", "move behind the red cube pusher 12 30", True),
        ("move behind the red cube pusher 10 32", "move behind the red cube pusher 13 32", False),
        ("move behind the red cube", "move behind the blue cube", False),
        ("push the red cube", "push the red cube on", False),
        ("", "", False),
    ],
)
def test_captions_that_say_nothing_new_are_known(caption, before, same):
    assert repeats(caption, before) is same


def test_a_chain_does_not_say_the_same_twice_in_a_row():
    draws = proposer()
    draws.model.transformer.lm_head.weight.data[draws.model.config.vocabulary.end] *= -5  # long captions
    chain = draws.go_on(start(""), 6)
    assert len(chain) > 1 and not any(repeats(b.caption, a.caption) for a, b in zip(chain, chain[1:], strict=False))
