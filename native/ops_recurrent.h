// LSTM and GRU: one layer over a batch of sequences, zero initial state, torch's formulas and order of gates.
// Here: what the two share (the products with the inputs of all steps at once, the weight gradients), then each one's
// gates. Not here: packing and products (panels.h). Inside, rows lie by time and then by example, so that a step is one
// block; outside by example. Invariant: lanes H..ld stay 0, since their weights are 0 (g or n is then tanh 0).
// After: Hochreiter and Schmidhuber 1997 with a forget gate (Gers et al. 2000); Cho et al. 2014 with the reset gate
// applied after the product, as torch does.
#pragma once
#include "op.h"
#include "panels.h"

namespace ff {

// tanh to 5e-7 relative: an odd rational of degree 13 over 6 on [-7.9, 7.9], the coefficients of Eigen's; NaN stays
static FF_INLINE vf tanh_gate(vf x0) {
  const vf edge = all(7.90531110763549805f), low = -edge;
  vf x = low > x0 ? low : x0;
  x = edge < x ? edge : x;
  const vf s = x * x;
  vf p = all(-2.76076847742355e-16f), q = all(1.19825839466702e-06f);
  p = p * s + 2.00018790482477e-13f;
  p = p * s + -8.60467152213735e-11f;
  p = p * s + 5.12229709037114e-08f;
  p = p * s + 1.48572235717979e-05f;
  p = p * s + 6.37261928875436e-04f;
  p = p * s + 4.89352455891786e-03f;
  q = q * s + 1.18534705686654e-04f;
  q = q * s + 2.26843463243900e-03f;
  q = q * s + 4.89352518554385e-03f;
  return x * p / q;
}
static FF_INLINE vf sigmoid_gate(vf x) { return .5f + .5f * tanh_gate(.5f * x); }

struct Recurrent : Op {
  int T, K, H, N;          // steps; floats of an input step; floats of a state; columns of the weights
  int turn;                // the input products' column c is column (c + turn) mod N of w_ih
  bool biased;
  int64_t lx, lg, lh;      // floats between rows, inside, of inputs, of gates (4 H of them), of states
  static constexpr int BLOCK = 160;  // rows of the input's gradient at a time

  void fill(const Spec& s, const Shapes& at, int gates) {
    takes(s, 1, 2, 4);
    must(s.params.size() != 3, "a recurrent layer has both biases or none");
    const Value &x = at.values[s.in[0]], &z = at.values[s.out];
    must(!x.tokens && !z.tokens, "a recurrent layer takes and gives numbers");
    must(x.w == 1 && z.w == 1 && x.h == z.h && x.h >= 1, "a recurrent layer takes and gives sequences of one length");
    must(z.ld % PAD == 0 && z.ld >= PAD && z.c >= 1 && z.c <= z.ld, "a recurrent layer's width is to be filled up to 16");
    must(x.ld >= 1 && x.ld <= 1 << 20 && z.ld <= 1 << 16 && x.h <= 1 << 24, "a recurrent layer is too large");
    T = x.h, K = x.ld, H = z.ld, N = gates * H, turn = 0;
    lx = apart(K), lg = apart(4 * (int64_t)H), lh = apart(H);
    must((T + 2) * (lx + lg + 4 * lh) < (int64_t)1 << 31, "a recurrent layer's sequences are too long");
    biased = s.params.size() == 4;
    sized(at, s, 0, (int64_t)K * N);
    sized(at, s, 1, (int64_t)H * N);
    if (biased) sized(at, s, 2, N), sized(at, s, 3, N);
  }

  // kept: gates [T][rows][lg], inputs [T][rows][lx], states [T + 1][rows][lh], then what the layer adds
  float* gates(float* kept) const { return kept; }
  float* inputs(float* kept, int rows) const { return kept + rows * T * lg; }
  float* states(float* kept, int rows) const { return inputs(kept, rows) + rows * T * lx; }
  float* rest(float* kept, int rows) const { return states(kept, rows) + rows * (T + 1) * lh; }
  int64_t common(int rows) const { return rows * (T * (lg + lx) + (T + 1) * lh); }
  // scratch: strips of the larger matrix, 4 H floats of bias, then the gradients of the state [rows][2][lh] or those of a
  // block of inputs
  int64_t strips() const { return (int64_t)(padded(K) > H ? padded(K) : H) * N; }
  int64_t scratch(int rows) const override {
    const int64_t state = 2 * rows * lh, block = (BLOCK + rows) * lx;
    return strips() + 4 * (int64_t)H + (state > block ? state : block);
  }

