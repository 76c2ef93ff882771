// Ops that are one when nobody reads what is between them: a convolution and the max-pool behind it.
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
  auto inside = [n, &params](const Spec& s) {
    for (int i : s.in)
      if (i < 0 || i >= n) return false;
    for (int i : s.params)
      if (i < 0 || i >= (int)params.size()) return false;
    return s.in.size() == 1 && s.out >= 0 && s.out < n;
  };
  std::vector<Spec> out;
  std::vector<char> gone;
  std::vector<int> writer(n, -1);  // convolutions in `out` that may be joined, by the value they write
  for (const Spec& s : specs) {
    out.push_back(s);
    gone.push_back(0);
    if (!inside(s)) continue;
    if (s.kind == "conv2d" && written[s.out] == 1 && read[s.out] == 1) writer[s.out] = (int)out.size() - 1;
    if (s.kind != "max_pool" || writer[s.in[0]] < 0) continue;
    Spec& conv = out[writer[s.in[0]]];
    const Shapes shapes{values, params};
    Conv2d::make(conv, shapes), MaxPool::make(s, shapes);
    if (!ConvMaxPool::fits(conv, s, values[conv.out], values[s.out])) continue;
    Spec both = conv;
    both.kind = "conv2d_max_pool";
    both.out = s.out;
    both.ints.insert(both.ints.end(), s.ints.begin(), s.ints.end());
    values[conv.out] = Value{1, 1, 1, PAD, false};
    gone[writer[s.in[0]]] = 1;
    out.back() = both;
  }
  std::vector<Spec> left;
  for (size_t i = 0; i < out.size(); i++)
    if (!gone[i]) left.push_back(out[i]);
  return left;
}

}  // namespace ff
