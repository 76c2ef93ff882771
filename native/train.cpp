#include "train.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <numeric>
#include <thread>

#include "half.h"
#include "optimiser.h"

namespace ff {

static int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// Runs body(thread) on `threads` threads and hands on the first error; none lives on after the call
template <class F>
static void spread(int threads, F body) {
  std::exception_ptr error;
  std::mutex guard;
  auto safe = [&](int t) {
    try {
      body(t);
    } catch (...) {
      std::lock_guard<std::mutex> hold(guard);
      if (!error) error = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; t++) {
    try {
      others.emplace_back(safe, t);
    } catch (...) {  // fewer threads then
      break;
    }
  }
  safe(0);
  for (auto& t : others) t.join();
  if (error) std::rethrow_exception(error);
}

static void check_columns(const Plan& plan, const std::vector<Column>& columns, const Column* y, bool wanted) {
  must(columns.size() == plan.inputs.size(), "give a column for every input");
  for (size_t i = 0; i < columns.size(); i++) {
    const Value& v = plan.values[plan.inputs[i].value];
    must(columns[i].width == v.positions() * v.c, "a column has the wrong number of values an example");
    if (plan.inputs[i].kind == TOKENS) must(columns[i].kind != Kind::f32 && columns[i].kind != Kind::f64, "tokens are whole numbers");
  }
  if (!wanted) return;
  must(y != nullptr, "the loss has no targets");
  const Value& v = plan.values[plan.output];
  const bool labelled = plan.loss <= Loss::masked_cross_entropy;
  must(y->width == v.positions() * (labelled ? 1 : v.c), "the targets have the wrong number of values an example");
  must(!labelled || (y->kind != Kind::f32 && y->kind != Kind::f64), "labels are whole numbers");
}

static void check_rows(const std::vector<Column>& columns, const Column* y, const int64_t* rows, int64_t count) {
  int64_t have = y ? y->rows : columns[0].rows;
  for (const Column& c : columns) have = at_most(have, c.rows);
  uint64_t most = 0;
  for (int64_t i = 0; i < count; i++) most = std::max(most, (uint64_t)rows[i]);
  must(!count || most < (uint64_t)have, "a row is beyond the data");
}

namespace {

struct Trainer {
  const Plan& plan;
  const Fit& ask;
  const float *start, *mask;  // packed, shared by all
  bool fused;
  Arena arena;
  float *w, *first, *g = nullptr, *a = nullptr, *ref = nullptr, *m = nullptr, *s = nullptr;
  int64_t* total = nullptr;
  std::vector<float> flat;
  std::vector<uint32_t> half;
  Ahead ahead;

  Trainer(const Plan& p, const Fit& f, const float* shared, const float* masked, bool plain, int64_t rows)
      : plan(p), ask(f), start(shared), mask(masked), fused(plain), arena(p, rows, true) {
    const int64_t size = plan.packed_size;
    w = arena.block(size);
    first = shared ? nullptr : arena.block(size);
    if (!fused) {
      g = arena.block(size);
      if (ask.a) a = arena.block(size);
      if (ask.mu != 0 && ask.ref) ref = arena.block(size);
      if (ask.settings.moments() > 0) m = arena.block(size);
      if (ask.settings.moments() > 1) s = arena.block(size);
    }
    if (ask.settings.half) {
      int64_t most = 0;
      for (const auto& op : plan.ops) most = std::max(most, op->half((int)rows));
      half.resize(most + 16);
    }
    if (ask.fold) total = (int64_t*)arena.block(2 * size);
    if (ask.fold && ask.fold->clip > 0) flat.assign(plan.vector_size, 0);
  }

  // What client i begins from, packed
  const float* begin(int64_t i) {
    if (start) return start;
    plan.pack(ask.start + ask.row[i] * plan.vector_size, first);
    return first;
  }

  // `next`: the client that will probably come then, or -1
  template <class F>
  bool client(int64_t i, F next) {
    const float* from = begin(i);
    const int64_t size = ask.per_epoch[i], batch = ask.batch, count = ask.steps[i];
    double loss = 0;
    double before = 0;
    if (!fused) {
      memcpy(w, from, plan.packed_size * sizeof(float));
      before = prepare(i, from);
    } else if (!count) {
      memcpy(w, from, plan.packed_size * sizeof(float));
    }
    if (plan.loss == Loss::masked_cross_entropy) classes_of(i);
    const Drift drift{a, ask.mu != 0 ? (ref ? ref : from) : nullptr, mask, (float)ask.mu};
    int64_t at = ask.begin[i], left = size;
    for (int64_t k = 0; k < count; k++) {
      if (left == 0) left = size;
      const int64_t rows = at_most(batch, left);
      left -= rows;
      if (!arena.gather(ask.columns, ask.y, ask.rows + at, rows)) {
        arena.bad.place = i;
        return false;
      }
      at += rows;
      Pass t = arena.pass((int)rows, true);
      t.fused = fused;
      t.rate = (float)ask.settings.lr;
      t.key = ask.keys ? ask.keys[i] : 0;
      t.step = k;
      t.p = fused && k == 0 ? from : w;
      t.w = w;
      t.g = g;
      if (k + 1 < count)
        ahead = reads(ask.rows + at, at_most(batch, left ? left : size));
      else if (const int64_t then = next(); then >= 0 && ask.steps[then])
        ahead = reads(ask.rows + ask.begin[then], at_most(batch, ask.per_epoch[then]));
      t.ahead = &ahead;
      t.half = half.empty() ? nullptr : half.data();
      if (fused && k == 0)
        for (const Range& r : plan.untouched) memcpy(w + r.at, from + r.at, r.size * sizeof(float));
      arena.run_forward(t);
      const Measured found = arena.measured((int)rows, true);
      loss += found.counted > 0 ? found.sum / found.counted : 0.0;
      if (!fused) memset(g, 0, plan.packed_size * sizeof(float));
      arena.run_backward(t);
      if (!fused) advance(plan, ask.settings, drift, (float)ask.settings.lr, w, g, m, s, before + (double)(k + 1));
    }
    ask.loss[i] = count ? loss / (double)count : 0.0;
    finish(i, from, before + (double)count);
    return true;
  }

  // The widest column's rows of a batch
  Ahead reads(const int64_t* rows, int64_t count) const {
    const Column* most = &ask.columns[0];
    for (const Column& c : ask.columns)
      if (c.bytes() > most->bytes()) most = &c;
    return {(const char*)most->data, most->bytes(), rows, count, 0};
  }

  // The client's drift and moments, packed; gives the steps its optimiser has taken before
  double prepare(int64_t i, const float*) {
    if (a) plan.pack_trained(ask.a + i * ask.a_stride, a);
    if (ref) plan.pack_trained(ask.ref + ask.ref_row[i] * plan.vector_size, ref);
    const int64_t slots = ask.settings.moments() * plan.vector_size + (ask.settings.moments() == 2);
    const float* kept = ask.moments ? ask.moments + i * slots : nullptr;
    int64_t at = 0;
    for (float* one : {m, s})
      if (one) {
        if (kept)
          plan.pack_trained(kept + at * plan.vector_size, one);
        else
          memset(one, 0, plan.packed_size * sizeof(float));
        at++;
      }
    return kept && s ? (double)kept[slots - 1] : 0.0;
  }

  void finish(int64_t i, const float* from, double taken) {
    if (ask.moments && m) {
      const int64_t slots = ask.settings.moments() * plan.vector_size + (ask.settings.moments() == 2);
      float* kept = ask.moments + i * slots;
      plan.unpack(m, kept);
      if (s) {
        plan.unpack(s, kept + plan.vector_size);
        kept[slots - 1] = (float)taken;
      }
    }
    if (ask.out) plan.unpack(w, ask.out + i * plan.vector_size);
    if (ask.fold) {
      const double shrunk = ask.fold->clip > 0 ? shrinking(plan, ask.fold->clip, w, from, flat.data()) : 1.0;
      ask.fold->refused[i] = !std::isfinite(ask.loss[i]) || !fold_in(plan, *ask.fold, ask.fold->weights[i], w, from, shrunk, total);
    }
  }

  void classes_of(int64_t i) {
    const Value& v = plan.values[plan.output];
    arena.absent.assign(v.c, 1);
    for (int64_t r = ask.begin[i]; r < ask.begin[i + 1]; r++)
      for (int64_t k = 0; k < v.positions(); k++) {
        const int64_t y = integer(*ask.y, ask.rows[r] * v.positions() + k);
        if (y >= 0 && y < v.c) arena.absent[y] = 0;
      }
  }
};

}  // namespace

bool half_here() { return has_half(); }

Bad fit(const Plan& plan, const Fit& ask) {
  must(!ask.settings.half || has_half(), "this processor or build has no products of bfloat16");
  check_columns(plan, ask.columns, ask.y, true);
  must(ask.batch >= 1 && ask.batch < int64_t(1) << 31, "a batch has a row, and not too many");
  int64_t most = 0;
  std::vector<int64_t> order(ask.n), work(ask.n);
  must(ask.begin[0] >= 0, "the plan of batches begins before the rows");
  for (int64_t i = 0; i < ask.n; i++) {
    const int64_t size = ask.per_epoch[i], steps = ask.steps[i];
    must(ask.row[i] >= 0 && ask.row[i] < ask.models, "a client has no model");
    must(size >= 0 && steps >= 0 && (size > 0 || steps == 0) && size < (int64_t(1) << 31) && steps < (int64_t(1) << 31), "a client's steps need examples");
    const int64_t per = size ? (size + ask.batch - 1) / ask.batch : 1;
    const int64_t taken = steps / per * size + at_most(steps % per * ask.batch, size);
    must(ask.begin[i + 1] - ask.begin[i] >= taken, "a client has fewer rows than its steps take");
    most = std::max(most, at_most(ask.batch, size));
    work[i] = taken;
  }
  must(most < (int64_t(1) << 24), "a batch is too large");
  for (const Value& v : plan.values) must(most * v.positions() < (int64_t(1) << 31), "a batch has too many positions");
  check_rows(ask.columns, ask.y, ask.rows + ask.begin[0], ask.begin[ask.n] - ask.begin[0]);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) { return work[x] > work[y]; });

