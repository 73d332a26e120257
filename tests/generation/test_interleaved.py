"""Generation: batches as rows alone, guidance and DiDA against plain references, events in order, errors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from emu_embodied.errors import InputError
from emu_embodied.generation.grammar import Grammar, GrammarConfig, mask_logits
from emu_embodied.generation.interleaved import (
    Ended,
    GenerationConfig,
    ImageBegun,
    ImageFinished,
    ImageProgress,
    TextPiece,
    generate,
)
from emu_embodied.inference import ragged_kv_cache
from emu_embodied.inference.decoding.config import DecodingConfig
from emu_embodied.model.transformer import Transformer, TransformerConfig
from emu_embodied.model.vocabulary import Emu35Vocabulary

V = Emu35Vocabulary(ranks=300, codebook_size=64)
PROMPTS = [[V.beginning, 5, 6, V.span_start], [V.beginning, *range(20, 37), V.span_start], [V.beginning, 7]]
EMPTY = [[V.beginning, V.span_start], [V.beginning, *V.image_header(1, 1), V.visual_offset, V.image_end], [V.beginning]]
DIDA = DecodingConfig("dida", passes=3)


@pytest.fixture(scope="module")
def model() -> Transformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
        model = Transformer(TransformerConfig(V.size, hidden_size=32, head_dim=16, **sizes)).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
        model.lm_head.weight.data[V.image_start] *= 3  # likes to begin images
    return model


@pytest.fixture(scope="module")
def noisy() -> SimpleNamespace:
    made = torch.Generator().manual_seed(1)
    return SimpleNamespace(hidden_token=torch.randn(32, generator=made), noised=0.3 * torch.randn(32, generator=made))


def ids_of(events: list, rows: int) -> list[list[int]]:
    """The answers' ids, put together again from the events."""
    answers = [[] for _ in range(rows)]
    for event in events:
        if isinstance(event, TextPiece):
            answers[event.row] += event.ids
        elif isinstance(event, ImageFinished):
            answers[event.row] += V.image_header(*event.codes_HW.shape)
            lines = (event.codes_HW + V.visual_offset).tolist()
            answers[event.row] += [t for line in lines for t in (*line, V.end_of_line)][:-1] + [V.image_end]
        elif isinstance(event, Ended):
            answers[event.row].append(V.end)
    return answers


def run(model, prompts, config, empty=None, seed=0, noisy=None) -> list:
    return list(generate(model, V, prompts, config, empty, torch.Generator().manual_seed(seed), noisy))


def guided_reference(model: Transformer, prompt: list[int], empty: list[int], config: GenerationConfig) -> list[int]:
    """Greedy and token by token with whole forward passes; the unconditional stream reads the answer's images only."""
    grammar, answer, images = Grammar.start(V, config.grammar), [], []
    while not grammar.ended:
        logits = mask_logits(model(torch.tensor([prompt + answer]))[:, -1], [grammar])[0]
        if grammar.expects_visual:
            c = model(torch.tensor([prompt + answer]))[0, -1, V.visual].log_softmax(-1)
            u = model(torch.tensor([empty + images]))[0, -1, V.visual].log_softmax(-1)
            token = int((u + config.image.guidance * (c - u)).argmax()) + V.visual_offset
        else:
            token = int(logits.argmax())
        before, grammar = grammar, grammar.advance(token)
        answer.append(token)
        if grammar.height and (grammar.phase.name != "TEXT" or before.phase.name == "BLOCK") or token == V.image_start:
            images.append(token)
    return answer


