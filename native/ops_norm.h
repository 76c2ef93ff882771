// Ops that make means 0 and variances 1: by groups of channels, by example, by position, by batch; and scale with shift.
// After: Wu and He 2018 (groups), Ba, Kiros and Hinton 2016 (layers), Ioffe and Szegedy 2015 (batch; ours keeps no running
// statistics). Invariant: statistics are of the real channels only, the variance is of differences from a mean (that of a
// block where it is taken in one pass), sums are of float32 in blocks and float64 between them.
#pragma once
#include "ops_bends.h"

namespace ff {

static FF_INLINE void add_lanes(double* total, vf v) {
  float t[VL];
  store(t, v);
  for (int i = 0; i < VL; i++) total[i] += t[i];
}

// total[k][0..ld) += sums over m < n of the k-th of the S vectors that f(m, j, v) gives for the lanes from j
template <int S, class F>
static FF_INLINE void column_totals(int64_t n, int64_t ld, double* const* total, F f) {
  constexpr int64_t BLOCK = 128;
  constexpr int U = 4;
  for (int64_t m0 = 0; m0 < n; m0 += BLOCK) {
    const int64_t end = m0 + BLOCK < n ? m0 + BLOCK : n;
    for (int64_t j = 0; j < ld; j += VL) {
      vf s[U][S], v[S];
      for (int u = 0; u < U; u++)
        for (int k = 0; k < S; k++) s[u][k] = zero();
      int64_t m = m0;
      for (; m + U <= end; m += U)
#pragma GCC unroll 4
        for (int u = 0; u < U; u++) {
          f(m + u, j, v);
          for (int k = 0; k < S; k++) s[u][k] += v[k];
        }
      for (; m < end; m++) {
        f(m, j, v);
        for (int k = 0; k < S; k++) s[0][k] += v[k];
      }
      for (int k = 0; k < S; k++) add_lanes(total[k] + j, (s[0][k] + s[1][k]) + (s[2][k] + s[3][k]));
    }
  }
}

// Of each column, over m < n rows `ld` apart: total += the sum, around += the sum of squares of differences from the mean
// of a block of rows, spread += that of the blocks' means' squares. So the sum of squares of differences from any mean is
// around + spread - 2 mean total + n mean mean. Each number is read from memory once.
static FF_INLINE void column_moments(cf x, int64_t n, int64_t ld, double* total, double* around, double* spread) {
  constexpr int64_t BLOCK = 128;
  constexpr int U = 4;
  for (int64_t m0 = 0; m0 < n; m0 += BLOCK) {
    const int64_t count = m0 + BLOCK < n ? BLOCK : n - m0;
    const float share = 1.f / (float)count;
    for (int64_t j = 0; j < ld; j += VL) {
      cf at = x + m0 * ld + j;
      vf s[U], e[U], q[U];
      for (int u = 0; u < U; u++) s[u] = e[u] = q[u] = zero();
      int64_t m = 0;
      for (; m + U <= count; m += U)
#pragma GCC unroll 4
        for (int u = 0; u < U; u++) s[u] += load(at + (m + u) * ld);
      for (; m < count; m++) s[0] += load(at + m * ld);
      const vf mean = ((s[0] + s[1]) + (s[2] + s[3])) * share;
      for (m = 0; m + U <= count; m += U)
#pragma GCC unroll 4
        for (int u = 0; u < U; u++) {
          const vf a = load(at + (m + u) * ld) - mean;
          e[u] += a;
          q[u] += a * a;
        }
      for (; m < count; m++) {
        const vf a = load(at + m * ld) - mean;
        e[0] += a;
        q[0] += a * a;
      }
      float means[VL], rest[VL], squares[VL];
      store(means, mean), store(rest, (e[0] + e[1]) + (e[2] + e[3])), store(squares, (q[0] + q[1]) + (q[2] + q[3]));
      for (int i = 0; i < VL; i++) {  // the mean of the block is off by its rounding: rest / count
        const double left = (double)rest[i] / (double)count, mid = (double)means[i] + left;
        total[j + i] += mid * (double)count;
        around[j + i] += (double)squares[i] - left * rest[i];
        spread[j + i] += mid * mid * (double)count;
      }
    }
  }
}

// out[k] = the sum over i < n (in steps of VL) of the k-th of the S vectors that f(i, v) gives, by lane
template <int S, class F>
static FF_INLINE void lane_sums(int64_t n, vf* out, F f) {
  constexpr int U = 4;
  vf s[U][S], v[S];
  for (int u = 0; u < U; u++)
    for (int k = 0; k < S; k++) s[u][k] = zero();
  int64_t i = 0;
  for (; i + U * VL <= n; i += U * VL)
#pragma GCC unroll 4
    for (int u = 0; u < U; u++) {
      f(i + u * VL, v);
      for (int k = 0; k < S; k++) s[u][k] += v[k];
    }
  for (; i < n; i += VL) {
    f(i, v);
    for (int k = 0; k < S; k++) s[0][k] += v[k];
  }
  for (int k = 0; k < S; k++) out[k] = (s[0][k] + s[1][k]) + (s[2][k] + s[3][k]);
}
constexpr int64_t LANES_BLOCK = 4096;  // floats whose sum is taken in float32
template <int S, class F>
static FF_INLINE void lane_totals(int64_t n, double* out, F f) {
  for (int k = 0; k < S; k++) out[k] = 0;
  for (int64_t i0 = 0; i0 < n; i0 += LANES_BLOCK) {
    vf v[S];
    lane_sums<S>(n - i0 < LANES_BLOCK ? n - i0 : LANES_BLOCK, v, [=](int64_t i, vf* w) FF_LAMBDA { f(i0 + i, w); });
    for (int k = 0; k < S; k++) out[k] += sum(v[k]);
  }
}

static FF_INLINE void update(const Pass::Target& g, const double* total, int64_t n) {
  for (int64_t i = 0; i < n; i++) g.out[i] = g.in[i] + g.scale * (float)total[i];
}

// What the norms share: an input, perhaps gamma, perhaps beta, eps.
struct Norm : Op {
  Frame frame;
  double eps = 0;