  const Settings& set = ask.settings;
  const bool fused = plan.may_fuse && !set.moments() && set.weight_decay == 0 && set.clip_norm == 0 && ask.mu == 0 && !ask.a && !ask.mask;
  Blocks shared;
  float *start = nullptr, *mask = nullptr;
  if (ask.models == 1) plan.pack(ask.start, start = shared.block(plan.packed_size));
  if (ask.mask) plan.pack_trained(ask.mask, mask = shared.block(plan.packed_size));
  std::atomic<int64_t> next(0);
  std::atomic<bool> stop(false);
  std::mutex guard;
  Bad bad;
  const int threads = (int)std::max<int64_t>(1, at_most(ask.threads, ask.n));
  spread(threads, [&](int) {
    Trainer one(plan, ask, start, mask, fused, most);
    for (int64_t c; !stop && (c = next++) < ask.n;)
      if (!one.client(order[c], [&] { const int64_t then = next; return then < ask.n ? order[then] : -1; })) {
        stop = true;
        std::lock_guard<std::mutex> hold(guard);
        if (bad.place < 0) bad = one.arena.bad;
      }
    if (ask.fold) {
      std::lock_guard<std::mutex> hold(guard);
      for (int64_t i = 0; i < plan.packed_size; i++)
        if (plan.index[i] >= 0) ask.fold->total[plan.index[i]] = (int64_t)((uint64_t)ask.fold->total[plan.index[i]] + (uint64_t)one.total[i]);
    }
  });
  return bad;
}