@torch.no_grad()
def dida_reference(model, noisy, past: list[int], height: int, width: int, passes: int) -> torch.Tensor:
    """One image's codes by whole passes over clean past and noisy block under an explicit mask; a schedule by hand."""
    length, clean = height * (width + 1) - 1, len(past)
    visual = torch.tensor([i for i in range(length) if i % (width + 1) != width])
    codes, decided = torch.zeros(len(visual), dtype=torch.long), torch.zeros(len(visual), dtype=torch.bool)
    mask = torch.ones(clean + length, clean + length, dtype=torch.bool).tril()
    mask[clean:, clean:] = True
    embed = model.model.embed_tokens
    for k in range(1, passes + 1):
        block = embed(torch.full((length,), V.end_of_line))
        block[visual] = torch.where(decided[:, None], embed(codes + V.visual_offset), noisy.hidden_token)
        x = torch.cat([embed(torch.tensor(past)), block + noisy.noised])[None]
        hidden = model.hidden(x, torch.arange(clean + length), mask)[0]
        scores = model.lm_head(hidden[clean + visual - 1])[:, V.visual].log_softmax(-1)
        codes = torch.where(decided, codes, scores.argmax(-1))
        stays = len(visual) - max(
            passes - k, int(len(visual) * torch.cos(torch.tensor(torch.pi / 2 * k / passes)) + 1e-6)
        )
        sure = scores.max(-1).values.masked_fill(decided, torch.inf)
        decided = torch.zeros_like(decided).index_fill(0, sure.argsort(descending=True)[:stays], True)
    return codes.view(height, width)


OPTIONS = {
    "free": GrammarConfig(90, images=2, max_side=12, max_image_tokens=20),
    "forced": GrammarConfig(70, images=2, grid=(2, 3)),
    "image first": GrammarConfig(40, images=1, grid=(3, 4), begins_with_image=True, text=False),
    "text": GrammarConfig(20, images=0),
}


@pytest.mark.parametrize(
    "image", [DecodingConfig("autoregressive"), DIDA, DecodingConfig("dida", passes=2, guidance=3.0)]
)
@pytest.mark.parametrize("grammar", OPTIONS.values(), ids=OPTIONS)
def test_a_batch_gives_each_row_what_it_gets_alone(model, noisy, grammar, image):
    config = GenerationConfig(grammar, image=image)
    together = ids_of(run(model, PROMPTS, config, EMPTY, noisy=noisy), 3)
    alone = [
        ids_of(run(model, [prompt], config, [empty], noisy=noisy), 1)[0]
        for prompt, empty in zip(PROMPTS, EMPTY, strict=True)
    ]
    assert together == alone
    assert all(len(answer) <= grammar.budget for answer in together)
    if grammar.images:
        assert any(V.image_start in answer for answer in together)


