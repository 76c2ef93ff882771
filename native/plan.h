// A plan: the values, parameters and ops of a model, checked once, and constant from then on.
// Here: what a plan holds, its checks, packing. Not here: running it (train.h). Invariant: after `Plan` is made, no use of
// it can read or write outside the buffers sized by it, whatever it was made from.
#pragma once
#include "op.h"

namespace ff {

enum class Loss { cross_entropy, masked_cross_entropy, mse, bce, l1 };
enum Input_kind { NUMBERS = 0, UNIT = 1, TOKENS = 2 };

struct Input {
  int value, kind;
  bool channels_first;
};
struct Range {
  int64_t at, size;
};

struct Plan {
  std::vector<Value> values;
  std::vector<Param> params;
  std::vector<std::unique_ptr<Op>> ops;
  std::vector<char> back;       // by op: whether backward is called
  std::vector<char> flows;      // by value: whether it has a gradient
  std::vector<Input> inputs;
  Loss loss;
  int output;
  std::vector<int64_t> index;   // by packed place: >= 0 place in the vector, -1 nothing, else constants[-2 - index]
  std::vector<float> constants;
  int64_t vector_size, packed_size;
  bool may_fuse;                // no parameter is read by two ops
  std::vector<char> in_place;   // by input: may be read where the data lie
  std::vector<int64_t> vocabulary;  // by value: tokens are below it
  std::vector<Range> trained;   // of the packed vector, merged
  std::vector<Range> untouched; // parameters that no backward updates: copied at a client's first step

  Plan(std::vector<Value> values, std::vector<Param> params, const std::vector<Spec>& specs, std::vector<Input> inputs,
       const std::string& loss, int output, std::vector<int64_t> index, std::vector<float> constants, int64_t vector_size);

  Plan(const Plan&) = delete;

  void pack(const float* vector, float* packed) const {
    for (int64_t i = 0; i < packed_size; i++) {
      const int64_t from = index[i];
      packed[i] = from >= 0 ? vector[from] : from == -1 ? 0.f : constants[-2 - from];
    }
  }
  template <class T>
  void pack_trained(const T* vector, float* packed) const {  // gradients, masks, moments: 0 where nothing is trained
    for (int64_t i = 0; i < packed_size; i++) packed[i] = index[i] >= 0 ? (float)vector[index[i]] : 0.f;
  }
  template <class From, class To>
  void unpack(const From* packed, To* vector) const {
    for (int64_t i = 0; i < packed_size; i++)
      if (index[i] >= 0) vector[index[i]] = packed[i];
  }
};

}  // namespace ff
