// The memory of one thread: activations, gradients, what ops keep, weights, moments, targets; and one batch through a plan.
// Invariant: sizes come from the plan and the largest batch; nothing is allocated after it is made.
#pragma once
#include "memory.h"
#include "ops_loss.h"
#include "train.h"

namespace ff {

static inline float number(const Column& c, int64_t at) {
  switch (c.kind) {
    case Kind::f32: return ((const float*)c.data)[at];
    case Kind::f64: return (float)((const double*)c.data)[at];
    case Kind::u8: case Kind::b: return ((const uint8_t*)c.data)[at];
    case Kind::i8: return ((const int8_t*)c.data)[at];
    case Kind::i16: return ((const int16_t*)c.data)[at];
    case Kind::u16: return ((const uint16_t*)c.data)[at];
    case Kind::i32: return (float)((const int32_t*)c.data)[at];
    case Kind::u32: return (float)((const uint32_t*)c.data)[at];
    case Kind::i64: return (float)((const int64_t*)c.data)[at];
  }
  return 0;
}
static inline int64_t integer(const Column& c, int64_t at) {
  switch (c.kind) {
    case Kind::u8: case Kind::b: return ((const uint8_t*)c.data)[at];
    case Kind::i8: return ((const int8_t*)c.data)[at];
    case Kind::i16: return ((const int16_t*)c.data)[at];
    case Kind::u16: return ((const uint16_t*)c.data)[at];
    case Kind::i32: return ((const int32_t*)c.data)[at];
    case Kind::u32: return ((const uint32_t*)c.data)[at];
    case Kind::i64: return ((const int64_t*)c.data)[at];
    default: return -1;
  }
}

struct Arena {
  const Plan& plan;
  int64_t most;  // rows of the largest batch
  Blocks blocks;
  std::vector<float*> act, grad, kept;
  std::vector<float*> own;  // by value: the memory of `act`, which may point at data where it lies
  float* scratch;
  std::vector<int64_t> labels;
  std::vector<float> numbers;
  std::vector<char> absent;
  Bad bad;

  Arena(const Plan& p, int64_t rows, bool learn) : plan(p), most(rows) {
    int64_t need = 0;
    for (const Value& v : plan.values) act.push_back(block(rows * padded64(v.size())));
    own = act;
    for (size_t i = 0; i < plan.values.size(); i++)
      grad.push_back(!learn || !plan.flows[i] ? nullptr : block(rows * padded64(plan.values[i].size())));
    for (const auto& op : plan.ops) {
      kept.push_back(block(op->kept((int)rows)));
      need = std::max(need, op->scratch((int)rows));
    }
    scratch = block(need);
    const Value& v = plan.values[plan.output];
    if (plan.loss <= Loss::masked_cross_entropy)
      labels.resize(rows * v.positions());
    else
      numbers.resize(rows * v.positions() * v.c);
  }
  float* block(int64_t floats) { return blocks.block(floats); }

  // Copies `count` rows of the columns and targets into place; false where a token or label does not fit (`bad` says)
  bool gather(const std::vector<Column>& columns, const Column* y, const int64_t* rows, int64_t count) {
    for (size_t i = 0; i < plan.inputs.size(); i++)
      if (!take(columns[i], (int)i, rows, count)) return false;
    if (!y) return true;
    const Value& v = plan.values[plan.output];
    const int64_t width = y->width;
    for (int64_t r = 0; r < count; r++)
      for (int64_t k = 0; k < width; k++) {
        const int64_t at = rows[r] * width + k;
        if (plan.loss > Loss::masked_cross_entropy) {
          numbers[r * width + k] = number(*y, at);
          continue;
        }
        const int64_t label = integer(*y, at);
        if ((label < 0 || label >= v.c) && label != LEFT_OUT) {
          bad = Bad{0, label, -1};
          return false;
        }
        labels[r * width + k] = label;
      }
    return true;
  }

  bool take(const Column& c, int number_of, const int64_t* rows, int64_t count) {
    const Input& i = plan.inputs[number_of];
    const Value& v = plan.values[i.value];
    float* to = act[i.value] = own[i.value];
    const int64_t width = c.width, positions = v.positions();
    if (i.kind == TOKENS) {
      for (int64_t r = 0; r < count; r++)
        for (int64_t k = 0; k < width; k++) {
          const int64_t token = integer(c, rows[r] * width + k);
          if (token < 0 || token >= plan.vocabulary[i.value]) {
            bad = Bad{0, token, number_of};
            return false;
          }
          ((int32_t*)to)[r * width + k] = (int32_t)token;
        }
      return true;
    }
    const bool turn = i.channels_first && v.c > 1 && positions > 1;
    if (c.kind == Kind::f32 && !turn && i.kind == NUMBERS) {
      const float* from = (const float*)c.data;
      bool together = plan.in_place[number_of];
      for (int64_t r = 1; together && r < count; r++) together = rows[r] == rows[0] + r;
      if (together) {
        act[i.value] = const_cast<float*>(from + rows[0] * width);  // nobody writes an input
        return true;
      }
      for (int64_t r = 0; r < count; r++) memcpy(to + r * width, from + rows[r] * width, width * sizeof(float));
      return true;
    }
    const float share = i.kind == UNIT ? 255.f : 1.f;
    for (int64_t r = 0; r < count; r++, to += width) {
      const int64_t from = rows[r] * width;
      if (!turn)
        for (int64_t k = 0; k < width; k++) to[k] = number(c, from + k) / share;
      else
        for (int64_t ch = 0; ch < v.c; ch++)
          for (int64_t k = 0; k < positions; k++) to[k * v.c + ch] = number(c, from + ch * positions + k) / share;
    }
    return true;
  }

  Targets targets() const { return {labels.data(), numbers.data(), absent.empty() ? nullptr : absent.data()}; }

  void run_forward(Pass& pass) {
    for (size_t i = 0; i < plan.ops.size(); i++) plan.ops[i]->forward(pass, kept[i]);
  }
  void run_backward(Pass& pass) {
    for (size_t i = plan.ops.size(); i-- > 0;)
      if (plan.back[i]) plan.ops[i]->backward(pass, kept[i]);
  }
  // Measures the outputs of `rows` rows; with `learn` their gradient is left where it belongs, else they are spent
  Measured measured(int rows, bool learn) {
    const Value& v = plan.values[plan.output];
    float* z = act[plan.output];
    if (learn && grad[plan.output]) {
      memcpy(grad[plan.output], z, rows * v.size() * sizeof(float));
      z = grad[plan.output];
    }
    return measure(plan.loss, z, targets(), rows, v, learn);
  }
  Pass pass(int rows, bool train) {
    Pass t{};
    t.rows = rows;
    t.train = train;
    t.act = act.data();
    t.grad = grad.data();
    t.scratch = scratch;
    t.params = plan.params.data();
    return t;
  }
};

}  // namespace ff
