"""The sequence, its mask and the cached steps: no leak, and the steps agree with the training pass."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_token_model import CONFIG, RELEASED, SIZES, VOCABULARY, batch, tiny_model
from torch.nn.attention.flex_attention import BlockMask, create_mask

from emu_embodied.errors import InputError
from emu_embodied.inference.decoding import autoregressive, dida, exact, sampling
from emu_embodied.inference.decoding.config import ORDERS, REDRAFTS, SCHEDULES, DecodingConfig
from emu_embodied.inference.frame_step import FrameStep
from emu_embodied.model.dida_mask import dida_blocks, dida_mask, token_plan
from emu_embodied.model.token_model import TokenModel
from emu_embodied.model.vocabulary import Emu35Vocabulary, Vocabulary

WIRINGS = [
    {"context_frames": 2},
    {"context_frames": 2, "previous_frame_source": False},
    {"context_frames": 0},
    {"context_frames": 2, **RELEASED},
]






@given(st.integers(0, 5), st.integers(1, 3), st.integers(1, 6), st.integers(2, 5), st.integers(1, 4))
@settings(max_examples=60)
def test_the_mask_never_shows_a_frame_its_clean_copy(text, prefix, slots, frames, window):
    plan = token_plan(text, prefix, slots, frames, 1)
    mask = dida_mask(plan, slots, window)
    clean = ~plan.noisy
    for i in range(len(mask)):
        seen = mask[i]
        assert seen[i]
        if not plan.noisy[i]:
            assert not seen[plan.noisy].any() and not seen[i + 1 :].any()
        else:
            t = plan.frame[i]
            own_slots = clean & (plan.frame == t) & (plan.position >= text + t * (prefix + slots) + prefix)
            assert not seen[own_slots].any() and not seen[clean & (plan.frame > t)].any()
            assert seen[plan.noisy].equal((plan.frame == t)[plan.noisy])
        assert not seen[(plan.frame >= 0) & (plan.frame < plan.frame[i] - window)].any()
        assert seen[clean & (plan.frame == -1)].sum() == (text if plan.frame[i] >= 0 else i + 1)


def every_code_its_own(**changes) -> tuple[TokenModel, torch.Tensor]:
    """A model whose codebook has an id for every token of a batch of 2 x 4 frames, and these codes."""
    vocabulary = replace(VOCABULARY, codebook_size=72)
    sizes = replace(SIZES, vocab_size=vocabulary.size, head_dim=16)
    return tiny_model(vocabulary=vocabulary, transformer=sizes, **changes), torch.arange(72).view(2, 4, 9)


def assert_no_gradient_flows_from_a_noisy_frame_to_its_clean_copy(model: TokenModel, codes: torch.Tensor) -> None:
    device = model.noised.device
    text, _, actions, _, _ = (x.to(device) for x in batch(model))
    noisy = codes[:, 1:].to(device)
    predicted = model(text, codes.to(device), actions, noisy, torch.ones_like(noisy, dtype=torch.bool)).noisy_BFND
    table = model.transformer.model.embed_tokens.weight
    for t in range(1, 4):
        grad = torch.autograd.grad(predicted[:, t - 1].square().sum(), table, retain_graph=True)[0]
        seen = grad[model.config.vocabulary.visual].abs().sum(-1).view(2, 4, 9) > 0
        for u in range(4):
            # without a context the previous frame comes through the source; one in sight has itself seen those before it
            expected = u == t - 1 if model.config.context_frames == 0 else u < t
            assert seen[:, u].all() if expected else not seen[:, u].any(), f"frame {t} and clean frame {u}"


@pytest.mark.parametrize("context", [0, 2, 4])
@pytest.mark.parametrize("shift", [False, True])
def test_no_gradient_flows_from_a_noisy_frame_to_its_clean_copy(shift, context):
    job = every_code_its_own(next_token_shift=shift, context_frames=context)
    assert_no_gradient_flows_from_a_noisy_frame_to_its_clean_copy(*job)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention has gradients on CUDA only, and there is none")
@pytest.mark.parametrize("context", [0, 2, 4])
@pytest.mark.parametrize("shift", [False, True])
def test_no_gradient_flows_through_blocks_either(shift, context):
    model, codes = every_code_its_own(next_token_shift=shift, context_frames=context)
    model.cuda()
    assert isinstance(model.layout(4, 1, blocks=True)[1], BlockMask)
    assert_no_gradient_flows_from_a_noisy_frame_to_its_clean_copy(model, codes)


@given(st.integers(0, 40), st.integers(1, 3), st.integers(1, 64), st.integers(1, 5), st.integers(0, 4), st.booleans())
@settings(max_examples=25)
def test_blocks_are_the_dense_mask(text, prefix, slots, frames, window, noisy):
    plan = token_plan(text, prefix, slots, frames, min(1, frames - 1) if noisy else None)
    dense, blocks, length = dida_mask(plan, slots, window), dida_blocks(plan, window), len(plan.position)
    assert create_mask(blocks.mask_mod, None, None, length, length, "cpu")[0, 0].equal(dense)
    rows = -(-length // 128)  # a block of 128 x 128 pairs is passed over only where no pair attends
    padded = torch.nn.functional.pad(dense, (0, 128 * rows - length, 0, 128 * rows - length))
    assert blocks.to_dense()[0, 0].bool().equal(padded.view(rows, 128, rows, 128).any(3).any(1))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("shift", [False, True])
@torch.no_grad()
def test_blocks_give_the_dense_states_and_do_not_leak(shift, wiring):
    model = tiny_model(next_token_shift=shift, **wiring)
    text, codes, actions, noisy, hidden = batch(model)
    dense = model(text, codes, actions, noisy, hidden)
    assert model.blocks is None and isinstance(model.layout(4, 1)[1], torch.Tensor)
    model.blocks = True
    base = model(text, codes, actions, noisy, hidden)
    torch.testing.assert_close(base.noisy_BFND, dense.noisy_BFND, atol=1e-5, rtol=0)
    torch.testing.assert_close(base.clean_BFTD, dense.clean_BFTD, atol=1e-5, rtol=0)
    for t in range(1, 4):  # another clean frame t: no noisy frame until t and no clean one before t may notice
        other = codes.clone()
        other[:, t] = (other[:, t] + 1) % 32
        states = model(text, other, actions, noisy, hidden)
        assert states.noisy_BFND[:, :t].equal(base.noisy_BFND[:, :t])
        assert states.clean_BFTD[:, : t - 1].equal(base.clean_BFTD[:, : t - 1])
        if t < 3:
            assert not torch.isclose(states.noisy_BFND[:, t], base.noisy_BFND[:, t]).all(-1).any()


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("shift", [False, True])
def test_cached_steps_agree_with_the_training_pass(wiring, shift):
    model = tiny_model(next_token_shift=shift, **wiring)
    text, codes, actions, noisy, hidden = batch(model, frames=5)
    states = model(text, codes, actions, noisy, hidden)
    predicted, causal = states.noisy_BFND, model.visual_logits(model.frame_predictions(states.clean_BFTD))
    alone = model(text, codes, actions, noisy, hidden, causal=False)
    assert alone.clean_BFTD is None
    torch.testing.assert_close(alone.noisy_BFND, predicted, atol=1e-5, rtol=1e-5)
    step = FrameStep(model)
    with torch.no_grad():
        cache = step.prefill(text, codes[:, :2], actions[:, :1], ahead=3)
        for t in range(2, 5):
            logits = step.denoise(cache, actions[:, t - 1], noisy[:, t - 1], hidden[:, t - 1]).logits
            torch.testing.assert_close(logits, model.visual_logits(predicted[:, t - 1]), atol=1e-4, rtol=1e-4)
            if t == 3:  # token by token
                source_BND, before = step.frame_source(cache, actions[:, t - 1]), None
                for n in range(model.config.slots + 1):
                    logits = step.next_token(cache, actions[:, t - 1], n, before, source_BND).logits
                    if n < model.config.slots:
                        torch.testing.assert_close(logits, causal[:, t - 1, n], atol=1e-4, rtol=1e-4)
                        before = codes[:, t, n]
                step.finish(cache, codes[:, t])
            else:
                step.commit(cache, actions[:, t - 1], codes[:, t])


def test_a_frame_in_the_released_layout_is_the_image_that_the_released_models_write():
    model, c = tiny_model(**RELEASED), Emu35Vocabulary(ranks=40, codebook_size=32, action_bins=8)
    embedded = model.embed_clean(torch.tensor([[-1.0, 1.0]]), torch.arange(9)[None], None)
    visual = [c.visual_offset + code for code in range(9)]
    rows = [*visual[:3], c.end_of_line, *visual[3:6], c.end_of_line, *visual[6:], c.image_end]
    written = [c.image_start, c.digit(3), c.times, c.digit(3), c.image_token, *rows]
    table = model.transformer.model.embed_tokens.weight
    assert embedded[0, 2:].equal(table[written]) and model.config.frame_tokens == 2 + len(written)
    values = model.action_value(torch.tensor([-1.0, 1.0])).view(2, -1)
    torch.testing.assert_close(embedded[0, :2] - values, table[[c.action_offset, c.action_offset + 7]])
    noisy = model.embed_noisy(torch.arange(9)[None], torch.ones(1, 9, dtype=torch.bool), None)
    assert (noisy[0, 3] - model.noised).allclose(table[c.end_of_line]) and noisy[0, 4].equal(noisy[0, 0])


def test_the_released_layout_has_no_previous_frame_source():
    with pytest.raises(InputError, match="previous_frame_source"):
        tiny_model(**RELEASED | {"previous_frame_source": True})


def test_candidates_share_a_prefix():
    model = tiny_model()
    text, codes, actions, *_ = batch(model)
    step = FrameStep(model)
    with torch.no_grad():
        shared = step.prefill(text, codes[:, :2], actions[:, :1], ahead=1).expand(3)
        alone = step.prefill(*(x.repeat_interleave(3, 0) for x in (text, codes[:, :2], actions[:, :1])), ahead=1)
        for cache in (shared, alone):
            cache.result = dida.decode_frame(
                step, cache, actions[:, 1].repeat_interleave(3, 0), DecodingConfig(passes=2)
            )
    assert shared.result[0].equal(alone.result[0])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("passes", [1, 2, 5, 9])
def test_every_slot_is_decided_once(passes, order, schedule):
    model = tiny_model()
    text, codes, actions, *_ = batch(model)
    step, opened = FrameStep(model), []
    denoise = step.denoise
    step.denoise = lambda cache, a, c, h, *draw: (opened.append(h.clone()), denoise(cache, a, c, h, *draw))[1]
    config = DecodingConfig(passes=passes, order=order, schedule=schedule, temperature=1.0)
    with torch.no_grad():
        cache = step.prefill(text, codes[:, :2], actions[:, :1], ahead=1)
        drawn, _, entropy = dida.decode_frame(step, cache, actions[:, 1], config, torch.Generator().manual_seed(0))
    assert len(opened) == passes and opened[0].all()
    for before, after in zip(opened, opened[1:], strict=False):
        assert (after <= before).all() and (after.sum(1) < before.sum(1)).all()
    assert drawn.shape == (2, 9) and (entropy > 0).all()


def test_the_antidiagonal_order_decides_whole_diagonals():
    model = tiny_model()
    text, codes, actions, *_ = batch(model)
    step, opened = FrameStep(model), []
    denoise = step.denoise
    step.denoise = lambda cache, a, c, h, *draw: (opened.append(h[0].clone()), denoise(cache, a, c, h, *draw))[1]
    with torch.no_grad():
        cache = step.prefill(text, codes[:, :2], actions[:, :1], ahead=1)
        dida.decode_frame(step, cache, actions[:, 1], DecodingConfig(passes=5, order="antidiagonal"))
    diagonal = torch.tensor([row + column for row in range(3) for column in range(3)])
    for k, still_open in enumerate(opened):
        assert still_open.equal(diagonal >= k)


HALTON_4x4 = (10, 3, 13, 7, 5, 9, 1, 11, 8, 0, 15, 4, 2, 12, 6, 14)


@given(st.integers(1, 9))
def test_fixed_orders_visit_every_slot_and_halton_spreads(side):
    for order in ("halton", "antidiagonal"):
        assert sorted(dida.fixed_order(order, side**2)) == list(range(side**2))
    assert dida.fixed_order("halton", 16) == HALTON_4x4  # checkpoints were judged with it
    ranks = torch.tensor(dida.fixed_order("halton", 64)).view(8, 8)
    first = ranks < 16  # a quarter of the slots: each quadrant has its share
    assert all(2 <= first[r : r + 4, c : c + 4].sum() <= 6 for r in (0, 4) for c in (0, 4))


def test_remasking_may_open_a_slot_again_but_decides_all_in_the_end():
    model = tiny_model()
    text, codes, actions, *_ = batch(model)
    step, opened = FrameStep(model), []
    denoise = step.denoise
    step.denoise = lambda cache, a, c, h, *draw: (opened.append(h.clone()), denoise(cache, a, c, h, *draw))[1]
    with torch.no_grad():
        cache = step.prefill(text, codes[:, :2], actions[:, :1], ahead=1)
        config = DecodingConfig(passes=8, remask=True, temperature=2.0)
        dida.decode_frame(step, cache, actions[:, 1], config, torch.Generator().manual_seed(3))
    again = [(after & ~before).any() for before, after in zip(opened, opened[1:], strict=False)]
    counts = [o.sum(1).tolist() for o in opened]
    assert any(again) and all(len(set(c)) == 1 for c in counts) and counts == sorted(counts, reverse=True)


@given(st.integers(0, 999), st.integers(0, 12), st.floats(0.05, 1.0), st.floats(0.2, 3.0))
@settings(max_examples=60)
def test_top_k_and_top_p_keep_the_likeliest(seed, top_k, top_p, temperature):
    logits = 3 * torch.randn(5, 10, generator=torch.Generator().manual_seed(seed))
    config = DecodingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    kept = sampling.log_probs(logits, config)
    full = (logits / temperature).softmax(-1)
    assert torch.allclose(kept.exp().sum(-1), torch.ones(5), atol=1e-4)
    inside = kept.isfinite()
    assert inside.gather(-1, logits.argmax(-1, keepdim=True)).all()
    assert (full.masked_fill(~inside, 2).amin(-1) >= full.masked_fill(inside, -1).amax(-1)).all()
    if top_k:
        assert (inside.sum(-1) <= top_k).all()
    elif top_p < 1:
        assert (full.masked_fill(~inside, 0).sum(-1) >= top_p - 1e-5).all()
    codes, log_prob = sampling.sample(kept, config, torch.Generator().manual_seed(seed))
    assert log_prob.isfinite().all() and inside.gather(-1, codes[:, None]).all()


def test_greedy_autoregression_is_the_causal_half():
    model = tiny_model()
    text, codes, actions, *_ = batch(model)
    step = FrameStep(model)
    with torch.no_grad():
        cache = step.prefill(text, codes[:, :2], actions[:, :1], ahead=1)
        drawn, hidden, _ = autoregressive.decode_frame(step, cache, actions[:, 1])
        clean = model(text, torch.stack([codes[:, 0], codes[:, 1], drawn], 1), actions[:, :2]).clean_BFTD
        expected = model.visual_logits(model.frame_predictions(clean))[:, 1].argmax(-1)
    assert drawn.equal(expected)


@pytest.mark.parametrize(
    "option",
    [{"passes": 0}, {"passes": 1.5}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"order": "up"}, {"schedule": "x"}],
)
def test_options_out_of_range_are_refused(option):
    with pytest.raises(InputError, match=next(iter(option))):
        DecodingConfig(**option)


@pytest.mark.parametrize("passes", [10])
def test_passes_outside_the_frame_are_refused(passes):
    model = tiny_model()
    text, codes, actions, *_ = batch(model)
    step = FrameStep(model)
    cache = step.prefill(text, codes[:, :2], actions[:, :1], ahead=1)
    with pytest.raises(InputError, match="passes"):
        dida.decode_frame(step, cache, actions[:, 1], DecodingConfig(passes=passes))


def test_codes_that_lie_near_each_other_start_alike():
    model = TokenModel(CONFIG)
    places = torch.linspace(-1, 1, 32)[:, None].expand(32, 2)
    model.place_codes(places, own=0.3)
    for table in (model.transformer.model.embed_tokens.weight, model.transformer.lm_head.weight):
        codes = torch.nn.functional.normalize(table[VOCABULARY.visual], dim=-1)
        alike = codes @ codes.T
        assert alike.diagonal(1).mean() > 0.7 and alike.diagonal(1).mean() > alike.diagonal(16).mean() + 0.3
        assert 0.01 < table[VOCABULARY.visual].std() < 0.03


@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from([0, 2]), st.sampled_from(REDRAFTS))
@settings(max_examples=25)
def test_exact_decoding_gives_the_greedy_tokens(seed, size, context, redraft):
    model = tiny_model(context_frames=context)
    step, generator = FrameStep(model), torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 32, (size, 2, 9), generator=generator)
    text = torch.randint(0, 20, (size, 4), generator=generator)
    actions = torch.rand(size, 2, 2, generator=generator) * 2 - 1
    with torch.no_grad():
        cache, config = step.prefill(text, codes, actions[:, :1], ahead=1), DecodingConfig("exact", redraft=redraft)
        drawn, hidden, _ = exact.decode_frame(step, cache, actions[:, 1], config)
        wanted, states, _ = autoregressive.decode_frame(
            step, step.prefill(text, codes, actions[:, :1], ahead=1), actions[:, 1]
        )
    assert drawn.equal(wanted)
    torch.testing.assert_close(hidden, states, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("redraft", REDRAFTS)
def test_exact_sampling_has_the_autoregressive_distribution(redraft):
    """A frame of one patch row is small enough to count: 4 slots of 3 codes, 81 frames."""
    vocabulary = Vocabulary(text_size=20, codebook_size=3, action_bins=8)
    model = tiny_model(vocabulary=vocabulary, transformer=replace(SIZES, vocab_size=vocabulary.size), grid=2)
    step, n, temperature = FrameStep(model), 12_000, 1.3
    text, codes, actions = torch.zeros(1, 4, dtype=torch.long), torch.tensor([[[0, 1, 2, 0]]]), torch.full((1, 2), 0.4)
    frames = torch.cartesian_prod(*[torch.arange(3)] * 4)
    with torch.no_grad():
        cache = step.prefill(text, codes, actions[:, None, :][:, :0], ahead=1)
        logits, _ = step.verify(cache.expand(81), actions.expand(81, 2), frames)
        true = (logits / temperature).log_softmax(-1).gather(-1, frames[..., None])[..., 0].sum(1).exp()
        generator = torch.Generator().manual_seed(0)
        config = DecodingConfig("exact", temperature=temperature, redraft=redraft)
        drawn, _, _ = exact.decode_frame(step, cache.expand(n), actions.expand(n, 2), config, generator)
    assert abs(true.sum() - 1) < 1e-4
    counts = torch.bincount((drawn * torch.tensor([27, 9, 3, 1])).sum(1), minlength=81).double()
    chi2 = ((counts - n * true) ** 2 / (n * true)).sum()
    assert chi2 < 140  # 80 degrees of freedom: exceeded by chance once in 40,000 seeds


def test_more_frames_than_the_cache_holds_are_refused():
    model = tiny_model()
    text, codes, actions, *_ = batch(model)
    step = FrameStep(model)
    with torch.no_grad():
        cache = step.prefill(text, codes[:, :2], actions[:, :1], ahead=1)
        with pytest.raises(InputError, match="the cache holds"):
            for _ in range(3):
                step.commit(cache, actions[:, 1], codes[:, 2])
