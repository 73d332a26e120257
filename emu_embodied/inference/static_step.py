"""The model's steps as pure functions of tensors with fixed shapes: what engines compile. Knows no cache and no loop.

The eager `frame_step.FrameStep` grows and slices its cache; graphs want buffers that stay where they are. Here keys and values
lie in one buffer of slots: the text, then a ring of C + 1 frames. A mask says which slots are in sight. Keys carry their
rotary positions, so it does not matter in which slot a frame lies.
"""

from __future__ import annotations

import torch
from torch import nn

from emu_embodied.inference.decoding.sampling import sample_proposal
from emu_embodied.model.token_model import TokenModel

STEPS = ("denoise", "commit_denoise", "verify", "commit", "first_token", "next_token")


class PassCache:
    """Stands in for a `KVCache` within one pass: what is there, and what the pass adds."""

    def __init__(self, keys_LBHSD: torch.Tensor, values_LBHSD: torch.Tensor) -> None:
        self.keys, self.values = keys_LBHSD, values_LBHSD
        self.new_keys: list[torch.Tensor] = []
        self.new_values: list[torch.Tensor] = []

    def attend(self, layer: int, k: torch.Tensor, v: torch.Tensor, keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
        if keep:
            self.new_keys.append(k)
            self.new_values.append(v)
        return torch.cat([self.keys[layer], k], 2), torch.cat([self.values[layer], v], 2)

    def advance(self, tokens: int) -> None:
        """Called once a pass that keeps; who calls the step counts, so there is nothing to count here."""

    def new(self, tokens: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the pass's first `tokens` (all by default): (layers, B, heads, tokens, head_dim)."""
        return torch.stack(self.new_keys)[..., :tokens, :], torch.stack(self.new_values)[..., :tokens, :]


class StaticStep(nn.Module):
    """The steps of `frame_step.FrameStep` without state. Shapes are fixed but for the batch B.

    All take keys and values (layers, B, heads, S, head_dim), `seen_S` bool, which slots are in sight, and `start`, an int64
    scalar tensor: the rotary position of the first token. Those that sample take `inverse_temperature`, a float32 scalar
    tensor, and noise, zeros for greedy, and begin their results with the fields of `types.Proposal`.

    Args:
        model: the token model, in eval mode.
    """

    causal_mask: torch.Tensor
    noisy_mask: torch.Tensor

    def __init__(self, model: TokenModel) -> None:
        super().__init__()
        self.model = model
        c = model.config
        causal = torch.ones(c.frame_tokens, c.frame_tokens, dtype=torch.bool).tril()
        noisy = causal.clone()
        noisy[c.prefix :] = True
        self.register_buffer("causal_mask", causal, persistent=False)
        self.register_buffer("noisy_mask", noisy, persistent=False)
        self.to(model.noised.device)

    def denoise(
        self, keys, values, seen_S, start, previous_BN, actions_BA, codes_BN, hidden_BN, inverse_temperature, gumbel_BNV
    ):
        """One parallel pass, sampled."""
        m = self.model
        x = m.embed_draft(actions_BA, codes_BN, hidden_BN, m.frame_source(previous_BN, actions_BA))
        hidden = self._hidden(x, seen_S, start, self.noisy_mask, PassCache(keys, values))
        return self._sample(hidden, inverse_temperature, gumbel_BNV)

    def commit_denoise(
        self,
        keys,
        values,
        seen_S,
        seen_next_S,
        start,
        previous_BN,
        committed_actions_BA,
        committed_BN,
        actions_BA,
        codes_BN,
        hidden_BN,
        inverse_temperature,
        gumbel_BNV,
    ):
        """`commit` of one frame and `denoise` of the next in one pass, under the DiDA mask; then the new keys and values.

        `seen_next_S` is what the next frame sees besides the committed one.
        """
        m, tokens = self.model, self.model.config.frame_tokens
        clean = m.embed_clean(committed_actions_BA, committed_BN, m.frame_source(previous_BN, committed_actions_BA))
        draft = m.embed_draft(actions_BA, codes_BN, hidden_BN, m.frame_source(committed_BN, actions_BA))
        nothing = torch.zeros_like(self.causal_mask)
        upper = torch.cat([seen_S.expand(tokens, -1), self.causal_mask, nothing], 1)
        lower = torch.cat([seen_next_S.expand(tokens, -1), ~nothing, self.noisy_mask], 1)
        positions = start + torch.arange(2 * tokens, device=clean.device)
        cache = PassCache(keys, values)
        hidden = m.transformer.hidden(
            torch.cat([clean, draft], 1), positions, torch.cat([upper, lower]), cache, keep=True
        )
        return *self._sample(hidden[:, tokens:], inverse_temperature, gumbel_BNV), *cache.new(tokens)

    def verify(self, keys, values, seen_S, start, previous_BN, actions_BA, codes_BN):
        """One causal pass: logits (B, N, V) and hidden states (B, N, D)."""
        m = self.model
        x = m.embed_clean(actions_BA, codes_BN, m.frame_source(previous_BN, actions_BA))
        hidden = self._hidden(x, seen_S, start, self.causal_mask, PassCache(keys, values))
        return m.visual_logits(m.at_slots(hidden, before=True)), m.at_slots(hidden, before=False).float()

    def commit(self, keys, values, seen_S, start, previous_BN, actions_BA, codes_BN):
        """One causal pass: the frame's own keys and values (layers, B, heads, prefix + block, head_dim)."""
        m, cache = self.model, PassCache(keys, values)
        x = m.embed_clean(actions_BA, codes_BN, m.frame_source(previous_BN, actions_BA))
        mask = torch.cat([seen_S.expand(x.shape[1], -1), self.causal_mask], 1)
        m.transformer.write_kv(x, start + torch.arange(x.shape[1], device=x.device), mask, cache)
        return cache.new()

    def first_token(self, keys, values, seen_S, start, actions_BA, source_BD, inverse_temperature, gumbel_BV):
        """Reads a frame's prefix and samples slot 0; then the new keys and values."""
        x = self.model.embed_prefix(actions_BA, actions_BA.shape[0])
        x = torch.cat([x[:, :-1], x[:, -1:] + source_BD[:, None]], 1)
        return self._read(x, keys, values, seen_S, start, inverse_temperature, gumbel_BV)

    def next_token(self, keys, values, seen_S, start, ids_B, source_BD, inverse_temperature, gumbel_BV):
        """Reads one token of an image's block and samples the slot behind it; then the new keys and values."""
        x = self.model.transformer.model.embed_tokens(ids_B[:, None]) + source_BD[:, None]
        return self._read(x, keys, values, seen_S, start, inverse_temperature, gumbel_BV)

    def _read(self, x, keys, values, seen_S, start, inverse_temperature, gumbel_BV):
        cache, tokens = PassCache(keys, values), x.shape[1]
        hidden = self._hidden(x, seen_S, start, self.causal_mask[:tokens, :tokens], cache, keep=True)[:, -1]
        return *sample_proposal(self.model.visual_logits(hidden), hidden, inverse_temperature, gumbel_BV), *cache.new()

    def _sample(self, hidden, inverse_temperature, gumbel_BNV):
        slots = self.model.at_slots(hidden, before=self.model.config.next_token_shift)
        return tuple(sample_proposal(self.model.visual_logits(slots), slots, inverse_temperature, gumbel_BNV))

    def _hidden(self, x, seen_S, start, own_mask, cache, keep=False):
        mask = torch.cat([seen_S.expand(x.shape[1], -1), own_mask], 1)
        positions = start + torch.arange(x.shape[1], device=x.device)
        return self.model.transformer.hidden(x, positions, mask, cache, keep)
