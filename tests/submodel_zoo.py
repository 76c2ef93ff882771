"""Layers of many kinds in small nets: `ZOO[name]()` gives a module and what it takes for three examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn
F = nn.functional
L, C = nn.Linear, nn.Conv2d
ZOO: dict[str, Callable[[], tuple[Any, Any]]] = {}


class Net(nn.Module):
    """A module whose forward is a function of it and of what it takes."""

    def __init__(self, function: Any, **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *x: Any) -> Any:
        return self.function(self, *x)


def zoo(make: Any) -> Any:
    ZOO[make.__name__.rstrip("_")] = make
    return make


def img(side: int = 8) -> Any:
    return torch.randn(3, 1, side, side)


def vec(n: int = 12) -> Any:
    return torch.randn(3, n)


def tok() -> Any:
    return torch.randint(1, 11, (3, 7))


def seq(n: int = 8) -> Any:
    return torch.randn(3, 7, n)


def weights(*shape: int) -> Any:
    return nn.Parameter(torch.randn(*shape))


def alone(norm: Any, n: int) -> Any:
    return norm(n, track_running_stats=False)


@zoo
def conv1d():
    return nn.Sequential(
        nn.Conv1d(3, 8, 3, padding=1),
        alone(nn.BatchNorm1d, 8),
        nn.ReLU(),
        nn.Conv1d(8, 12, 3),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        L(12, 5),
    ), torch.randn(3, 3, 9)


@zoo
def conv3d():
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1),
        nn.GroupNorm(4, 8),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(8, 12, 1),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        L(12, 5),
    ), torch.randn(3, 1, 4, 4, 4)


@zoo
def convt():
    return nn.Sequential(
        C(1, 8, 3),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 12, 2, 2),
        alone(nn.BatchNorm2d, 12),
        nn.ReLU(),
        C(12, 5, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ), img()


@zoo
def convt3d():
    return nn.Sequential(
        nn.Conv3d(1, 8, 1),
        nn.ReLU(),
        nn.ConvTranspose3d(8, 12, 2, 2),
        nn.ReLU(),
        nn.AdaptiveMaxPool3d(1),
        nn.Flatten(),
        L(12, 5),
    ), torch.randn(3, 1, 3, 3, 3)


@zoo
def convt_grouped():
    return nn.Sequential(
        C(1, 8, 3),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 12, 2, 2, groups=4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        L(12, 5),
    ), img()


@zoo
def instance():
    return nn.Sequential(
        C(1, 8, 3),
        nn.InstanceNorm2d(8, affine=True),
        nn.ReLU(),
        C(8, 8, 3),
        nn.InstanceNorm2d(8),
        nn.Flatten(),
        L(8 * 16, 5),
    ), img()


@zoo
def ln_several():
    return nn.Sequential(C(1, 8, 3), nn.LayerNorm([8, 6, 6]), nn.ReLU(), nn.Flatten(), L(288, 5)), img()


@zoo
def ln_several_noaffine():
    return nn.Sequential(
        C(1, 8, 3), nn.LayerNorm([8, 6, 6], elementwise_affine=False), nn.ReLU(), nn.Flatten(), L(288, 5)
    ), img()


@zoo
def gn_each():
    return nn.Sequential(C(1, 8, 3), nn.GroupNorm(8, 8, affine=False), nn.ReLU(), nn.Flatten(), L(288, 5)), img()


@zoo
def lrn():
    return nn.Sequential(C(1, 8, 3), nn.LocalResponseNorm(3), nn.ReLU(), nn.Flatten(), L(288, 5)), img()


@zoo
def preluc():
    return nn.Sequential(C(1, 8, 3), nn.PReLU(8), nn.Flatten(), L(288, 5)), img()


@zoo
def pixelshuffle():
    return nn.Sequential(
        C(1, 16, 3), nn.PixelShuffle(2), nn.ReLU(), C(4, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), L(6, 5)
    ), img()


@zoo
def pixelunshuffle():
    return nn.Sequential(
        C(1, 4, 3), nn.PixelUnshuffle(2), nn.ReLU(), C(16, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), L(6, 5)
    ), img()


@zoo
def channelshuffle():
    return nn.Sequential(
        C(1, 16, 3), nn.ChannelShuffle(4), nn.ReLU(), C(16, 8, 3, groups=4), nn.Flatten(), L(8 * 16, 5)
    ), img()


@zoo
def gram():
    return Net(
        lambda s, x: s.o((s.c(x).flatten(2) @ s.c(x).flatten(2).transpose(1, 2)).flatten(1)), c=C(1, 8, 3), o=L(64, 5)
    ), img()


@zoo
def csp():
    def f(s, x):
        h = s.a(x).relu()
        p, q = h.split([8, 8], 1)
        return s.o(s.m(torch.cat([p, s.b(q)], 1)).flatten(1))

    return Net(f, a=C(1, 16, 3), b=C(8, 8, 3, padding=1), m=C(16, 6, 1), o=L(216, 5)), img()


@zoo
def se():
    def f(s, x):
        h = s.a(x).relu()
        w = s.f2(s.f1(F.adaptive_avg_pool2d(h, 1)).relu()).sigmoid()
        return s.o((h * w).flatten(1))

    return Net(f, a=C(1, 16, 3), f1=C(16, 4, 1), f2=C(4, 16, 1), o=L(576, 5)), img()


@zoo
def eca():
    def f(s, x):
        h = s.a(x).relu()
        w = s.k(h.mean((2, 3))[:, None]).sigmoid()[:, 0]
        return s.o((h * w[:, :, None, None]).flatten(1))

    return Net(f, a=C(1, 16, 3), k=nn.Conv1d(1, 1, 3, padding=1), o=L(576, 5)), img()


@zoo
def cbam():
    def f(s, x):
        h = s.a(x).relu()
        h = h * s.m2(s.m1(h.amax((2, 3))).relu()).sigmoid()[:, :, None, None]
        w = s.k(torch.cat([h.mean(1, keepdim=True), h.amax(1, keepdim=True)], 1)).sigmoid()
        return s.o((h * w).flatten(1))

    return Net(f, a=C(1, 16, 3), m1=L(16, 4), m2=L(4, 16), k=C(2, 1, 3, padding=1), o=L(576, 5)), img()


@zoo
def shuffle():
    def f(s, x):
        h = s.a(x)
        p, q = h.chunk(2, 1)
        q = s.d(s.b(q).relu())
        h = torch.cat([p, q], 1)
        n, c, y, w = h.shape
        return s.o(s.m(h.view(n, 2, c // 2, y, w).transpose(1, 2).reshape(n, c, y, w)).flatten(1))

    return Net(f, a=C(1, 16, 3), b=C(8, 8, 1), d=C(8, 8, 3, padding=1, groups=8), m=C(16, 6, 1), o=L(216, 5)), img()


@zoo
def shuffle_bare():
    def f(s, x):
        h = s.g1(s.a(x)).relu()
        n, c, y, w = h.shape
        h = h.view(n, 4, c // 4, y, w).transpose(1, 2).reshape(n, c, y, w)
        return s.o(s.g2(h).flatten(1))

    return Net(f, a=C(1, 16, 3), g1=C(16, 16, 1, groups=4), g2=C(16, 8, 1, groups=4), o=L(288, 5)), img()


@zoo
def grouped():
    return nn.Sequential(
        C(1, 12, 3),
        C(12, 24, 3, groups=3),
        alone(nn.BatchNorm2d, 24),
        nn.ReLU(),
        C(24, 6, 1, groups=2),
        nn.Flatten(),
        L(96, 5),
    ), img()


@zoo
def depth_mult():
    return nn.Sequential(C(1, 8, 3), C(8, 24, 3, groups=8), nn.ReLU(), C(24, 6, 1), nn.Flatten(), L(96, 5)), img()


@zoo
def mobile():
    def f(s, x):
        h = s.i(x).relu()
        for e, d, p, b in ((s.e1, s.d1, s.p1, s.b1), (s.e2, s.d2, s.p2, s.b2)):
            h = h + b(p(F.relu6(d(F.relu6(e(h))))))
        return s.o(h.mean((2, 3)))

    def B(n):
        return alone(nn.BatchNorm2d, n)

    return Net(
        f,
        i=C(1, 8, 3, 2, 1),
        e1=C(8, 24, 1),
        d1=C(24, 24, 3, 1, 1, groups=24),
        p1=C(24, 8, 1),
        b1=B(8),
        e2=C(8, 16, 1),
        d2=C(16, 16, 3, 1, 1, groups=16),
        p2=C(16, 8, 1),
        b2=B(8),
        o=L(8, 5),
    ), img()


@zoo
def dense():
    def f(s, x):
        h = s.i(x)
        for n, c in ((s.n1, s.c1), (s.n2, s.c2), (s.n3, s.c3)):
            h = torch.cat([h, c(n(h).relu())], 1)
        return s.o(F.avg_pool2d(h, 2).flatten(1))

    def B(n):
        return alone(nn.BatchNorm2d, n)

    return Net(
        f,
        i=C(1, 8, 3, padding=1),
        n1=B(8),
        c1=C(8, 4, 3, padding=1),
        n2=B(12),
        c2=C(12, 4, 3, padding=1),
        n3=B(16),
        c3=C(16, 4, 3, padding=1),
        o=L(20 * 16, 5),
    ), img()


@zoo
def inception():
    def f(s, x):
        h = s.i(x).relu()
        h = torch.cat([s.a(h), s.b2(s.b(h).relu()), s.c2(s.c(h).relu()), s.d(F.max_pool2d(h, 3, 1, 1))], 1)
        return s.o(F.adaptive_avg_pool2d(s.n(h), 2).flatten(1))

    return Net(
        f,
        i=C(1, 16, 3, padding=1),
        a=C(16, 8, 1),
        b=C(16, 6, 1),
        b2=C(6, 12, 3, padding=1),
        c=C(16, 4, 1),
        c2=C(4, 6, 5, padding=2),
        d=C(16, 6, 1),
        n=nn.GroupNorm(4, 32),
        o=L(128, 5),
    ), img()


@zoo
def unet():
    def f(s, x):
        a = s.a(x).relu()
        b = s.b(F.max_pool2d(a, 2)).relu()
        c = s.c(F.max_pool2d(b, 2)).relu()
        u = s.u(torch.cat([F.interpolate(c, scale_factor=2, mode="bilinear"), b], 1)).relu()
        v = s.v(torch.cat([s.t(u), a], 1))
        return v

    return Net(
        f,
        a=C(1, 8, 3, padding=1),
        b=C(8, 12, 3, padding=1),
        c=C(12, 16, 3, padding=1),
        u=C(28, 12, 3, padding=1),
        t=nn.ConvTranspose2d(12, 8, 2, 2),
        v=C(16, 5, 1),
    ), img()


@zoo
def convnext():
    def f(s, x):
        h = s.st(x)
        r = h
        h = s.n(s.d(h).permute(0, 2, 3, 1))
        h = s.p2(F.gelu(s.p1(h))) * s.g
        h = r + h.permute(0, 3, 1, 2)
        return s.o(h.mean((2, 3)))

    return Net(
        f,
        st=C(1, 16, 2, 2),
        d=C(16, 16, 3, padding=1, groups=16),
        n=nn.LayerNorm(16),
        p1=L(16, 32),
        p2=L(32, 16),
        g=weights(16),
        o=L(16, 5),
    ), img()


@zoo
def mixer():
    def f(s, x):
        h = s.p(x).flatten(2).transpose(1, 2)
        h = h + s.t2(F.gelu(s.t1(s.n1(h).transpose(1, 2)))).transpose(1, 2)
        h = h + s.c2(F.gelu(s.c1(s.n2(h))))
        return s.o(h.mean(1))

    return Net(
        f,
        p=C(1, 16, 2, 2),
        n1=nn.LayerNorm(16),
        n2=nn.LayerNorm(16),
        t1=L(16, 24),
        t2=L(24, 16),
        c1=L(16, 32),
        c2=L(32, 16),
        o=L(16, 5),
    ), img()


@zoo
def swin():
    def f(s, x):
        h = s.p(x).permute(0, 2, 3, 1)
        b, H, W, c = h.shape
        w = h.view(b, 2, 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = s.qkv(w).reshape(-1, 4, 3, 4, 4).permute(2, 0, 3, 1, 4)
        w = s.pr((q @ k.transpose(-2, -1)).softmax(-1).matmul(v).transpose(1, 2).reshape(-1, 4, c))
        h = h + w.view(b, 2, 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, H, W, c)
        return s.o(h.mean((1, 2)))

    return Net(f, p=C(1, 16, 2, 2), qkv=L(16, 48), pr=L(16, 16), o=L(16, 5)), img()


@zoo
def wstd():
    def f(s, x):
        w = s.a.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return s.o(F.conv2d(F.conv2d(x, w, s.a.bias).relu(), s.b.weight / s.b.weight.norm(), s.b.bias).flatten(1))

    return Net(f, a=C(1, 8, 3), b=C(8, 6, 3), o=L(96, 5)), img()


@zoo
def padchannels():
    def f(s, x):
        h = s.a(x)
        return s.o((s.b(h) + F.pad(h, (0, 0, 0, 0, 0, 4))).flatten(1))

    return Net(f, a=C(1, 8, 3), b=C(8, 12, 1), o=L(432, 5)), img()


@zoo
def film():
    def f(s, x):
        g, b = s.m(x.flatten(1)).chunk(2, 1)
        return s.o((s.a(x) * g[:, :, None, None] + b[:, :, None, None]).flatten(1))

    return Net(f, a=C(1, 8, 3), m=L(64, 16), o=L(288, 5)), img()


@zoo
def permute_flat():
    return Net(lambda s, x: s.o(s.a(x).permute(0, 2, 3, 1).flatten(1)), a=C(1, 8, 3), o=L(288, 5)), img()


@zoo
def crnn():
    return Net(
        lambda s, x: s.o(s.l(s.a(x).permute(0, 3, 1, 2).flatten(2))[0][:, -1]),
        a=C(1, 8, 3),
        l=nn.GRU(48, 12, batch_first=True),
        o=L(12, 5),
    ), img()


@zoo
def wavenet():
    def f(s, x):
        h = s.i(x)
        skip = 0
        for d, r, k in ((s.d1, s.r1, s.k1), (s.d2, s.r2, s.k2)):
            a, b = d(h).chunk(2, 1)
            g = a.tanh() * b.sigmoid()
            h = h + r(g)
            skip = skip + k(g)
        return s.o(skip.relu().mean(2))

    C = nn.Conv1d
    return Net(
        f,
        i=C(3, 8, 1),
        d1=C(8, 16, 3, padding=1),
        r1=C(8, 8, 1),
        k1=C(8, 12, 1),
        d2=C(8, 16, 3, padding=2, dilation=2),
        r2=C(8, 8, 1),
        k2=C(8, 12, 1),
        o=L(12, 5),
    ), torch.randn(3, 3, 9)


@zoo
def res2net():
    def f(s, x):
        a, b, c, d = s.i(x).chunk(4, 1)
        b = s.c1(b)
        c = s.c2(c + b)
        d = s.c3(d + c)
        return s.o(s.m(torch.cat([a, b, c, d], 1)).flatten(1))

    def mix():
        return C(4, 4, 3, padding=1)

    return Net(f, i=C(1, 16, 3), c1=mix(), c2=mix(), c3=mix(), m=C(16, 6, 1), o=L(216, 5)), img()