  // gates[:, 0..N] = bias + x w_ih for all steps
  void input_products(const Pass& t, float* kept, cf bias) const {
    cf x = t.act[in[0]];
    float* mine = inputs(kept, t.rows);
    for (int i = 0; i < T; i++)
      for (int b = 0; b < t.rows; b++) memcpy(mine + ((int64_t)i * t.rows + b) * lx, x + ((int64_t)b * T + i) * K, K * sizeof(float));
    pack(t.at(params[0]), N, K, N, MOST_NR, turn, t.scratch);
    by_strips(mine, lx, t.scratch, MOST_NR, bias ? BIAS : ZERO, bias, gates(kept), lg, (int64_t)t.rows * T, K, N);
  }

  // The input's gradient, from those of the gates in columns 0..N of `kept`
  void input_gradient(const Pass& t, float* kept) const {
    float *below = t.grad[in[0]], *block = t.scratch + strips() + 4 * (int64_t)H;
    pack_transposed(t.at(params[0]), N, K, N, MOST_NR, turn, t.scratch);
    const int steps = BLOCK / t.rows > 1 ? BLOCK / t.rows : 1;
    for (int i0 = 0; i0 < T; i0 += steps) {
      const int n = T - i0 < steps ? T - i0 : steps;
      by_strips(gates(kept) + (int64_t)i0 * t.rows * lg, lg, t.scratch, MOST_NR, ZERO, nullptr, block, lx, (int64_t)n * t.rows, N, padded(K));
      for (int i = 0; i < n; i++)
        for (int b = 0; b < t.rows; b++) {
          cf from = block + ((int64_t)i * t.rows + b) * lx;
          float* to = below + ((int64_t)b * T + i0 + i) * K;
          if (add[0])
            for (int k = 0; k < K; k++) to[k] += from[k];
          else
            memcpy(to, from, K * sizeof(float));
        }
    }
  }

  // columns `to`.. of a weight's gradient from columns `from`.. of the gates' gradients: with the inputs, or with the
  // states before (of the first step 0)
  void weight_gradient(const Pass& t, float* kept, int which, int from, int to, int columns) const {
    const auto g = t.target(params[which]);
    const int64_t late = which ? t.rows : 0;
    outer_blocks(which ? states(kept, t.rows) + t.rows * lh : inputs(kept, t.rows), which ? lh : lx, gates(kept) + late * lg + from, lg,
                 (int64_t)t.rows * T - late, which ? H : K, columns, g.in + to, g.scale, g.out + to, N);
  }

  void bias_gradient(const Pass& t, int which, cf sums, int to, int n) const {
    const auto g = t.target(params[which]);
    for (int j = 0; j < n; j += VL) store(g.out + to + j, load(g.in + to + j) + g.scale * load(sums + j));
  }
};

struct Lstm final : Recurrent {
  static std::unique_ptr<Op> make(const Spec& s, const Shapes& at) {
    auto op = std::make_unique<Lstm>();
    op->fill(s, at, 4);
    return op;
  }
  // adds the cells [T + 1][rows][H] and their tanh [T][rows][H]
  int64_t kept(int rows) const override { return common(rows) + (int64_t)rows * (2 * T + 1) * H; }