  void read(const Spec& s, const Shapes& at, int64_t width) {
    frame = Frame::of(s, at, 0);
    for (size_t i = 0; i < s.params.size(); i++) sized(at, s, i, width);
    if (s.floats.size() != 1 || !(s.floats[0] >= 0 && s.floats[0] < 1e30)) refuse("op " + s.kind + ": takes one eps, not below 0");
    eps = s.floats[0];
  }
  float inverse(double variance) const { return (float)(1 / std::sqrt(variance + eps)); }
  cf gamma(const Pass& t) const { return params.size() > 0 ? t.at(params[0]) : nullptr; }
  cf beta(const Pass& t) const { return params.size() > 1 ? t.at(params[1]) : nullptr; }
  bool learns(const Pass& t) const {
    for (int p : params)
      if (t.trained(p)) return true;
    return false;
  }
  void learn(const Pass& t, const double* of_gamma, const double* of_beta, int64_t n) const {
    if (params.size() > 0 && t.trained(params[0])) update(t.target(params[0]), of_gamma, n);
    if (params.size() > 1 && t.trained(params[1])) update(t.target(params[1]), of_beta, n);
  }
};

struct Straight {  // no activation
  static FF_INLINE vf f(vf x, const Constants&) { return x; }
  static FF_INLINE vf back(vf d, vf, vf, const Constants&) { return d; }
};

// group_norm: of each example the channels in groups; batch_norm: of the whole batch each channel. F is an activation
// behind it (fusion.h), cheap enough to be computed again going back; its numbers stand behind eps.
template <class F>
struct Group_norm final : Norm {
  static constexpr bool BENT = !std::is_same<F, Straight>::value;
  int groups = 1;
  bool batch = false, clears = false;
  Constants k;