constexpr int64_t MEASURED_FLOATS = 1 << 18;  // activations of the rows measured at a time

static int64_t rows_measured(const Plan& plan) {
  for (const auto& op : plan.ops)
    if (op->across()) return 256;  // as many as torch's way measures together
  int64_t floats = 1;
  for (const Value& v : plan.values) floats += v.size();
  return std::max<int64_t>(8, at_most(128, MEASURED_FLOATS / floats));
}

Bad evaluate(const Plan& plan, const Evaluate& ask) {
  check_columns(plan, ask.columns, ask.y, true);
  must(ask.offsets[0] >= 0, "the rows begin before the first");
  for (int64_t i = 0; i < ask.n; i++) {
    must(ask.row[i] >= 0 && ask.row[i] < ask.count, "a client has no model");
    must(ask.offsets[i + 1] >= ask.offsets[i], "a client has fewer rows than none");
  }
  check_rows(ask.columns, ask.y, ask.rows + ask.offsets[0], ask.offsets[ask.n] - ask.offsets[0]);
  const int64_t width = rows_measured(plan);
  struct Part {
    int64_t client, at, rows;
    Measured found;
  };
  std::vector<Part> parts;
  for (int64_t i = 0; i < ask.n; i++)
    for (int64_t at = ask.offsets[i]; at < ask.offsets[i + 1]; at += width) parts.push_back({i, at, at_most(width, ask.offsets[i + 1] - at), {}});
  Blocks blocks;
  float* shared = nullptr;
  if (ask.count == 1) plan.pack(ask.models, shared = blocks.block(plan.packed_size));
  std::atomic<int64_t> next(0);
  std::atomic<bool> stop(false);
  std::mutex guard;
  Bad bad;
  spread((int)std::max<int64_t>(1, at_most(ask.threads, (int64_t)parts.size())), [&](int) {
    Arena arena(plan, width, false);
    float* own = ask.count == 1 ? nullptr : arena.block(plan.packed_size);
    int64_t held = -1;
    for (int64_t k; !stop && (k = next++) < (int64_t)parts.size();) {
      Part& part = parts[k];
      if (!arena.gather(ask.columns, ask.y, ask.rows + part.at, part.rows)) {
        stop = true;
        std::lock_guard<std::mutex> hold(guard);
        bad = arena.bad;
        bad.place = part.client;
        return;
      }
      if (own && held != ask.row[part.client]) plan.pack(ask.models + (held = ask.row[part.client]) * plan.vector_size, own);
      Pass t = arena.pass((int)part.rows, false);
      t.p = own ? own : shared;
      arena.run_forward(t);
      part.found = arena.measured((int)part.rows, false);
    }
  });
  for (int64_t i = 0; i < ask.n; i++) ask.loss[i] = ask.right[i] = ask.counted[i] = 0;
  for (const Part& part : parts) {
    ask.loss[part.client] += part.found.sum;
    ask.right[part.client] += part.found.right;
    ask.counted[part.client] += part.found.counted;
  }
  return bad;
}

