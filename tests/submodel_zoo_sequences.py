"""Layers of many kinds in small nets, of vectors and sequences: they join `submodel_zoo.ZOO`."""

from __future__ import annotations

from submodel_zoo import F, L, Net, nn, seq, tok, torch, vec, weights, zoo


@zoo
def bn_noaffine():
    return nn.Sequential(
        L(12, 16), nn.BatchNorm1d(16, affine=False, track_running_stats=False), nn.ReLU(), L(16, 5)
    ), vec()


@zoo
def rms():
    return nn.Sequential(L(12, 16), nn.RMSNorm(16), L(16, 5)), vec()


@zoo
def mha():
    return Net(
        lambda s, x: s.o(s.a(*[s.e(x)] * 3)[0].mean(1)),
        e=nn.Embedding(11, 16),
        a=nn.MultiheadAttention(16, 4, batch_first=True),
        o=L(16, 5),
    ), tok()


@zoo
def mha_kdim():
    return Net(
        lambda s, x: s.o(s.a(s.q(x), s.k(x), s.v(x), need_weights=False)[0].mean(1)),
        q=L(8, 16),
        k=L(8, 12),
        v=L(8, 20),
        a=nn.MultiheadAttention(16, 4, kdim=12, vdim=20, batch_first=True),
        o=L(16, 5),
    ), seq()


@zoo
def mha_biaskv():
    return Net(
        lambda s, x: s.o(s.a(*[s.e(x)] * 3)[0].mean(1)),
        e=nn.Embedding(11, 16),
        a=nn.MultiheadAttention(16, 4, batch_first=True, add_bias_kv=True),
        o=L(16, 5),
    ), tok()


@zoo
def decoder():
    return Net(
        lambda s, x: s.o(s.d(s.e(x), s.m(s.e(x))).mean(1)),
        e=nn.Embedding(11, 16),
        m=L(16, 16),
        d=nn.TransformerDecoderLayer(16, 4, 32, 0.0, batch_first=True),
        o=L(16, 5),
    ), tok()


@zoo
def transformer():
    return Net(
        lambda s, x: s.o(s.t(s.e(x), s.e(x)).mean(1)),
        e=nn.Embedding(11, 16),
        t=nn.Transformer(16, 4, 1, 1, 32, 0.0, batch_first=True),
        o=L(16, 5),
    ), tok()


@zoo
def encoder_mask():
    return Net(
        lambda s, x: s.o(
            s.t(
                s.e(x), src_key_padding_mask=x == 0, mask=nn.Transformer.generate_square_subsequent_mask(7).bool()
            ).mean(1)
        ),
        e=nn.Embedding(11, 16),
        t=nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=True, activation="gelu"),
            1,
            enable_nested_tensor=False,
        ),
        o=L(16, 5),
    ), torch.randint(1, 11, (3, 7))


@zoo
def lstm_bi():
    return Net(
        lambda s, x: s.o(s.r(s.e(x))[0][:, -1]),
        e=nn.Embedding(11, 8),
        r=nn.LSTM(8, 16, 2, batch_first=True, bidirectional=True),
        o=L(32, 5),
    ), tok()


@zoo
def lstm_hbi():
    return Net(
        lambda s, x: s.o(s.r(s.e(x))[1][0].transpose(0, 1).flatten(1)),
        e=nn.Embedding(11, 8),
        r=nn.LSTM(8, 16, 1, batch_first=True, bidirectional=True),
        o=L(32, 5),
    ), tok()


@zoo
def lstm_init():
    return Net(
        lambda s, x: s.o(
            s.r(s.e(x), (s.h.expand(-1, len(x), -1).contiguous(), s.c.expand(-1, len(x), -1).contiguous()))[0][:, -1]
        ),
        e=nn.Embedding(11, 8),
        h=weights(1, 1, 16),
        c=weights(1, 1, 16),
        r=nn.LSTM(8, 16, 1, batch_first=True),
        o=L(16, 5),
    ), tok()


