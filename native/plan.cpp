#include "plan.h"

#include <algorithm>

#include "fusion.h"
#include "ops_attention.h"
#include "ops_bends.h"
#include "ops_channels.h"
#include "ops_embed.h"
#include "ops_linear.h"
#include "ops_norm.h"
#include "ops_pointwise.h"
#include "ops_recurrent.h"

namespace ff {

constexpr int64_t MOST = int64_t(1) << 31;  // floats of a value, a parameter set: sizes stay far from overflow

Maker maker(const std::string& kind) {
  static const std::pair<const char*, Maker> table[] = {
      {"linear", Linear::make},
      {"relu", Pointwise<Relu>::make}, {"tanh", Pointwise<Tanh>::make}, {"sigmoid", Pointwise<Sigmoid>::make},
      {"gelu", Pointwise<Gelu>::make}, {"gelu_tanh", Pointwise<GeluTanh>::make}, {"silu", Pointwise<Silu>::make},
      {"leaky_relu", Pointwise<LeakyRelu>::make}, {"hardtanh", Pointwise<Hardtanh>::make}, {"clamp", Pointwise<Clamp>::make},
      {"hardsigmoid", Pointwise<Hardsigmoid>::make}, {"hardswish", Pointwise<Hardswish>::make}, {"elu", Pointwise<Elu>::make},
      {"softplus", Pointwise<Softplus>::make}, {"mul_channels", Spread<true>::make}, {"add_channels", Spread<false>::make},
      {"concat", Concat::make}, {"channels", Channels::make}, {"add", Add::make}, {"mul", Mul::make}, {"dropout", Dropout::make},
      {"group_norm", Group_norm<Straight>::make}, {"batch_norm", Group_norm<Straight>::make},
      {"group_norm_relu", Group_norm<Relu>::make}, {"batch_norm_relu", Group_norm<Relu>::make},
      {"group_norm_hardtanh", Group_norm<Hardtanh>::make}, {"batch_norm_hardtanh", Group_norm<Hardtanh>::make},
      {"group_norm_hardswish", Group_norm<Hardswish>::make}, {"batch_norm_hardswish", Group_norm<Hardswish>::make}, {"layer_norm", Layer_norm::make}, {"affine", Affine::make},
      {"conv2d", Conv2d::make}, {"conv2d_max_pool", ConvMaxPool::make}, {"max_pool", MaxPool::make}, {"avg_pool", AvgPool::make},
      {"adaptive_avg_pool", AdaptiveAvgPool::make}, {"mean_positions", MeanPositions::make},
      {"lstm", Lstm::make}, {"gru", Gru::make}, {"embedding", Embedding::make}, {"select", Select::make}, {"flatten", Flatten::make},
      {"attention", Attention::make}, {"offset", Offset::make},
  };
  for (const auto& [name, make] : table)
    if (kind == name) return make;
  return nullptr;
}

static Loss loss_of(const std::string& name) {
  if (name == "cross_entropy") return Loss::cross_entropy;
  if (name == "masked_cross_entropy") return Loss::masked_cross_entropy;
  if (name == "mse") return Loss::mse;
  if (name == "bce") return Loss::bce;
  if (name == "l1") return Loss::l1;
  refuse("there is no loss " + name);
}

static void check_values(const std::vector<Value>& values) {
  must(!values.empty() && values.size() < 65536, "a plan has values");
  for (const Value& v : values) {
    must(v.h >= 1 && v.w >= 1 && v.c >= 1 && v.ld >= v.c && v.h < (1 << 20) && v.w < (1 << 20) && v.ld < (1 << 24), "a value has no such shape");
    must(v.positions() < MOST && v.positions() * v.ld < MOST, "a value is too large");
    must(!v.tokens || (v.c == 1 && v.ld == 1), "tokens are one number a position");
  }
}

static std::vector<Range> merged(const std::vector<Range>& some) {
  std::vector<Range> out;
  for (const Range& r : some)
    if (!out.empty() && out.back().at + out.back().size == r.at)
      out.back().size += r.size;
    else
      out.push_back(r);
  return out;
}

Plan::Plan(std::vector<Value> values_, std::vector<Param> params_, const std::vector<Spec>& told,
           std::vector<Input> inputs_, const std::string& loss_, int output_, std::vector<int64_t> index_,
           std::vector<float> constants_, int64_t vector_size_)
    : values(std::move(values_)), params(std::move(params_)), inputs(std::move(inputs_)), loss(loss_of(loss_)),
      output(output_), index(std::move(index_)), constants(std::move(constants_)), vector_size(vector_size_),
      packed_size((int64_t)index.size()) {
  check_values(values);
  const int n = (int)values.size();
  must(packed_size < MOST && packed_size % PAD == 0, "the packed vector has no such size");
  must(vector_size >= 0 && vector_size <= packed_size, "the vector has no such size");
  int64_t before = 0;
  for (const Param& p : params) {
    must(p.at == before && p.size >= PAD && p.size % PAD == 0 && p.size <= packed_size - p.at, "parameters lie one behind the other, in multiples of 16");
    before = p.at + p.size;
  }
  must(before == packed_size, "parameters fill the packed vector");
  std::vector<char> seen(vector_size, 0);
  for (const Param& p : params)
    for (int64_t i = p.at; i < p.at + p.size; i++) {
      const int64_t from = index[i];
      must(from < vector_size && from >= -1 - (int64_t)constants.size(), "an index is out of range");
      must(from < 0 || p.trained, "a parameter that is not trained is in the vector");
      must(from >= -1 || !p.trained, "a trained parameter is a constant");
      if (from >= 0) {
        must(!seen[from], "a place of the vector occurs twice");
        seen[from] = 1;
      }
    }
  for (char one : seen) must(one, "a place of the vector does not occur");

  std::vector<char> known(n, 0), needs(n, 0), used(params.size(), 0);
  must(!inputs.empty(), "a plan has inputs");
  for (const Input& i : inputs) {
    must(i.value >= 0 && i.value < n && !known[i.value], "an input is no value");
    must(i.kind >= 0 && i.kind <= 2, "an input has no such kind");
    const Value& v = values[i.value];
    must(v.tokens == (i.kind == TOKENS) && v.ld == v.c, "an input's value is dense, and of its kind");
    known[i.value] = 1;
  }
  may_fuse = true;
  vocabulary.assign(n, INT32_MAX);
  std::vector<int> given;
  for (const Input& i : inputs) given.push_back(i.value);
  const std::vector<Spec> specs = joined(told, values, params, given, output);
  const Shapes shapes{values, params};
  must(!specs.empty() && specs.size() < 65536, "a plan has ops");
  for (const Spec& s : specs) {
    const Maker make = maker(s.kind);
    if (!make) refuse("there is no op " + s.kind);
    for (int i : s.in) must(i >= 0 && i < n && known[i], "an op reads a value that is not there yet");
    must(s.out >= 0 && s.out < n && !known[s.out], "an op writes a value twice, or none");
    must(values[s.out].ld % PAD == 0 && !values[s.out].tokens, "an op's output is filled to 16 lanes");
    for (int i : s.params) {
      must(i >= 0 && i < (int)params.size(), "an op has no such parameter");
      if (used[i]) may_fuse = false;
      used[i] = 1;
    }
    for (int i : s.in) must(!values[i].tokens || s.kind == "embedding", "only an embedding takes tokens");
    for (double f : s.floats) must(f == f, "an op has a number that is none");
    auto op = make(s, shapes);
    if (s.kind == "embedding") vocabulary[s.in[0]] = std::min(vocabulary[s.in[0]], params[s.params[0]].size / values[s.out].ld);
    op->in = s.in;
    op->params = s.params;
    op->out = s.out;
    for (int i : s.in) {
      op->want.push_back(needs[i]);
      needs[s.out] |= needs[i];
    }
    for (int i : s.params) needs[s.out] |= params[i].trained;
    known[s.out] = 1;
    ops.push_back(std::move(op));
  }
  must(output >= 0 && output < n && known[output] && values[output].ld % PAD == 0 && !values[output].tokens, "the output is not there");
  for (const Input& i : inputs) {
    bool may = i.value != output;
    for (const auto& op : ops) may = may && (op->in_place() || std::find(op->in.begin(), op->in.end(), i.value) == op->in.end());
    in_place.push_back(may);
  }
  flows.assign(n, 0);
  back.assign(ops.size(), 0);
  std::vector<char> written(n, 0), updated(params.size(), 0);
  flows[output] = written[output] = needs[output];
  for (int at = (int)ops.size() - 1; at >= 0; at--) {
    Op& op = *ops[at];
    back[at] = flows[op.out] && needs[op.out];
    op.add.assign(op.in.size(), 0);
    if (!back[at]) continue;
    for (size_t i = 0; i < op.in.size(); i++)
      if (op.want[i]) {
        flows[op.in[i]] = 1;
        op.add[i] = written[op.in[i]];
        written[op.in[i]] = 1;
      }
    for (int i : op.params) updated[i] = params[i].trained;
  }
  std::vector<Range> live, rest;
  for (size_t i = 0; i < params.size(); i++) {
    if (params[i].trained) live.push_back({params[i].at, params[i].size});
    if (!updated[i]) rest.push_back({params[i].at, params[i].size});
  }
  trained = merged(live);
  untouched = merged(rest);
}

}  // namespace ff