@pytest.mark.parametrize("grammar", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_guided_answers_are_those_of_plain_forward_passes(model, grammar, scale):
    config = GenerationConfig(grammar, image=DecodingConfig("autoregressive", guidance=scale))
    answers = ids_of(run(model, PROMPTS, config, EMPTY), 3)
    with torch.no_grad():
        for prompt, empty, answer in zip(PROMPTS, EMPTY, answers, strict=True):
            assert answer == guided_reference(model, prompt, empty, config)


def test_guidance_changes_images_and_a_scale_of_one_reads_no_second_stream(model, monkeypatch):
    grammar, rows = OPTIONS["image first"], []
    monkeypatch.setattr(ragged_kv_cache.RaggedCache, "__init__", _counting(ragged_kv_cache.RaggedCache.__init__, rows))
    images = [
        ids_of(
            run(model, PROMPTS, GenerationConfig(grammar, image=DecodingConfig("autoregressive", guidance=s)), EMPTY), 3
        )
        for s in (1.0, 5.0)
    ]
    assert images[0] != images[1] and rows == [3, 6]


def _counting(method, rows):
    def counted(self, model, count, capacity):
        rows.append(count)
        method(self, model, count, capacity)

    return counted


@pytest.mark.parametrize(("grid", "passes"), [((3, 4), 1), ((3, 4), 4), ((1, 5), 3), ((2, 1), 9)])
def test_dida_draws_what_whole_passes_under_an_explicit_mask_draw(model, noisy, grid, passes):
    grammar = GrammarConfig(60, images=1, grid=grid, text=False, begins_with_image=True)
    events = run(model, PROMPTS, GenerationConfig(grammar, image=DecodingConfig("dida", passes=passes)), noisy=noisy)
    for row, prompt in enumerate(PROMPTS):
        (image,) = (e.codes_HW for e in events if isinstance(e, ImageFinished) and e.row == row)
        slots = grid[0] * grid[1]
        expected = dida_reference(model, noisy, prompt + V.image_header(*grid), *grid, min(passes, slots))
        assert torch.equal(image, expected)
        progress = [e.decided for e in events if isinstance(e, ImageProgress) and e.row == row]
        assert len(progress) == min(passes, slots) and progress[-1] == slots and progress == sorted(progress)


def test_prompts_read_in_chunks_and_slots_drawn_in_parts_change_nothing(model, noisy, monkeypatch):
    config = GenerationConfig(OPTIONS["free"], image=DecodingConfig("dida", passes=2, guidance=2.0))
    whole = ids_of(run(model, PROMPTS, config, EMPTY, noisy=noisy), 3)
    monkeypatch.setattr(ragged_kv_cache, "CHUNK", 3)
    monkeypatch.setattr("emu_embodied.generation.interleaved.SLOTS", 2)
    assert ids_of(run(model, PROMPTS, config, EMPTY, noisy=noisy), 3) == whole


@pytest.mark.parametrize("decoding", ["autoregressive", "dida"])
def test_events_come_in_order_and_sampling_follows_the_seed(model, noisy, decoding):
    sampling = {"temperature": 1.0, "top_k": 40, "top_p": 0.9}
    image = DecodingConfig(decoding, passes=2, guidance=2.0, remask=True, **sampling)
    config = GenerationConfig(OPTIONS["free"], DecodingConfig(**sampling), image)
    events = run(model, PROMPTS, config, EMPTY, seed=3, noisy=noisy)
    assert str(events) == str(run(model, PROMPTS, config, EMPTY, seed=3, noisy=noisy))
    assert str(events) != str(run(model, PROMPTS, config, EMPTY, seed=4, noisy=noisy))
    for row in range(3):
        own = [event for event in events if event.row == row]
        assert [type(e) for e in own].count(Ended) == 1 and isinstance(own[-1], Ended)
        assert own[-1].reason == ("budget" if len(ids_of(own, 3)[row]) == config.grammar.budget else "end")
        begun = [e for e in own if isinstance(e, ImageBegun)]
        finished = [e for e in own if isinstance(e, ImageFinished)]
        assert [(e.height, e.width) for e in begun] == [tuple(e.codes_HW.shape) for e in finished]
    assert any(isinstance(event, ImageFinished) for event in events)


def test_generation_streams(model):
    events = generate(model, V, PROMPTS[:1], GenerationConfig(OPTIONS["text"]))
    assert isinstance(next(events), TextPiece | Ended)


def test_logits_that_are_not_finite_are_an_error(model):
    broken = Transformer(model.config).eval()
    broken.load_state_dict(model.state_dict())
    broken.model.norm.weight.data.fill_(float("nan"))
    for grammar in (OPTIONS["text"], OPTIONS["image first"]):
        with pytest.raises(InputError, match="logits"):
            list(generate(broken, V, PROMPTS, GenerationConfig(grammar)))


@pytest.mark.parametrize(
    ("prompts", "options", "arguments", "parts"),
    [
        ([], {}, {}, ["prompts"]),
        ([[5], []], {}, {}, ["prompts"]),
        ([[V.size]], {}, {}, ["prompts", str(V.size)]),
        ([[-1]], {}, {}, ["prompts", "-1"]),
        ([[5] * 30], {"context": 40}, {}, ["tokens", "30 of a prompt", "budget of 20", "40"]),
        ([[5]], {"image": DecodingConfig("autoregressive", guidance=2.0)}, {}, ["unconditional", "1"]),
        (
            [[5]],
            {"image": DecodingConfig("autoregressive", guidance=2.0), "context": 40},
            {"unconditional": [[5] * 30]},
            ["tokens", "30"],
        ),
        ([[5]], {"image": DIDA}, {}, ["noisy"]),
    ],
)
def test_what_does_not_fit_is_refused_at_once(model, prompts, options, arguments, parts):
    config = GenerationConfig(GrammarConfig(20), **options)
    with pytest.raises(InputError) as caught:
        generate(model, V, prompts, config, **arguments)
    assert all(part in str(caught.value) for part in parts)


def test_ways_of_decoding_that_images_do_not_have_are_refused():
    for image in (DecodingConfig("exact"), DecodingConfig("dida", order="halton")):
        with pytest.raises(InputError, match="image"):
            GenerationConfig(GrammarConfig(20), image=image)
    with pytest.raises(InputError, match="vocabulary"):
        small = Transformer(TransformerConfig(100, 16, 16, 1, 1, 1, 16))
        generate(small, V, [[5]], GenerationConfig(GrammarConfig(20)))