@zoo
def gru_stack():
    return Net(
        lambda s, x: s.o(s.b(s.a(s.e(x))[0])[0][:, -1]),
        e=nn.Embedding(11, 8),
        a=nn.GRU(8, 16, 2, batch_first=True, bidirectional=True),
        b=nn.GRU(32, 12, 1, batch_first=True),
        o=L(12, 5),
    ), tok()


@zoo
def grucell():
    def f(s, x):
        h = torch.zeros(len(x), s.c.hidden_size)
        for t in range(x.shape[1]):
            h = s.c(s.e(x[:, t]), h)
        return s.o(h)

    return Net(f, e=nn.Embedding(11, 8), c=nn.GRUCell(8, 16), o=L(16, 5)), tok()


@zoo
def bag():
    return nn.Sequential(nn.EmbeddingBag(11, 16), nn.ReLU(), L(16, 5)), tok()


@zoo
def bag_max():
    return nn.Sequential(nn.EmbeddingBag(11, 16, mode="max"), nn.ReLU(), L(16, 5)), tok()


@zoo
def emb_maxnorm():
    return Net(lambda s, x: s.o(s.e(x).mean(1)), e=nn.Embedding(11, 16, max_norm=1.0), o=L(16, 5)), tok()


@zoo
def bilinear():
    return Net(
        lambda s, x: s.o(s.b(s.a(x), s.c(x)).relu()), a=L(12, 8), c=L(12, 6), b=nn.Bilinear(8, 6, 10), o=L(10, 5)
    ), vec()


@zoo
def tied():
    m = Net(lambda s, x: s.o(s.l(s.e(x)).relu()), e=nn.Embedding(11, 16), l=L(16, 16), o=L(16, 11, bias=False))
    m.o.weight = m.e.weight
    return m, tok()


@zoo
def tied_layers():
    a = L(16, 16)
    return Net(lambda s, x: s.o(s.b(s.a(s.i(x)).relu()).relu()), i=L(12, 16), a=a, b=a, o=L(16, 5)), vec()


@zoo
def autoenc_tied():
    return Net(lambda s, x: F.linear(F.linear(x, s.a.weight).relu(), s.a.weight.t()), a=L(12, 16, bias=False)), vec()


@zoo
def einsum_att():
    return Net(
        lambda s, x: s.o(
            torch.einsum("bts,bsd->btd", torch.einsum("btd,bsd->bts", s.q(x), s.k(x)).softmax(-1), s.v(x)).mean(1)
        ),
        q=L(8, 16),
        k=L(8, 16),
        v=L(8, 12),
        o=L(12, 5),
    ), seq()


@zoo
def outer():
    return Net(
        lambda s, x: s.o((s.a(x)[:, :, None] * s.b(x)[:, None, :]).flatten(1)), a=L(12, 8), b=L(12, 6), o=L(48, 5)
    ), vec()


@zoo
def outer_same():
    def f(s, x):
        h = s.a(x)
        return s.o((h[:, :, None] * h[:, None, :]).flatten(1))

    return Net(f, a=L(12, 8), o=L(64, 5)), vec()


@zoo
def glu():
    return Net(lambda s, x: s.o(F.glu(s.a(x))), a=L(12, 16), o=L(8, 5)), vec()


@zoo
def chunk_gate():
    def f(s, x):
        a, b = s.a(x).chunk(2, 1)
        return s.o(a * b.sigmoid())

    return Net(f, a=L(12, 16), o=L(8, 5)), vec()


@zoo
def slice_skip():
    def f(s, x):
        h = s.a(x).relu()
        return s.o(torch.cat([h[:, :4], s.b(h[:, 4:]).relu()], 1))

    return Net(f, a=L(12, 16), b=L(12, 10), o=L(14, 5)), vec()