  static std::unique_ptr<Op> make(const Spec& s, const Shapes& at) {
    takes(s, 1, 0, 2);
    auto op = std::make_unique<Group_norm>();
    op->batch = s.kind.compare(0, 10, "batch_norm") == 0;
    Spec norm = s, bend = s;
    if (BENT && !s.floats.empty()) {
      norm.floats.resize(1);
      bend.floats.erase(bend.floats.begin());
      op->k = Told<F>::of(bend);
      op->clears = clears_pads<F>(op->k);
    }
    op->read(norm, at, at.values[s.out].ld);
    op->groups = op->batch ? op->frame.c : (int)whole(s, 0, 1, op->frame.c);
    must(op->frame.c % op->groups == 0, "group_norm: the channels are no multiple of the groups");
    return op;
  }
  int64_t segments(int rows) const { return batch ? 1 : rows; }
  int64_t length(int rows) const { return batch ? rows * frame.positions : frame.positions; }
  int64_t kept(int rows) const override { return segments(rows) * 2 * frame.ldz; }  // mean, 1 / deviation by channel
  int64_t scratch(int rows) const override { return 12 * (int64_t)frame.ldz + frame.room(rows); }

  // the gradient above the activation, d being that behind it, a and b what the norm multiplies by and adds
  static FF_INLINE vf before(vf d, vf away, vf a, vf b, const Constants& k) {
    if (!BENT) return d;
    const vf h = away * a + b;
    return F::back(d, h, F::f(h, k), k);
  }

  // by channel: in[k] = the mean over the group of what total has, with weights
  void group_means(const double* total, cf weight, double count, float* mean) const {
    const int c = frame.c / groups;
    for (int g = 0; g < groups; g++) {
      double s = 0;
      for (int k = g * c; k < g * c + c; k++) s += weight ? total[k] * weight[k] : total[k];
      for (int k = g * c; k < g * c + c; k++) mean[k] = (float)(s / count);
    }
    for (int k = frame.c; k < frame.ldz; k++) mean[k] = 0;
  }

  bool across() const override { return batch; }

  void forward(const Pass& t, float* kept) const override {
    must(!batch || !t.train || length(t.rows) > 1, "statistics of a batch need more than one value a channel: use larger batches, or GroupNorm");
    float* z = t.act[out];
    cf all_x = frame.lie(t.act[in[0]], t.rows, z), ga = gamma(t), be = beta(t);
    const int64_t n = length(t.rows), ld = frame.ldz;
    const double count = (double)n * (frame.c / groups);
    double *total = (double*)t.scratch, *around = total + ld, *spread = around + ld;
    const Constants k = this->k;
    for (int64_t r = 0; r < segments(t.rows); r++) {
      cf x = all_x + r * n * ld;
      float *y = z + r * n * ld, *mean = kept + r * 2 * ld, *rate = mean + ld;
      memset(total, 0, 3 * ld * sizeof(double));
      column_moments(x, n, ld, total, around, spread);
      const int c = frame.c / groups;
      for (int g = 0; g < groups; g++) {
        double s = 0, squares = 0;
        for (int i = g * c; i < g * c + c; i++) s += total[i], squares += around[i] + spread[i];
        const double middle = s / count, variance = squares / count - middle * middle;
        const float rs = inverse(variance < 0 ? 0 : variance);
        for (int i = g * c; i < g * c + c; i++) mean[i] = (float)middle, rate[i] = rs;
      }
      for (int64_t i = frame.c; i < ld; i++) mean[i] = rate[i] = 0;
      blocks(n, [=](int64_t m0, int64_t m1, int64_t j) FF_LAMBDA {
        const vf mu = load(mean + j), a = ga ? load(rate + j) * load(ga + j) : load(rate + j), b = be ? load(be + j) : zero();
        for (int64_t m = m0; m < m1; m++) store(y + m * ld + j, F::f((load(x + m * ld + j) - mu) * a + b, k));
      });
    }
    if (clears) frame.clear_pads(z, t.rows);
  }

  template <class G>
  FF_INLINE void blocks(int64_t n, G f) const {  // so that a block stays in the first level of cache
    for (int64_t m0 = 0; m0 < n; m0 += 128)
      for (int64_t j = 0; j < frame.ldz; j += VL) f(m0, m0 + 128 < n ? m0 + 128 : n, j);
  }

