"""A GPT: a decoder-only transformer in the shape of GPT-2 (Radford et al., 2019), and a model of asyncloop's that writes.

Axes in names: B examples, T tokens, D width, H heads, K width of a head, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asyncloop import Batch
from asyncloop.torch import TorchModel

N_BYTES = 256

Past = list[Tensor]
"""Keys and values (B, H, T, K) of the tokens so far in one block; empty before the first."""


class Attention(nn.Module):
    """Each token looks at itself and at those before it."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.to_qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, past: Past | None = None) -> Tensor:
        q_BHTK, k_BHTK, v_BHTK = (
            part_BTD.unflatten(2, (self.n_heads, -1)).transpose(1, 2) for part_BTD in self.to_qkv(x_BTD).chunk(3, dim=2)
        )
        if past is not None:
            if past:
                k_BHTK, v_BHTK = torch.cat([past[0], k_BHTK], dim=2), torch.cat([past[1], v_BHTK], dim=2)
            past[:] = k_BHTK, v_BHTK
        is_causal = q_BHTK.size(2) == k_BHTK.size(2)  # else one new token, which may look at all that is there
        y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=is_causal)
        return self.out(y_BHTK.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then an MLP, each of them normed before and added to what comes in."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, n_heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x_BTD: Tensor, past: Past | None = None) -> Tensor:
        x_BTD = x_BTD + self.attention(self.norm_attention(x_BTD), past)
        return x_BTD + self.out(F.gelu(self.widen(self.norm_mlp(x_BTD)), approximate="tanh"))


class GPT(nn.Module):
    """Tokens and the ones that follow them, both (B, T), give `loss` (nats a token) and `bits_per_byte`, for tokens are bytes.

    The loss is made in here, not by TorchModel's `loss`, so that `compile` sees it and nobody keeps logits (B, T, V).
    `vocabulary` beyond 256 is never used; it gives the model GPT-2's size. The weights of the output are the embedding's.
    """

    def __init__(
        self, n_layers: int = 5, n_heads: int = 4, width: int = 128, context: int = 256, vocabulary: int = N_BYTES
    ) -> None:
        super().__init__()
        if width % n_heads:
            raise ValueError(f"width is a multiple of n_heads; {width} is none of {n_heads}")
        self.context = context
        self.embed_token = nn.Embedding(vocabulary, width)
        self.embed_position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, n_heads) for _ in range(n_layers))
        self.norm_out = nn.LayerNorm(width)
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            elif weight.ndim == 2:  # what adds to the stream is smaller, for there are 2 n_layers of them
                adds = name.endswith("out.weight")
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * n_layers) if adds else 0.02)

    def forward(self, tokens_BT: Tensor, next_BT: Tensor) -> dict[str, Tensor]:
        logits_BTV = self.logits(tokens_BT)
        loss = F.cross_entropy(logits_BTV.flatten(0, 1).float(), next_BT.flatten())
        return {"loss": loss, "bits_per_byte": loss.detach() / math.log(2)}

    def logits(self, tokens_BT: Tensor, pasts: Sequence[Past] | None = None) -> Tensor:
        """Logits (B, T, V) of what follows each token; with `pasts`, one a block, of tokens that follow on earlier ones."""
        begin = pasts[0][0].size(2) if pasts and pasts[0] else 0
        position_T = torch.arange(begin, begin + tokens_BT.size(1), device=tokens_BT.device)
        x_BTD = self.embed_token(tokens_BT) + self.embed_position(position_T)
        for n, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, None if pasts is None else pasts[n])
        return F.linear(self.norm_out(x_BTD), self.embed_token.weight)

    @torch.no_grad()
    def write(self, prompt_T: Tensor, n: int, temperature: float, generator: torch.Generator) -> Tensor:
        """The prompt and up to `n` tokens more, as many as the context has room for. Never waits for the device."""
        pasts: list[Past] = [[] for _ in self.blocks]
        written = [new_T := prompt_T]
        for _ in range(min(n, self.context - len(prompt_T))):
            logits_V = self.logits(new_T[None], pasts)[0, -1, :N_BYTES]
            probability_V = torch.softmax(logits_V.float() / temperature, dim=0)
            written.append(new_T := torch.multinomial(probability_V, 1, generator=generator))
        return torch.cat(written)


class Writer(TorchModel):
    """A TorchModel of a GPT with one output more, `sample`: what the weights of a training step write, tokens (T,)."""

    prompt, n_tokens, temperature = b"\n\ndef ", 250, 0.8

    @property
    def training_output_names(self) -> Sequence[str]:
        return [*super().training_output_names, "sample"]

    def run(self, batch: Batch, *, train: bool, stream: str) -> Mapping[str, Any]:
        # A callable costs a step nothing. If a hook that is due names `sample`, it is called right after the step on
        # this thread: with this step's weights, before the next batch, and no other thread ever touches the module.
        outputs = super().run(batch, train=train, stream=stream)
        return (
            {**outputs, "sample": partial(self.sample, self.updates.n_updates)} if train and self.updates else outputs
        )

    def sample(self, step: int) -> Tensor:
        """Drawn by a generator of the step's own, so that looking changes no training, and a resumed run writes the same."""
        generator = torch.Generator(self.device).manual_seed(step)
        prompt_T = torch.tensor(list(self.prompt), device=self.device)
        return cast(GPT, self.module).write(prompt_T, self.n_tokens, self.temperature, generator)