@zoo
def maxout():
    return Net(lambda s, x: s.o(s.a(x).view(len(x), 8, 2).amax(2)), a=L(12, 16), o=L(8, 5)), vec()


@zoo
def center():
    def f(s, x):
        h = s.a(x)
        h = (h - h.mean(1, keepdim=True)) / (h.var(1, keepdim=True) + 1e-5).sqrt()
        return s.o(h * s.g + s.b)

    return Net(f, a=L(12, 16), g=weights(16), b=weights(16), o=L(16, 5)), vec()


@zoo
def normalize():
    return Net(lambda s, x: F.linear(F.normalize(s.a(x)), F.normalize(s.w)), a=L(12, 16), w=weights(5, 16)), vec()


@zoo
def sort_():
    return Net(lambda s, x: s.o(s.a(x).sort(1)[0]), a=L(12, 16), o=L(16, 5)), vec()


@zoo
def topk_():
    return Net(lambda s, x: s.o(s.a(x).topk(4, 1)[0]), a=L(12, 16), o=L(4, 5)), vec()


@zoo
def constant_shape():
    def f(s, x):
        h = s.a(x)
        return s.o(h * torch.arange(h.shape[1]).float())

    return Net(f, a=L(12, 16), o=L(16, 5)), vec()


@zoo
def perm_index():
    m = Net(lambda s, x: s.o(s.a(x)[:, s.p]), a=L(12, 16), o=L(16, 5))
    m.register_buffer("p", torch.randperm(16))
    return m, vec()


@zoo
def every_other():
    return Net(lambda s, x: s.o(s.a(x)[:, ::2]), a=L(12, 16), o=L(8, 5)), vec()


@zoo
def roll_flat():
    return Net(lambda s, x: s.o(s.a(x).roll(1)), a=L(12, 16), o=L(16, 5)), vec()


@zoo
def roll_():
    return Net(lambda s, x: s.o(s.a(x) + s.a(x).roll(1, 1)), a=L(12, 16), o=L(16, 5)), vec()


@zoo
def temporal_shift():
    def f(s, x):
        h = s.a(x)
        out = torch.zeros_like(h)
        out[:, 1:, :4] = h[:, :-1, :4]
        out[:, :, 4:] = h[:, :, 4:]
        return s.o(out.mean(1))

    return Net(f, a=L(8, 16), o=L(16, 5)), seq()


@zoo
def inplace_add_slice():
    def f(s, x):
        h = s.a(x).clone()
        h[:, :8] += s.b(x)
        return s.o(h)

    return Net(f, a=L(12, 16), b=L(12, 8), o=L(16, 5)), vec()


@zoo
def repeat_():
    return Net(lambda s, x: s.o(s.a(x).repeat(1, 2)), a=L(12, 8), o=L(16, 5)), vec()


@zoo
def gqa_expand():
    def f(s, x):
        b, t, _ = x.shape
        q = s.q(x).view(b, t, 4, 4).transpose(1, 2)
        k, v = (
            w(x).view(b, t, 2, 4).transpose(1, 2)[:, :, None].expand(b, 2, 2, t, 4).reshape(b, 4, t, 4)
            for w in (s.k, s.v)
        )
        return s.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).mean(1))

    return Net(f, q=L(8, 16), k=L(8, 8), v=L(8, 8), o=L(16, 5)), seq()


@zoo
def rope():
    def f(s, x):
        b, t, _ = x.shape
        q, k, v = (w(x).view(b, t, -1, 4).transpose(1, 2) for w in (s.q, s.k, s.v))
        a = torch.arange(t)[:, None] * torch.tensor([1.0, 0.1])
        c, n = a.cos(), a.sin()

        def r(u):
            p, q = u.chunk(2, -1)
            return torch.cat([p * c - q * n, p * n + q * c], -1)

        return s.o(F.scaled_dot_product_attention(r(q), r(k), v).transpose(1, 2).flatten(2).mean(1))

    return Net(f, q=L(8, 16), k=L(8, 16), v=L(8, 16), o=L(16, 5)), seq()


