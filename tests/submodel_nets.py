"""Modules whose channel groups are known, and data for them."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn
F = nn.functional


class Attention(nn.Module):
    """Attention written by hand, whose forward uses numbers it holds."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        b, t, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).split(self.width, dim=2)
        q, k, v = (one.view(b, t, self.heads, -1).transpose(1, 2) for one in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).contiguous().view(b, t, self.width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Tokens `[B, 7]` to logits `[B, 7, 11]`, attention by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.place = nn.Embedding(11, 32), nn.Parameter(torch.randn(1, 7, 32))
        self.blocks, self.out = nn.Sequential(Attention(), Attention()), nn.Linear(32, 11)

    def forward(self, x: Any) -> Any:
        return self.out(self.blocks(self.emb(x) + self.place))


class Encoder(nn.Module):
    """torch's own encoder: tokens `[B, 7]` to logits `[B, 5]`."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(11, 32)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True), 2)
        self.out = nn.Linear(32, 5)

    def forward(self, x: Any) -> Any:
        return self.out(self.encoder(self.emb(x)).mean(1))


class Recurrent(nn.Module):
    """A recurrent layer of some kind: tokens `[B, 7]` to logits `[B, 7, 11]`."""

    def __init__(self, kind: str, **more: Any) -> None:
        super().__init__()
        self.emb = nn.Embedding(11, 8)
        self.layer = getattr(nn, kind)(8, 16, 2, batch_first=True, **more)
        self.out = nn.Linear(16 * (1 + bool(more.get("bidirectional"))), 11)

    def forward(self, x: Any) -> Any:
        return self.out(self.layer(self.emb(x))[0])


class Cell(nn.Module):
    """A loop over an LSTM cell, its state made by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 16
        self.emb, self.cell, self.out = nn.Embedding(11, 8), nn.LSTMCell(8, 16), nn.Linear(16, 11)

    def forward(self, x: Any) -> Any:
        h = c = torch.zeros(x.shape[0], self.hidden)
        for t in range(x.shape[1]):
            h, c = self.cell(self.emb(x[:, t]), (h, c))
        return self.out(h)


class Branches(nn.Module):
    """Concatenation, a depthwise convolution, a norm over two branches, a residual add."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(24, track_running_stats=False)
        self.deep = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.back, self.out = nn.Conv2d(24, 8, 1), nn.Linear(8 * 16, 5)

    def forward(self, x: Any) -> Any:
        a = self.a(x).relu()
        h = self.deep(self.norm(torch.cat([a, self.b(a).relu()], 1)))
        return self.out(F.max_pool2d(a + self.back(h), 2).flatten(1))


class Grouped(nn.Module):
    """A convolution in four groups and a channel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = 4
        self.a, self.b = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.c, self.out = nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.Linear(16 * 64, 5)

    def forward(self, x: Any) -> Any:
        h = self.b(self.a(x).relu())
        n, c, *_ = h.shape
        h = h.view(n, self.blocks, c // self.blocks, 8, 8).transpose(1, 2).reshape(n, c, 8, 8)
        return self.out(self.c(h).relu().flatten(1))


class Masked(nn.Module):
    """Attention whose heads are as wide as the stream divided by their number, under a mask held as a buffer."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.register_buffer("mask", torch.tril(torch.ones(9, 9))[None, None], persistent=False)

    def forward(self, x: Any) -> Any:
        b, t, c = x.shape
        q, k, v = (of(x).view(b, t, self.heads, c // self.heads).transpose(1, 2) for of in (self.q, self.k, self.v))
        scores = (q @ k.transpose(-2, -1)).masked_fill(self.mask[:, :, :t, :t] == 0, -1e9)
        return x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, c))


class Tied(nn.Module):
    """Two such layers between an embedding and the same weight again: tokens `[B, 7]` to logits `[B, 7, 11]`."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.place = nn.Embedding(11, 32), nn.Embedding(9, 32)
        self.blocks, self.norm = nn.ModuleList([Masked(), Masked()]), nn.LayerNorm(32)
        self.out = nn.Linear(32, 11, bias=False)
        self.out.weight = self.emb.weight

    def forward(self, x: Any) -> Any:
        h = self.emb(x) + self.place(torch.arange(x.shape[1]))
        for block in self.blocks:
            h = block(h)
        return self.out(self.norm(h))


class Patches(nn.Module):
    """A small vision transformer with a class token: images `[B, 1, 8, 8]` to logits `[B, 5]`."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(1, 32, 4, 4), nn.Parameter(torch.randn(1, 1, 32))
        self.place = nn.Parameter(torch.randn(1, 5, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 48, 0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.out = nn.Linear(32, 5)

    def forward(self, x: Any) -> Any:
        h = self.patch(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(len(h), -1, -1), h], 1) + self.place
        return self.out(self.encoder(h)[:, 0])


class Gated(nn.Module):
    """Inverted residual with a depthwise convolution, channels gated by their means, a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.deep = (
            nn.Conv2d(1, 8, 3, 2, 1),
            nn.Conv2d(8, 24, 1),
            nn.Conv2d(24, 24, 3, 1, 1, groups=24),
        )
        self.down, self.less, self.more = nn.Conv2d(24, 8, 1), nn.Linear(8, 4), nn.Linear(4, 8)
        self.back, self.bend, self.out = nn.ConvTranspose2d(8, 12, 2, 2), nn.PReLU(12), nn.Linear(12, 5)

    def forward(self, x: Any) -> Any:
        h = self.a(x)
        h = h + self.down(F.relu6(self.deep(F.relu6(self.up(h)))))
        h = h * torch.sigmoid(self.more(self.less(h.mean((2, 3))).relu()))[:, :, None, None]
        return self.out(self.bend(self.back(h)).amax((2, 3)))


def made(kind: str) -> tuple[Any, Any]:
    """(module, what it takes for three examples)."""
    from fieldfare import models

    torch.manual_seed(5)
    image, tokens = torch.randn(3, 1, 8, 8), torch.randint(0, 11, (3, 7))
    match kind:
        case "mlp":
            body = nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 5)
            return nn.Sequential(*body), torch.randn(3, 12)
        case "layer_norm":
            return nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 5)), torch.randn(3, 12)
        case "vgg":
            return models.vgg5((1, 8, 8), norm="batch_alone"), image
        case "vgg_group":
            return models.vgg5((1, 8, 8), norm="group"), image
        case "resnet":
            return models.resnet((1, 8, 8), norm="group", blocks=1), image
        case "branches":
            return Branches(), image
        case "grouped":
            return Grouped(), image
        case "lstm":
            return Recurrent("LSTM"), tokens
        case "gru":
            return Recurrent("GRU", bidirectional=True), tokens
        case "rnn":
            return Recurrent("RNN"), tokens
        case "cell":
            return Cell(), tokens
        case "encoder":
            return Encoder(), tokens
        case "transformer":
            return Transformer(), tokens
        case "tied":
            return Tied(), tokens
        case "patches":
            return Patches(), image
        case "gated":
            return Gated(), image
    raise AssertionError(kind)


KINDS = (
    "mlp", "layer_norm", "vgg", "vgg_group", "resnet", "branches", "grouped", "lstm", "gru", "rnn", "cell", "encoder",
    "transformer", "tied", "patches", "gated",
)  # fmt: skip