  // With h = (x - mean) rate, u = d gamma: below = rate (u - mean of u - h * mean of u h), means over the group
  void backward(const Pass& t, float* kept) const override {
    const int64_t n = length(t.rows), ld = frame.ldz;
    const double count = (double)n * (frame.c / groups);
    double *total = (double*)t.scratch, *of_gamma = total + 2 * ld, *of_beta = of_gamma + ld;
    float *mean_u = t.scratch + 8 * ld, *mean_uh = mean_u + ld, *room = t.scratch + 12 * ld;
    double* const two[2] = {total, total + ld};
    cf ga = gamma(t), be = beta(t), d0 = t.grad[out];
    const Constants k = this->k;
    memset(of_gamma, 0, 2 * ld * sizeof(double));
    if (frame.even()) room = nullptr;
    cf x0 = frame.lie(t.act[in[0]], t.rows, room);
    if (!want[0] && !learns(t)) return;
    for (int64_t r = 0; r < segments(t.rows); r++) {
      cf x = x0 + r * n * ld, d = d0 + r * n * ld, mean = kept + r * 2 * ld, rate = mean + ld;
      memset(total, 0, 2 * ld * sizeof(double));
      column_totals<2>(n, ld, two, [=](int64_t m, int64_t j, vf* v) FF_LAMBDA {
        const vf away = load(x + m * ld + j) - load(mean + j);
        v[0] = before(load(d + m * ld + j), away, ga ? load(rate + j) * load(ga + j) : load(rate + j), be ? load(be + j) : zero(), k);
        v[1] = v[0] * away;
      });
      for (int64_t i = 0; i < ld; i++) {
        total[ld + i] *= rate[i];
        of_beta[i] += total[i];
        of_gamma[i] += total[ld + i];
      }
      if (!want[0]) continue;
      group_means(total, ga, count, mean_u);
      group_means(total + ld, ga, count, mean_uh);
      const bool even = frame.even(), adds = add[0];
      // where it lies otherwise, the gradient takes the place of the copy of x
      float* below = even ? t.grad[in[0]] + r * n * ld : room + r * n * ld;
      blocks(n, [=](int64_t m0, int64_t m1, int64_t j) FF_LAMBDA {
        const vf rs = load(rate + j), a = ga ? rs * load(ga + j) : rs, b = rs * rs * load(mean_uh + j), mu = load(mean + j), e = rs * load(mean_u + j);
        const vf plus = be ? load(be + j) : zero();
        if (even && adds)
          for (int64_t m = m0; m < m1; m++) {
            const int64_t i = m * ld + j;
            const vf away = load(x + i) - mu;
            store(below + i, load(below + i) + (before(load(d + i), away, a, plus, k) * a - e - away * b));
          }
        else
          for (int64_t m = m0; m < m1; m++) {
            const int64_t i = m * ld + j;
            const vf away = load(x + i) - mu;
            store(below + i, before(load(d + i), away, a, plus, k) * a - e - away * b);
          }
      });
    }
    if (want[0] && !frame.even()) frame.hand_back(room, t.rows, t.grad[in[0]], add[0]);
    learn(t, of_gamma, of_beta, ld);
  }
};

// layer_norm: over the channels of each position (1), or over all of each example (2); gamma and beta by place
struct Layer_norm final : Norm {
  int64_t positions = 1;     // of a segment: what has one mean
  std::vector<float> real;   // by lane of a position: 1, or 0 for padding

  static std::unique_ptr<Op> make(const Spec& s, const Shapes& at) {
    takes(s, 1, 0, 2);
    auto op = std::make_unique<Layer_norm>();
    const Value& z = at.values[s.out];
    op->positions = whole(s, 0, 1, 2) == 2 ? z.positions() : 1;
    op->read(s, at, op->positions * z.ld);
    op->real.assign(z.ld, 0.f);
    for (int i = 0; i < z.c; i++) op->real[i] = 1;
    return op;
  }
  int64_t width() const { return positions * frame.ldz; }
  int64_t segments(int rows) const { return rows * (frame.positions / positions); }
  int64_t kept(int rows) const override { return 2 * segments(rows); }  // mean, 1 / deviation
  int64_t scratch(int rows) const override { return (params.empty() ? 0 : 4 * width()) + frame.room(rows); }