@zoo
def relbias():
    def f(s, x):
        b, t, _ = x.shape
        q, k, v = (w(x).view(b, t, 4, -1).transpose(1, 2) for w in (s.q, s.k, s.v))
        return s.o(
            ((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + s.bias).softmax(-1) @ v).transpose(1, 2).flatten(2).mean(1)
        )

    return Net(f, q=L(8, 16), k=L(8, 16), v=L(8, 16), bias=weights(4, 7, 7), o=L(16, 5)), seq()


@zoo
def posbuf():
    m = Net(lambda s, x: s.o(s.l(s.e(x) + s.pe).relu().mean(1)), e=nn.Embedding(11, 16), l=L(16, 12), o=L(12, 5))
    m.register_buffer("pe", torch.randn(1, 7, 16))
    return m, tok()


@zoo
def moe():
    def f(s, x):
        g = s.g(x).softmax(1)
        h = torch.stack([e(x) for e in s.es], 1)
        return s.o((h * g[:, :, None]).sum(1).relu())

    m = Net(f, g=L(12, 3), o=L(8, 5))
    m.es = nn.ModuleList([L(12, 8) for _ in range(3)])
    return m, vec()


@zoo
def weightnorm():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(L(12, 16)), nn.ReLU(), L(16, 5)), vec()


@zoo
def spectral():
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(L(12, 16)), nn.ReLU(), L(16, 5)), vec()


@zoo
def acts():
    return nn.Sequential(
        L(12, 16),
        nn.SiLU(),
        L(16, 16),
        nn.Hardswish(),
        L(16, 16),
        nn.Mish(),
        L(16, 16),
        nn.ELU(),
        L(16, 16),
        nn.Softplus(),
        L(16, 16),
        nn.LeakyReLU(),
        L(16, 16),
        nn.Hardtanh(),
        L(16, 16),
        nn.RReLU(),
        L(16, 5),
    ), vec()


@zoo
def unflatten():
    return nn.Sequential(
        L(12, 72), nn.Unflatten(1, (8, 3, 3)), nn.ConvTranspose2d(8, 6, 2), nn.ReLU(), nn.Flatten(), L(96, 5)
    ), vec()


@zoo
def fm():
    def f(s, x):
        e = s.e(x)
        v = 0.5 * (e.sum(1).pow(2) - e.pow(2).sum(1))
        return s.o(torch.cat([v, s.d(e.flatten(1)).relu()], 1))

    return Net(f, e=nn.Embedding(11, 8), d=L(56, 16), o=L(24, 5)), tok()


@zoo
def fnet():
    return Net(lambda s, x: s.o(torch.fft.fft2(s.e(x)).real.mean(1)), e=nn.Embedding(11, 16), o=L(16, 5)), tok()


@zoo
def eye_shape():
    def f(s, x):
        h = s.a(x)
        return s.o(h @ (s.w + torch.eye(h.shape[1])))

    return Net(f, a=L(12, 16), w=weights(16, 16), o=L(16, 5)), vec()


@zoo
def ones_mask():
    def f(s, x):
        h = s.a(x)
        m = torch.ones(h.shape[1])
        m[:3] = 0
        return s.o(h * m)

    return Net(f, a=L(12, 16), o=L(16, 5)), vec()


@zoo
def select_channel():
    return Net(lambda s, x: s.o(s.a(x)) * s.a(x)[:, 0][:, None], a=L(12, 16), o=L(16, 5)), vec()


@zoo
def bucket():
    return Net(lambda s, x: s.o(s.a(x).view(len(x), 4, 4).transpose(1, 2).flatten(1)), a=L(12, 16), o=L(16, 5)), vec()


@zoo
def lowrank():
    return Net(lambda s, x: s.o((x @ s.u @ s.v).relu()), u=weights(12, 4), v=weights(4, 16), o=L(16, 5)), vec()
