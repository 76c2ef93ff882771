// Embeddings, one position of a sequence, and a picture or sequence laid out as one vector.
// Invariant: tokens are in range when an op sees them (arena.h refuses others before anything is computed).
#pragma once
#include "op.h"

namespace ff {

struct Embedding final : Op {
  int64_t positions, count;  // tokens an example; rows of the table
  int ld, padding;           // the token without a gradient, or -1

  static std::unique_ptr<Op> make(const Spec& s, const Shapes& at) {
    takes(s, 1, 1, 1);
    auto op = std::make_unique<Embedding>();
    const Value &x = at.values[s.in[0]], &z = at.values[s.out];
    must(x.tokens && x.ld == 1 && !z.tokens, "embedding: takes tokens, gives numbers");
    must(x.h == z.h && x.w == z.w && z.ld >= PAD && z.ld % PAD == 0, "embedding: the output has the wrong shape");
    op->positions = x.positions();
    op->ld = z.ld;
    op->count = at.params[s.params[0]].size / z.ld;
    must(op->count >= 1, "embedding: the table has rows");
    sized(at, s, 0, op->count * z.ld);
    op->padding = (int)whole(s, 0, -1, op->count - 1);
    return op;
  }

  void forward(const Pass& t, float*) const override {
    const int32_t* tokens = (const int32_t*)t.act[in[0]];
    cf table = t.at(params[0]);
    for (int64_t i = 0; i < t.rows * positions; i++) memcpy(t.act[out] + i * ld, table + (int64_t)tokens[i] * ld, ld * sizeof(float));
  }

  void backward(const Pass& t, float*) const override {
    if (!t.trained(params[0])) return;
    const int32_t* tokens = (const int32_t*)t.act[in[0]];
    const auto g = t.target(params[0]);
    if (g.out != g.in) memcpy(g.out, g.in, count * ld * sizeof(float));
    for (int64_t i = 0; i < t.rows * positions; i++) {
      if (tokens[i] == padding) continue;
      float* row = g.out + (int64_t)tokens[i] * ld;
      cf d = t.grad[out] + i * ld;
      for (int j = 0; j < ld; j += VL) store(row + j, load(row + j) + g.scale * load(d + j));
    }
  }
};

struct Select final : Op {
  int64_t positions, position;
  int c, ldx, ldz;

  static std::unique_ptr<Op> make(const Spec& s, const Shapes& at) {
    takes(s, 1, 0, 0);
    auto op = std::make_unique<Select>();
    const Value &x = at.values[s.in[0]], &z = at.values[s.out];
    must(!x.tokens && !z.tokens, "select: takes and gives numbers");
    must(z.positions() == 1 && z.c == x.c && z.ld % PAD == 0, "select: the output has the wrong shape");
    op->positions = x.positions();
    op->position = whole(s, 0, -op->positions, op->positions - 1);
    if (op->position < 0) op->position += op->positions;
    op->c = x.c, op->ldx = x.ld, op->ldz = z.ld;
    return op;
  }

  void forward(const Pass& t, float*) const override {
    for (int64_t b = 0; b < t.rows; b++) {
      float* z = t.act[out] + b * ldz;
      memcpy(z, t.act[in[0]] + (b * positions + position) * ldx, c * sizeof(float));
      memset(z + c, 0, (ldz - c) * sizeof(float));
    }
  }

  void backward(const Pass& t, float*) const override {
    if (!want[0]) return;
    float* below = t.grad[in[0]];
    if (!add[0]) memset(below, 0, t.rows * positions * ldx * sizeof(float));
    for (int64_t b = 0; b < t.rows; b++) {
      float* d = below + (b * positions + position) * ldx;
      for (int j = 0; j < c; j++) d[j] += t.grad[out][b * ldz + j];
    }
  }
};

struct Flatten final : Op {
  int64_t positions, ldz;
  int c, ldx;

  static std::unique_ptr<Op> make(const Spec& s, const Shapes& at) {
    takes(s, 1, 0, 0);
    auto op = std::make_unique<Flatten>();
    const Value &x = at.values[s.in[0]], &z = at.values[s.out];
    must(!x.tokens && !z.tokens, "flatten: takes and gives numbers");
    op->positions = x.positions();
    op->c = x.c, op->ldx = x.ld, op->ldz = z.ld;
    must(z.positions() == 1 && z.c == op->positions * x.c && z.ld % PAD == 0, "flatten: the output has the wrong shape");
    return op;
  }

  void forward(const Pass& t, float*) const override {
    const int64_t n = positions * c;
    for (int64_t b = 0; b < t.rows; b++) {
      float* z = t.act[out] + b * ldz;
      cf x = t.act[in[0]] + b * positions * ldx;
      for (int64_t k = 0; k < positions; k++) memcpy(z + k * c, x + k * ldx, c * sizeof(float));
      memset(z + n, 0, (ldz - n) * sizeof(float));
    }
  }

  void backward(const Pass& t, float*) const override {
    if (!want[0]) return;
    for (int64_t b = 0; b < t.rows; b++) {
      float* below = t.grad[in[0]] + b * positions * ldx;
      cf d = t.grad[out] + b * ldz;
      for (int64_t k = 0; k < positions; k++) {
        float* to = below + k * ldx;
        if (add[0])
          for (int j = 0; j < c; j++) to[j] += d[k * c + j];
        else {
          memcpy(to, d + k * c, c * sizeof(float));
          memset(to + c, 0, (ldx - c) * sizeof(float));
        }
      }
    }
  }
};

}  // namespace ff
