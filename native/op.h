// What an op of a plan is: forward and backward on one client's batch, over buffers that the trainer owns.
// Here: values, parameters, the state of a pass, the interface. Not here: any op (ops_*.h), who calls them (train.h).
// Invariant: an op is constant while it is used, so that all threads share it; all that changes is in the Pass. Padded
// lanes (c..ld) of activations and of gradients are 0.
#pragma once
#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "gemm.h"

namespace ff {

[[noreturn]] inline void refuse(const std::string& said) { throw std::invalid_argument(said); }
inline void must(bool holds, const char* said) {
  if (!holds) refuse(said);
}

struct Value {
  int h, w, c, ld;  // h * w positions of c channels, ld floats apart (a sequence: h steps, w = 1)
  bool tokens;
  int64_t positions() const { return (int64_t)h * w; }
  int64_t size() const { return positions() * ld; }  // floats an example
};

struct Param {
  int64_t at, size;  // in the packed vector
  bool trained;
};

// One batch of one client. `p` is read. Fused: an op writes w = p - rate * gradient over the whole of each of its trained
// parameters (w may be p; read all of p that the input's gradient needs first). Otherwise it adds the gradient to g.
struct Pass {
  int rows;              // examples in the batch
  bool train, fused;
  float rate;
  uint64_t key;          // of the client
  int64_t step;          // from 0
  const float* p;
  float* w;
  float* g;
  float* const* act;     // by value
  float* const* grad;    // by value; null where no gradient is wanted
  float* scratch;        // of at least Op::scratch(rows) floats, aligned; anyone's between calls
  const Param* params;
  Ahead* ahead;          // what the next batch will read, or null
  uint32_t* half;        // room of Op::half(rows) numbers where products are to round to bfloat16, else null

  const float* at(int param) const { return p + params[param].at; }
  bool trained(int param) const { return params[param].trained; }
  // Where the gradient of `param` goes: out = in + scale * gradient.
  struct Target {
    const float* in;
    float scale;
    float* out;
  };
  Target target(int param) const {
    const int64_t at = params[param].at;
    return fused ? Target{p + at, -rate, w + at} : Target{g + at, 1.f, g + at};
  }
};

struct Op {
  std::vector<int> in, params;
  int out = 0;
  std::vector<char> want;  // per input: whether its gradient is needed
  std::vector<char> add;   // per input: the gradient is added to what another reader wrote
  virtual ~Op() = default;
  virtual int64_t scratch(int rows) const { return rows * 0; }  // floats, free after each call
  virtual int64_t kept(int rows) const { return rows * 0; }     // floats kept from forward to backward
  virtual bool across() const { return false; }                 // whether an example's numbers depend on the batch
  virtual int64_t half(int rows) const { return rows * 0; }     // numbers of room for products of bfloat16
  virtual bool in_place() const { return false; }               // whether no number beside an input's own is read: no padding
  virtual void forward(const Pass& pass, float* kept) const = 0;
  virtual void backward(const Pass& pass, float* kept) const = 0;
};

// What an op is made of, as the plan tells it; a maker checks all of it against the values and parameters, or refuses.
struct Spec {
  std::string kind;
  std::vector<int> in, params;
  int out;
  std::vector<int64_t> ints;
  std::vector<double> floats;
};
struct Shapes {
  const std::vector<Value>& values;
  const std::vector<Param>& params;
};

inline int64_t whole(const Spec& s, size_t i, int64_t low, int64_t high) {  // ints[i], in low..high
  if (i >= s.ints.size() || s.ints[i] < low || s.ints[i] > high) refuse("op " + s.kind + ": number " + std::to_string(i) + " is missing or out of range");
  return s.ints[i];
}
inline void takes(const Spec& s, size_t ins, size_t least_params, size_t most_params) {
  if (s.in.size() != ins || s.params.size() < least_params || s.params.size() > most_params) refuse("op " + s.kind + ": wrong number of inputs or parameters");
}
inline void sized(const Shapes& at, const Spec& s, size_t param, int64_t size) {
  if (at.params[s.params[param]].size != size) refuse("op " + s.kind + ": parameter " + std::to_string(param) + " has the wrong size");
}

// d = 0 where h is not above 0: the gradient of a ReLU whose output h is
static inline void through_relu(cf h, float* d, int64_t n) {  // n a multiple of PAD
  for (int64_t i = 0; i < n; i += VL) store(d + i, pick(load(h + i) > zero(), load(d + i), zero()));
}
[[maybe_unused]] static inline void add_to(float* out, cf in, int64_t n) {
  for (int64_t i = 0; i < n; i += VL) store(out + i, load(out + i) + load(in + i));
}

typedef std::unique_ptr<Op> (*Maker)(const Spec&, const Shapes&);
Maker maker(const std::string& kind);  // null if there is no such op; in plan.cpp

}  // namespace ff
