"""The network while it is trained: a Llama in a form that a CPU trains five times as fast.

The weights are a Llama's with biases of queries, keys and values; only the work is our own:
attention as two plain products, since torch's own goes back slowly through small heads, and in
bfloat16, which processors with AMX multiply quickest.

What a model this small lacks is copying, so that is put into it before it is trained. Some heads of
the first layer begin as heads that look back by a fixed number of tokens: the biases of queries and
keys, turned by the rotary embedding, are a function of the distance alone and can peak where one
likes. Upon these, heads that find again what stood before form within minutes (Olsson et al.,
"In-context Learning and Induction Heads", 2022).
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import linear, rms_norm, silu

EPSILON = 1e-6
ROTARY_BASE = 10_000.0
LOOK_BACK = 5.0
"""How large the biases of a head that looks back begin: it then gives 9 parts in 10 of its
attention to the token it looks at."""


@dataclass(frozen=True)
class Shape:
    """How large the network is; vLLM's attention on the CPU wants heads of 32, 64, ... numbers."""

    vocabulary: int = 2048
    width: int = 192
    inner: int = 576
    layers: int = 4
    head: int = 32

    @property
    def heads(self) -> int:
        """Heads of each layer, all with keys of their own."""
        return self.width // self.head


class Network(torch.nn.Module):  # type: ignore[misc]
    """A decoder whose weights are a Llama's, kept in float32 and worked with in `precision`."""

    def __init__(
        self, shape: Shape, generator: torch.Generator, precision: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.shape = shape
        self.precision = precision
        self.weights = torch.nn.ParameterDict(
            {name.replace(".", "/"): w for name, w in _new_weights(shape, generator).items()}
        )

    def __getitem__(self, name: str) -> torch.Tensor:
        weight: torch.Tensor = self.weights[name.replace(".", "/")]
        return weight.to(self.precision)

    def named(self) -> dict[str, torch.Tensor]:
        """The weights by transformers' names."""
        return {name.replace("/", "."): weight for name, weight in self.weights.items()}

    def forward(
        self, ids: torch.Tensor, rotation: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """What the last layer says of each token: (texts, length, width)."""
        hidden = self["model.embed_tokens.weight"][ids]
        for layer in range(self.shape.layers):
            name = f"model.layers.{layer}"
            x = self._norm(hidden, f"{name}.input_layernorm")
            hidden = hidden + self._attend(x, f"{name}.self_attn", rotation, mask)
            x = self._norm(hidden, f"{name}.post_attention_layernorm")
            hidden = hidden + self._think(x, f"{name}.mlp")
        return self._norm(hidden, "model.norm")

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return rms_norm(x, (x.shape[-1],), self[f"{name}.weight"], EPSILON)

    def _attend(
        self, x: torch.Tensor, name: str, rotation: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        texts, length, _ = x.shape
        parts = [
            linear(x, self[f"{name}.{part}_proj.weight"], self[f"{name}.{part}_proj.bias"])
            .view(texts, length, self.shape.heads, self.shape.head)
            .transpose(1, 2)
            for part in "qkv"
        ]
        query, key = (_rotate(part, rotation).flatten(0, 1) for part in parts[:2])
        value = parts[2].flatten(0, 1)
        scores = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=self.shape.head**-0.5)
        seen = torch.bmm(scores.softmax(-1), value)
        joined = seen.view(texts, -1, length, self.shape.head).transpose(1, 2).reshape(x.shape)
        return linear(joined, self[f"{name}.o_proj.weight"])

    def _think(self, x: torch.Tensor, name: str) -> torch.Tensor:
        gate = silu(linear(x, self[f"{name}.gate_proj.weight"]))
        return linear(
            gate * linear(x, self[f"{name}.up_proj.weight"]), self[f"{name}.down_proj.weight"]
        )


def _rotate(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Queries or keys turned by their positions; `rotation` is cosines and sines of each."""
    half = x.shape[-1] // 2
    turned = torch.cat((x[..., half:], x[..., :half]), -1)
    return torch.addcmul(x * rotation[0], turned, rotation[1])


def rotation_of(length: int, head: int, dtype: torch.dtype) -> torch.Tensor:
    """Cosines and sines for the positions below `length`: (2, length, head)."""
    speeds = ROTARY_BASE ** (-torch.arange(0, head, 2) / head)
    angles = torch.outer(torch.arange(length), speeds)
    sines = torch.cat((-angles.sin(), angles.sin()), -1)
    return torch.stack((torch.cat((angles.cos(), angles.cos()), -1), sines)).to(dtype)


def causal_mask(length: int, dtype: torch.dtype) -> torch.Tensor:
    """What is added to the scores: nobody looks ahead."""
    return torch.full((length, length), -1e4).triu(1).to(dtype)


def _new_weights(shape: Shape, generator: torch.Generator) -> dict[str, torch.Tensor]:
    width, inner = shape.width, shape.inner

    def drawn(rows: int, columns: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * scale * columns**-0.5

    weights = {
        "model.embed_tokens.weight": torch.randn(shape.vocabulary, width, generator=generator)
        * 0.05,
        "model.norm.weight": torch.ones(width),
    }
    for layer in range(shape.layers):
        name = f"model.layers.{layer}"
        for part in "qkv":
            weights[f"{name}.self_attn.{part}_proj.weight"] = drawn(width, width, 0.5)
            weights[f"{name}.self_attn.{part}_proj.bias"] = torch.zeros(width)
        weights[f"{name}.self_attn.o_proj.weight"] = drawn(width, width, 0.5)
        weights[f"{name}.mlp.gate_proj.weight"] = drawn(inner, width)
        weights[f"{name}.mlp.up_proj.weight"] = drawn(inner, width)
        weights[f"{name}.mlp.down_proj.weight"] = drawn(width, inner, 0.5)
        for norm in ("input", "post_attention"):
            weights[f"{name}.{norm}_layernorm.weight"] = torch.ones(width)
    for head, distance in enumerate((1, 2, 3, 1)[: shape.heads - 2]):
        _look_back(weights, shape, head, distance)
    return weights


def _look_back(weights: dict[str, torch.Tensor], shape: Shape, head: int, distance: int) -> None:
    """Let a head of the first layer begin by attending to the token `distance` before its own."""
    rows = slice(head * shape.head, (head + 1) * shape.head)
    bias = torch.full((1, shape.head), LOOK_BACK)
    turned = _rotate(bias, rotation_of(distance + 1, shape.head, torch.float32)[:, distance])
    weights["model.layers.0.self_attn.q_proj.bias"][rows] = bias[0]
    weights["model.layers.0.self_attn.k_proj.bias"][rows] = turned[0]
    for part in "qk":
        weights[f"model.layers.0.self_attn.{part}_proj.weight"][rows] *= 0.1