  // the sum of f(i, v) over a segment, with the lanes of padding 0
  template <int S, class F>
  FF_INLINE void totals(double* out, F f) const {
    const int64_t ld = frame.ldz;
    if (frame.c == ld) return lane_totals<S>(width(), out, f);
    cf mask = real.data();
    for (int k = 0; k < S; k++) out[k] = 0;
    for (int64_t p = 0; p < positions; p++) {
      double one[S];
      lane_totals<S>(ld, one, [=](int64_t j, vf* v) FF_LAMBDA {
        f(p * ld + j, v);
        for (int k = 0; k < S; k++) v[k] *= load(mask + j);
      });
      for (int k = 0; k < S; k++) out[k] += one[k];
    }
  }
  // f(i) over a segment into out, with the lanes of padding 0
  template <class F>
  FF_INLINE void fill(float* to, bool adds, F f) const {
    const int64_t ld = frame.ldz, n = width();
    cf mask = real.data();
    const bool full = frame.c == ld;
    for (int64_t p = 0, i = 0; i < n; p++)
      for (int64_t j = 0; j < (full ? n : ld); j += VL, i += VL) {
        vf v = f(i);
        if (!full) v *= load(mask + j);
        store(to + i, adds ? load(to + i) + v : v);
      }
  }

  // mean[k][i] = the mean over the channels of segment i < many of the k-th vector that f(i, place, v) gives
  template <int S, class F>
  FF_INLINE void means(int many, float (*mean)[VL], F f) const {
    const int64_t n = width();
    const double count = (double)positions * frame.c;
    const bool full = frame.c == frame.ldz;
    if (n <= LANES_BLOCK && (full || positions == 1)) {  // short ones: VL at a time
      vf s[S][VL], one[S];
      cf mask = real.data();
      for (int i = 0; i < VL; i++) {
        for (int k = 0; k < S; k++) one[k] = zero();
        if (i < many) {
          if (full)
            lane_sums<S>(n, one, [=](int64_t j, vf* v) FF_LAMBDA { f(i, j, v); });
          else
            lane_sums<S>(n, one, [=](int64_t j, vf* v) FF_LAMBDA {
              f(i, j, v);
              for (int k = 0; k < S; k++) v[k] *= load(mask + j);
            });
        }
        for (int k = 0; k < S; k++) s[k][i] = one[k];
      }
      for (int k = 0; k < S; k++) store(mean[k], sums(s[k]) / (float)count);
    } else {
      for (int i = 0; i < many; i++) {
        double one[S];
        totals<S>(one, [=](int64_t j, vf* v) FF_LAMBDA { f(i, j, v); });
        for (int k = 0; k < S; k++) mean[k][i] = (float)(one[k] / count);
      }
    }
  }

  void forward(const Pass& t, float* kept) const override {
    float* z = t.act[out];
    cf all_x = frame.lie(t.act[in[0]], t.rows, z), ga = gamma(t), be = beta(t);
    const int64_t n = width(), count = segments(t.rows);
    for (int64_t r = 0; r < count; r += VL) {
      const int many = (int)(count - r < VL ? count - r : VL);
      cf x = all_x + r * n;
      float mean[1][VL], rate[1][VL];
      cf mu = mean[0];
      means<1>(many, mean, [=](int s, int64_t i, vf* v) FF_LAMBDA { v[0] = load(x + s * n + i); });
      means<1>(many, rate, [=](int s, int64_t i, vf* v) FF_LAMBDA {
        const vf a = load(x + s * n + i) - mu[s];
        v[0] = a * a;
      });
      for (int i = 0; i < many; i++) {
        rate[0][i] = 1.f / std::sqrt(rate[0][i] + (float)eps);
        kept[2 * (r + i)] = mu[i];
        kept[2 * (r + i) + 1] = rate[0][i];
      }
      for (int s = 0; s < many; s++) {
        const vf m = all(mu[s]), q = all(rate[0][s]);
        cf xs = x + s * n;
        fill(z + (r + s) * n, false, [=](int64_t i) FF_LAMBDA {
          vf h = (load(xs + i) - m) * q;
          if (ga) h *= load(ga + i);
          return be ? h + load(be + i) : h;
        });
      }
    }
  }