  void forward(const Pass& t, float* kept) const override {
    const int rows = t.rows, nr = strip(rows);
    float* bias = t.scratch + strips();
    if (biased)
      for (int j = 0; j < N; j += VL) store(bias + j, load(t.at(params[2]) + j) + load(t.at(params[3]) + j));
    input_products(t, kept, biased ? bias : nullptr);
    pack(t.at(params[1]), N, H, N, nr, 0, t.scratch);
    float *z = gates(kept), *h = states(kept, rows), *c = rest(kept, rows), *tc = c + (int64_t)rows * (T + 1) * H;
    memset(h, 0, rows * lh * sizeof(float));
    memset(c, 0, (int64_t)rows * H * sizeof(float));
    for (int i = 0; i < T; i++, z += rows * lg, h += rows * lh, c += (int64_t)rows * H, tc += (int64_t)rows * H) {
      if (i) by_strips(h, lh, t.scratch, nr, ADD, nullptr, z, lg, rows, H, N);
      for (int b = 0; b < rows; b++) {
        float *q = z + b * lg, *after = h + (rows + b) * lh, *y = t.act[out] + ((int64_t)b * T + i) * H;
        for (int j = 0; j < H; j += VL, q += VL) {
          const int64_t at = (int64_t)b * H + j, next = at + (int64_t)rows * H;
          const vf ig = sigmoid_gate(load(q)), f = sigmoid_gate(load(q + H)), g = tanh_gate(load(q + 2 * H)), o = sigmoid_gate(load(q + 3 * H));
          const vf cell = f * load(c + at) + ig * g, tanh_cell = tanh_gate(cell), state = o * tanh_cell;
          store(q, ig), store(q + H, f), store(q + 2 * H, g), store(q + 3 * H, o);
          store(c + next, cell), store(tc + at, tanh_cell);
          store(after + j, state), store(y + j, state);
        }
      }
    }
  }

  void backward(const Pass& t, float* kept) const override {
    const int rows = t.rows, nr = strip(rows);
    float *sums = t.scratch + strips(), *dh = sums + 4 * (int64_t)H, *dc = dh + rows * lh;
    pack_transposed(t.at(params[1]), N, H, N, nr, 0, t.scratch);
    memset(sums, 0, (4 * (int64_t)H + 2 * rows * lh) * sizeof(float));
    for (int i = T - 1; i >= 0; i--) {
      float* z = gates(kept) + (int64_t)i * rows * lg;
      cf c = rest(kept, rows) + (int64_t)i * rows * H, tc = rest(kept, rows) + (int64_t)(T + 1 + i) * rows * H;
      if (i < T - 1) by_strips(z + rows * lg, lg, t.scratch, nr, ZERO, nullptr, dh, lh, rows, N, H);
      for (int b = 0; b < rows; b++) {
        float *q = z + b * lg, *dcell = dc + b * lh, *sum = sums;
        cf from = t.grad[out] + ((int64_t)b * T + i) * H, more = dh + b * lh, before = c + (int64_t)b * H, squashed = tc + (int64_t)b * H;
        for (int j = 0; j < H; j += VL, q += VL, sum += VL) {
          const vf ig = load(q), f = load(q + H), g = load(q + 2 * H), o = load(q + 3 * H), tanh_cell = load(squashed + j);
          const vf d = load(from + j) + load(more + j);
          const vf cell = d * o * (1.f - tanh_cell * tanh_cell) + load(dcell + j);
          const vf di = cell * g * (ig * (1.f - ig)), df = cell * load(before + j) * (f * (1.f - f));
          const vf dg = cell * ig * (1.f - g * g), dout = d * tanh_cell * (o * (1.f - o));
          store(q, di), store(q + H, df), store(q + 2 * H, dg), store(q + 3 * H, dout);
          store(dcell + j, cell * f);
          store(sum, load(sum) + di), store(sum + H, load(sum + H) + df);
          store(sum + 2 * H, load(sum + 2 * H) + dg), store(sum + 3 * H, load(sum + 3 * H) + dout);
        }
      }
    }
    for (int which = 2; biased && which < 4; which++)
      if (t.trained(params[which])) bias_gradient(t, which, sums, 0, N);
    if (want[0]) input_gradient(t, kept);
    for (int which = 0; which < 2; which++)
      if (t.trained(params[which])) weight_gradient(t, kept, which, 0, 0, N);
  }
};

// The gates lie as n r z q, q being the state's share of n before the reset gate: the products with inputs fill n r z, those
// with the state r z q.
struct Gru final : Recurrent {
  static std::unique_ptr<Op> make(const Spec& s, const Shapes& at) {
    auto op = std::make_unique<Gru>();
    op->fill(s, at, 3);
    op->turn = 2 * op->H;
    return op;
  }
  int64_t kept(int rows) const override { return common(rows); }