double gradient(const Plan& plan, const float* vector, const std::vector<Column>& columns, const Column* y,
                const int64_t* rows, int64_t count, uint64_t key, int64_t step, float* grad) {
  check_columns(plan, columns, y, true);
  check_rows(columns, y, rows, count);
  must(count >= 1 && count < (int64_t(1) << 24), "a batch has rows");
  Arena arena(plan, count, true);
  float *p = arena.block(plan.packed_size), *g = arena.block(plan.packed_size);
  plan.pack(vector, p);
  must(arena.gather(columns, y, rows, count), "a label or token is out of range");
  Pass t = arena.pass((int)count, true);
  t.key = key;
  t.step = step;
  t.p = t.w = p;
  t.g = g;
  arena.run_forward(t);
  const Measured found = arena.measured((int)count, true);
  arena.run_backward(t);
  if (grad) plan.unpack(g, grad);
  return found.counted > 0 ? found.sum / found.counted : 0.0;
}

void forward(const Plan& plan, const float* vector, const std::vector<Column>& columns, const int64_t* rows,
             int64_t count, bool train, float* out) {
  check_columns(plan, columns, nullptr, false);
  check_rows(columns, nullptr, rows, count);
  must(count >= 1 && count < (int64_t(1) << 24), "a batch has rows");
  Arena arena(plan, count, false);
  float* p = arena.block(plan.packed_size);
  plan.pack(vector, p);
  must(arena.gather(columns, nullptr, rows, count), "a token is out of range");
  Pass t = arena.pass((int)count, train);
  t.p = p;
  arena.run_forward(t);
  const Value& v = plan.values[plan.output];
  for (int64_t r = 0; r < count * v.positions(); r++) memcpy(out + r * v.c, arena.act[plan.output] + r * v.ld, v.c * sizeof(float));
}

}  // namespace ff