  // With h = (x - mean) rate, u = d gamma: below = rate (u - mean of u - h * mean of u h)
  void backward(const Pass& t, float* kept) const override {
    const int64_t n = width(), count = segments(t.rows);
    float* room = t.scratch + (params.empty() ? 0 : 4 * n);
    cf ga = gamma(t), d0 = t.grad[out];
    cf x0 = frame.lie(t.act[in[0]], t.rows, room);
    if (learns(t)) {
      double* total = (double*)t.scratch;
      double* const two[2] = {total, total + n};
      memset(total, 0, 2 * n * sizeof(double));
      column_totals<2>(count, n, two, [=](int64_t m, int64_t j, vf* v) FF_LAMBDA {
        v[0] = load(d0 + m * n + j);
        v[1] = v[0] * ((load(x0 + m * n + j) - kept[2 * m]) * kept[2 * m + 1]);
      });
    }
    if (want[0]) {
      const bool even = frame.even();
      for (int64_t r = 0; r < count; r += VL) {
        const int many = (int)(count - r < VL ? count - r : VL);
        cf x = x0 + r * n, d = d0 + r * n, own = kept + 2 * r;
        float mean[2][VL];
        means<2>(many, mean, [=](int s, int64_t i, vf* v) FF_LAMBDA {
          v[0] = load(d + s * n + i);
          if (ga) v[0] *= load(ga + i);
          v[1] = v[0] * ((load(x + s * n + i) - own[2 * s]) * own[2 * s + 1]);
        });
        for (int s = 0; s < many; s++) {
          const vf mu = all(own[2 * s]), rate = all(own[2 * s + 1]), a = all(mean[0][s]), b = all(mean[1][s]);
          cf xs = x + s * n, ds = d + s * n;
          fill(even ? t.grad[in[0]] + (r + s) * n : room + (r + s) * n, even && add[0], [=](int64_t i) FF_LAMBDA {
            const vf u = ga ? load(ds + i) * load(ga + i) : load(ds + i);
            return rate * (u - a - (load(xs + i) - mu) * rate * b);
          });
        }
      }
      if (!even) frame.hand_back(room, t.rows, t.grad[in[0]], add[0]);
    }
    // last, as gamma may be written
    if (learns(t)) learn(t, (double*)t.scratch + n, (double*)t.scratch, n);
  }
};

// affine: by channel, x gamma + beta (a batch normalisation whose statistics do not change)
struct Affine final : Norm {
  static std::unique_ptr<Op> make(const Spec& s, const Shapes& at) {
    takes(s, 1, 2, 2);
    auto op = std::make_unique<Affine>();
    op->frame = Frame::of(s, at, 0);
    for (int i = 0; i < 2; i++) sized(at, s, i, op->frame.ldz);
    return op;
  }
  int64_t scratch(int rows) const override { return 4 * (int64_t)frame.ldz + frame.room(rows); }

  template <class F>
  FF_INLINE void each(int64_t n, F f) const {
    for (int64_t m = 0; m < n; m++)
      for (int64_t j = 0; j < frame.ldz; j += VL) f(m * frame.ldz + j, j);
  }
  void forward(const Pass& t, float*) const override {
    float* z = t.act[out];
    cf x = frame.lie(t.act[in[0]], t.rows, z), ga = gamma(t), be = beta(t);
    each(t.rows * frame.positions, [=](int64_t i, int64_t j) FF_LAMBDA { store(z + i, load(x + i) * load(ga + j) + load(be + j)); });
  }
  void backward(const Pass& t, float*) const override {
    const int64_t n = t.rows * frame.positions, ld = frame.ldz;
    double* total = (double*)t.scratch;
    float* room = t.scratch + 4 * ld;
    cf x = frame.lie(t.act[in[0]], t.rows, room), ga = gamma(t), d = t.grad[out];
    if (learns(t)) {
      double* const two[2] = {total, total + ld};
      memset(total, 0, 2 * ld * sizeof(double));
      column_totals<2>(n, ld, two, [=](int64_t m, int64_t j, vf* v) FF_LAMBDA {
        v[0] = load(d + m * ld + j);
        v[1] = v[0] * load(x + m * ld + j);
      });
    }
    if (want[0]) {
      const bool even = frame.even(), adds = even && add[0];
      float* below = even ? t.grad[in[0]] : room;
      each(n, [=](int64_t i, int64_t j) FF_LAMBDA {
        const vf v = load(d + i) * load(ga + j);
        store(below + i, adds ? load(below + i) + v : v);
      });
      if (!even) frame.hand_back(room, t.rows, t.grad[in[0]], add[0]);
    }
    if (learns(t)) learn(t, total + ld, total, ld);
  }
};

}  // namespace ff
