// The core without Python: reads a plan and what to fit from standard input, writes rows and losses. For processors that
// this machine only emulates. Floats and doubles travel as the whole numbers of their bits.
#include <cstdio>
#include <cstring>
#include <iostream>

#include "train.h"

using namespace ff;

static int64_t next() {
  int64_t n;
  if (!(std::cin >> n)) refuse("the input ends early");
  return n;
}
static float single() {
  const uint32_t bits = (uint32_t)next();
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
static double real() {
  const int64_t bits = next();
  double d;
  memcpy(&d, &bits, 8);
  return d;
}
template <class F>
static auto several(F one) {
  std::vector<decltype(one())> out((size_t)next());
  for (auto& each : out) each = one();
  return out;
}
static int small() { return (int)next(); }
static std::string word() {
  std::string s;
  std::cin >> s;
  return s;
}

struct Held {  // a column and its numbers
  std::vector<float> numbers;
  std::vector<int64_t> labels;
  Column column;
};

static Held held() {
  Held h;
  const bool labels = next();
  const int64_t rows = next(), width = next();
  if (labels)
    h.labels = several(next);
  else
    h.numbers = several(single);
  h.column = {nullptr, labels ? Kind::i64 : Kind::f32, rows, width};
  return h;
}

static Column seen(const Held& h) {
  Column c = h.column;
  c.data = c.kind == Kind::i64 ? (const void*)h.labels.data() : (const void*)h.numbers.data();
  return c;
}

int main() {
  const auto values = several([] { int h = small(), w = small(), c = small(), ld = small(); return Value{h, w, c, ld, next() != 0}; });
  const auto params = several([] { int64_t at = next(), size = next(); return Param{at, size, next() != 0}; });
  const auto specs = several([] {
    Spec s;
    s.kind = word(), s.in = several(small), s.out = small(), s.params = several(small), s.ints = several(next), s.floats = several(real);
    return s;
  });
  const auto inputs = several([] { int value = small(), kind = small(); return Input{value, kind, next() != 0}; });
  const std::string loss = word();
  const int output = small();
  const auto index = several(next);
  const auto constants = several(single);
  const int64_t size = next();
  const Plan plan(values, params, specs, inputs, loss, output, index, constants, size);

  const auto start = several(single);
  const auto columns = several(held);
  const Held y = held();
  const auto rows = several(next), begin = several(next), steps = several(next), per_epoch = several(next);
  Fit f{};
  f.n = (int64_t)steps.size(), f.start = start.data(), f.models = 1;
  const std::vector<int64_t> row(f.n, 0);
  std::vector<uint64_t> keys(f.n);
  for (int64_t i = 0; i < f.n; i++) keys[i] = 77 + i;
  for (const Held& h : columns) f.columns.push_back(seen(h));
  const Column targets = seen(y);
  f.row = row.data(), f.y = &targets, f.rows = rows.data(), f.begin = begin.data(), f.steps = steps.data(), f.per_epoch = per_epoch.data();
  f.batch = next(), f.keys = keys.data();
  f.settings.lr = real(), f.settings.momentum = real(), f.settings.adam = next();
  std::vector<float> out(f.n * size);
  std::vector<double> losses(f.n);
  f.out = out.data(), f.loss = losses.data(), f.threads = small();
  fit(plan, f);
  for (float x : out) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    printf("%u\n", bits);
  }
  for (double x : losses) printf("%.17g\n", x);
}
