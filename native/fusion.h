// Ops that are one when nobody reads what is between them: a convolution and the max-pool behind it, a norm of groups or of
// the batch and a cheap activation behind it.
// Invariant: both are made, and so checked, as they were told before they are joined; the value between them is then unused
// and keeps no memory.
#pragma once
#include "ops_conv.h"
#include "ops_conv_pool.h"

namespace ff {

inline std::vector<Spec> joined(const std::vector<Spec>& specs, std::vector<Value>& values, const std::vector<Param>& params, const std::vector<int>& given, int output) {
  const int n = (int)values.size();
  std::vector<int> written(n, 0), read(n, 0);
  auto count = [n](std::vector<int>& of, int value) {
    if (value >= 0 && value < n) of[value]++;
  };
  for (int i : given) count(written, i);
  count(read, output);
  for (const Spec& s : specs) {
    count(written, s.out);
    for (int i : s.in) count(read, i);
  }
  auto is_norm = [](const Spec& s) { return s.kind == "group_norm" || s.kind == "batch_norm"; };
  auto inside = [n, &params](const Spec& s) {
    for (int i : s.in)
      if (i < 0 || i >= n) return false;
    for (int i : s.params)
      if (i < 0 || i >= (int)params.size()) return false;
    return s.in.size() == 1 && s.out >= 0 && s.out < n;
  };
  std::vector<Spec> out;
  std::vector<char> gone;
  std::vector<int> writer(n, -1);  // ops in `out` that may be joined with the next, by the value they write
  for (const Spec& s : specs) {
    out.push_back(s);
    gone.push_back(0);
    if (!inside(s)) continue;
    if ((s.kind == "conv2d" || is_norm(s)) && written[s.out] == 1 && read[s.out] == 1) writer[s.out] = (int)out.size() - 1;
    if (writer[s.in[0]] < 0) continue;
    const Spec& first = out[writer[s.in[0]]];
    const std::string kind = first.kind + "_" + s.kind;
    if (kind != "conv2d_max_pool" && !(is_norm(first) && maker(kind))) continue;
    const Shapes shapes{values, params};
    maker(first.kind)(first, shapes), maker(s.kind)(s, shapes);
    const bool fits = is_norm(first) ? values[first.out].ld == values[s.out].ld : ConvMaxPool::fits(first, s, values[first.out], values[s.out]);
    if (!fits) continue;
    Spec both = first;
    both.kind = kind;
    both.out = s.out;
    both.ints.insert(both.ints.end(), s.ints.begin(), s.ints.end());
    both.floats.insert(both.floats.end(), s.floats.begin(), s.floats.end());
    values[first.out] = Value{1, 1, 1, PAD, false};
    gone[writer[s.in[0]]] = 1;
    out.back() = both;
  }
  std::vector<Spec> left;
  for (size_t i = 0; i < out.size(); i++)
    if (!gone[i]) left.push_back(out[i]);
  return left;
}

}  // namespace ff