  void forward(const Pass& t, float* kept) const override {
    const int rows = t.rows, nr = strip(rows);
    float* bias = t.scratch + strips();
    memset(bias, 0, 4 * (int64_t)H * sizeof(float));
    if (biased) {
      cf of_input = t.at(params[2]), of_state = t.at(params[3]);
      for (int j = 0; j < H; j += VL) {
        store(bias + j, load(of_input + 2 * H + j));
        store(bias + H + j, load(of_input + j) + load(of_state + j));
        store(bias + 2 * H + j, load(of_input + H + j) + load(of_state + H + j));
        store(bias + 3 * H + j, load(of_state + 2 * H + j));
      }
    }
    input_products(t, kept, bias);
    pack(t.at(params[1]), N, H, N, nr, 0, t.scratch);
    float *z = gates(kept), *h = states(kept, rows);
    memset(h, 0, rows * lh * sizeof(float));
    for (int i = 0; i < T; i++, z += rows * lg, h += rows * lh) {
      for (int b = 0; b < rows; b++) memcpy(z + b * lg + 3 * H, bias + 3 * H, H * sizeof(float));
      if (i) by_strips(h, lh, t.scratch, nr, ADD, nullptr, z + H, lg, rows, H, N);
      for (int b = 0; b < rows; b++) {
        float *q = z + b * lg, *after = h + (rows + b) * lh, *y = t.act[out] + ((int64_t)b * T + i) * H;
        cf before = h + b * lh;
        for (int j = 0; j < H; j += VL, q += VL) {
          const vf r = sigmoid_gate(load(q + H)), u = sigmoid_gate(load(q + 2 * H)), n = tanh_gate(load(q) + r * load(q + 3 * H));
          const vf state = n + u * (load(before + j) - n);
          store(q, n), store(q + H, r), store(q + 2 * H, u);
          store(after + j, state), store(y + j, state);
        }
      }
    }
  }

  void backward(const Pass& t, float* kept) const override {
    const int rows = t.rows, nr = strip(rows);
    float *sums = t.scratch + strips(), *dh = sums + 4 * (int64_t)H;
    pack_transposed(t.at(params[1]), N, H, N, nr, 0, t.scratch);
    memset(sums, 0, (4 * (int64_t)H + rows * lh) * sizeof(float));
    for (int i = T - 1; i >= 0; i--) {
      float* z = gates(kept) + (int64_t)i * rows * lg;
      if (i < T - 1) by_strips(z + rows * lg + H, lg, t.scratch, nr, ADD, nullptr, dh, lh, rows, N, H);
      for (int b = 0; b < rows; b++) {
        float *q = z + b * lg, *more = dh + b * lh, *sum = sums;
        cf from = t.grad[out] + ((int64_t)b * T + i) * H, before = states(kept, rows) + ((int64_t)i * rows + b) * lh;
        for (int j = 0; j < H; j += VL, q += VL, sum += VL) {
          const vf n = load(q), r = load(q + H), u = load(q + 2 * H), share = load(q + 3 * H);
          const vf d = load(from + j) + load(more + j);
          const vf dn = d * (1.f - u) * (1.f - n * n), du = d * (load(before + j) - n) * (u * (1.f - u));
          const vf dr = dn * share * (r * (1.f - r)), dq = dn * r;
          store(q, dn), store(q + H, dr), store(q + 2 * H, du), store(q + 3 * H, dq);
          store(more + j, d * u);
          store(sum, load(sum) + dn), store(sum + H, load(sum + H) + dr);
          store(sum + 2 * H, load(sum + 2 * H) + du), store(sum + 3 * H, load(sum + 3 * H) + dq);
        }
      }
    }
    if (biased && t.trained(params[2])) {
      bias_gradient(t, 2, sums + H, 0, 2 * H);
      bias_gradient(t, 2, sums, 2 * H, H);
    }
    if (biased && t.trained(params[3])) bias_gradient(t, 3, sums + H, 0, N);
    if (want[0]) input_gradient(t, kept);
    if (t.trained(params[0])) {
      weight_gradient(t, kept, 0, H, 0, 2 * H);
      weight_gradient(t, kept, 0, 0, 2 * H, H);
    }
    if (t.trained(params[1])) weight_gradient(t, kept, 1, H, 0, N);
  }
};

}  // namespace ff
