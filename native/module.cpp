// The extension module: plans and what can be asked of them, for Python. Arrays are looked at where they lie, never kept.
// Invariant: shapes are checked here, against each other, before anything is computed; the GIL is released meanwhile.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "train.h"

#ifndef FF_MODULE
#define FF_MODULE _plain
#endif

namespace nb = nanobind;
using namespace ff;

template <class T, int D>
using In = nb::ndarray<const T, nb::ndim<D>, nb::c_contig, nb::device::cpu>;
template <class T, int D>
using Out = nb::ndarray<T, nb::ndim<D>, nb::c_contig, nb::device::cpu>;
using Any = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Columns = std::vector<Any>;

static Kind kind_of(const nb::dlpack::dtype& t) {
  if (t == nb::dtype<float>()) return Kind::f32;
  if (t == nb::dtype<double>()) return Kind::f64;
  if (t == nb::dtype<uint8_t>()) return Kind::u8;
  if (t == nb::dtype<bool>()) return Kind::b;
  if (t == nb::dtype<int8_t>()) return Kind::i8;
  if (t == nb::dtype<int16_t>()) return Kind::i16;
  if (t == nb::dtype<uint16_t>()) return Kind::u16;
  if (t == nb::dtype<int32_t>()) return Kind::i32;
  if (t == nb::dtype<uint32_t>()) return Kind::u32;
  if (t == nb::dtype<int64_t>()) return Kind::i64;
  refuse("a column holds numbers of a kind that is not known here");
}

static Column column(const Any& a) {
  must(a.ndim() >= 1, "a column has rows");
  int64_t width = 1;
  for (size_t i = 1; i < a.ndim(); i++) width *= (int64_t)a.shape(i);
  return {a.data(), kind_of(a.dtype()), (int64_t)a.shape(0), width};
}

struct Targeted {  // the columns and targets of a call, in the core's words
  std::vector<Column> columns;
  std::optional<Column> targets;

  Targeted(const Columns& given, const std::optional<Any>& y) {
    for (const Any& a : given) columns.push_back(column(a));
    if (y) targets = column(*y);
  }
  const Column* y() const { return targets ? &*targets : nullptr; }
};

template <class A>
static void has(const A& a, size_t axis, int64_t size, const char* said) {
  must((int64_t)a.shape(axis) == size, said);
}

static nb::tuple told(const Bad& bad) { return nb::make_tuple(bad.place, bad.value, bad.column); }

static Settings settings_of(const nb::dict& d) {
  Settings s;
  try {
    s.lr = nb::cast<double>(d["lr"]);
    s.momentum = nb::cast<double>(d["momentum"]);
    s.weight_decay = nb::cast<double>(d["weight_decay"]);
    s.clip_norm = nb::cast<double>(d["clip_norm"]);
    s.nesterov = nb::cast<bool>(d["nesterov"]);
    s.adam = nb::cast<bool>(d["adam"]);
    s.half = nb::cast<bool>(d["half"]);
    s.beta1 = nb::cast<double>(d["beta1"]);
    s.beta2 = nb::cast<double>(d["beta2"]);
    s.eps = nb::cast<double>(d["eps"]);
  } catch (const nb::cast_error&) {
    refuse("settings are numbers, nesterov, adam and half true or false");
  }
  return s;
}

static nb::tuple fit_(const Plan& plan, In<float, 2> start, In<int64_t, 1> row, const Columns& columns, Any y,
                      In<int64_t, 1> rows, In<int64_t, 1> begin, In<int64_t, 1> steps, In<int64_t, 1> per_epoch,
                      int64_t batch, In<uint64_t, 1> keys, nb::dict settings, double mu,
                      std::optional<In<float, 2>> ref, std::optional<In<int64_t, 1>> ref_row,
                      std::optional<In<float, 2>> a, std::optional<In<bool, 1>> mask,
                      std::optional<Out<float, 2>> moments, std::optional<Out<float, 2>> out,
                      std::optional<std::tuple<double, double, double, In<int64_t, 1>, Out<int64_t, 1>, Out<uint8_t, 1>>> fold,
                      Out<double, 1> loss, int threads) {
  Fit f{};
  const int64_t n = f.n = (int64_t)steps.shape(0), size = plan.vector_size;
  has(start, 1, size, "models have the plan's size");
  has(row, 0, n, "one row index a client");
  has(begin, 0, n + 1, "one more bound than clients");
  has(per_epoch, 0, n, "one number of examples a client");
  has(keys, 0, n, "one key a client");
  has(loss, 0, n, "one loss a client");
  must(threads >= 1 && threads <= 1024, "1 to 1024 threads");
  f.start = start.data(), f.models = (int64_t)start.shape(0), f.row = row.data();
  const Targeted given(columns, y);
  f.columns = given.columns, f.y = given.y();
  f.rows = rows.data(), f.begin = begin.data(), f.steps = steps.data(), f.per_epoch = per_epoch.data();
  must(f.begin[0] >= 0 && f.begin[n] <= (int64_t)rows.shape(0), "the bounds are those of the rows");
  for (int64_t i = 0; i < n; i++) must(f.begin[i] <= f.begin[i + 1], "the bounds grow");
  f.batch = batch, f.keys = keys.data(), f.settings = settings_of(settings), f.mu = mu;
  if (ref) {
    must(ref_row.has_value(), "references come with their rows");
    has(*ref, 1, size, "references have the plan's size");
    has(*ref_row, 0, n, "one reference a client");
    for (int64_t i = 0; i < n; i++) must(ref_row->data()[i] >= 0 && ref_row->data()[i] < (int64_t)ref->shape(0), "a client has no reference");
    f.ref = ref->data(), f.ref_row = ref_row->data();
  }
  if (a) {
    has(*a, 1, size, "corrections have the plan's size");
    must((int64_t)a->shape(0) == n || a->shape(0) == 1, "one correction a client, or one for all");
    f.a = a->data(), f.a_stride = a->shape(0) == 1 ? 0 : size;
  }
  if (mask) {
    has(*mask, 0, size, "the mask has the plan's size");
    f.mask = (const uint8_t*)mask->data();
  }
  if (moments) {
    const int count = f.settings.moments();
    has(*moments, 0, n, "moments for each client");
    has(*moments, 1, count * size + (count == 2), "moments of the plan's size");
    f.moments = moments->data();
  }
  if (out) {
    has(*out, 0, n, "a row for each client");
    has(*out, 1, size, "rows of the plan's size");
    f.out = out->data();
  }
  Fold into{};
  if (fold) {
    const auto& [step, cap, clip, weights, total, refused] = *fold;
    has(weights, 0, n, "one weight a client");
    has(total, 0, size, "a total of the plan's size");
    has(refused, 0, n, "one refusal a client");
    must(step > 0 && step <= 1, "a step of the fold");
    for (int64_t i = 0; i < n; i++) must(weights.data()[i] >= 0, "weights are not negative");
    must(clip >= 0, "a norm to clip to");
    into = {step, cap, clip, weights.data(), total.data(), refused.data()};
    f.fold = &into;
  }
  f.loss = loss.data(), f.threads = threads;
  Bad bad;
  {
    nb::gil_scoped_release free;
    bad = fit(plan, f);
  }
  return told(bad);
}

static nb::tuple evaluate_(const Plan& plan, In<float, 2> models, In<int64_t, 1> row, const Columns& columns, Any y,
                           In<int64_t, 1> rows, In<int64_t, 1> offsets, Out<double, 1> loss, Out<double, 1> right,
                           Out<double, 1> counted, int threads) {
  Evaluate e{};
  const int64_t n = e.n = (int64_t)row.shape(0);
  has(models, 1, plan.vector_size, "models have the plan's size");
  has(offsets, 0, n + 1, "one more bound than clients");
  for (const auto& one : {loss, right, counted}) has(one, 0, n, "one number a client");
  must(threads >= 1 && threads <= 1024, "1 to 1024 threads");
  const Targeted given(columns, y);
  e.models = models.data(), e.count = (int64_t)models.shape(0), e.row = row.data();
  e.columns = given.columns, e.y = given.y();
  e.rows = rows.data(), e.offsets = offsets.data();
  must(e.offsets[0] >= 0 && e.offsets[n] <= (int64_t)rows.shape(0), "the bounds are those of the rows");
  for (int64_t i = 0; i < n; i++) must(e.offsets[i] <= e.offsets[i + 1], "the bounds grow");
  e.loss = loss.data(), e.right = right.data(), e.counted = counted.data(), e.threads = threads;
  Bad bad;
  {
    nb::gil_scoped_release free;
    bad = evaluate(plan, e);
  }
  return told(bad);
}

static double gradient_(const Plan& plan, In<float, 1> vector, const Columns& columns, Any y, In<int64_t, 1> rows,
                        uint64_t key, int64_t step, Out<float, 1> grad) {
  has(vector, 0, plan.vector_size, "a model of the plan's size");
  has(grad, 0, plan.vector_size, "a gradient of the plan's size");
  const Targeted given(columns, y);
  nb::gil_scoped_release free;
  return gradient(plan, vector.data(), given.columns, given.y(), rows.data(), (int64_t)rows.shape(0), key, step, grad.data());
}

static void forward_(const Plan& plan, In<float, 1> vector, const Columns& columns, In<int64_t, 1> rows, bool train,
                     Out<float, 2> out) {
  has(vector, 0, plan.vector_size, "a model of the plan's size");
  const Value& v = plan.values[plan.output];
  has(out, 0, (int64_t)rows.shape(0), "an output for each row");
  has(out, 1, v.positions() * v.c, "outputs of the plan's size");
  const Targeted given(columns, std::nullopt);
  nb::gil_scoped_release free;
  forward(plan, vector.data(), given.columns, rows.data(), (int64_t)rows.shape(0), train, out.data());
}

using Raw_value = std::tuple<int, int, int, int, bool>;
using Raw_param = std::tuple<int64_t, int64_t, bool>;
using Raw_op = std::tuple<std::string, std::vector<int>, int, std::vector<int>, std::vector<int64_t>, std::vector<double>>;
using Raw_input = std::tuple<int, int, bool>;

static void make(Plan* self, const std::vector<Raw_value>& values, const std::vector<Raw_param>& params,
                 const std::vector<Raw_op>& ops, const std::vector<Raw_input>& inputs, const std::string& loss, int output,
                 In<int64_t, 1> index, In<float, 1> constants, int64_t vector_size) {
  std::vector<Value> v;
  for (const auto& [h, w, c, ld, tokens] : values) v.push_back({h, w, c, ld, tokens});
  std::vector<Param> p;
  for (const auto& [at, size, trained] : params) p.push_back({at, size, trained});
  std::vector<Spec> s;
  for (const auto& [kind, in, out, some, ints, floats] : ops) s.push_back({kind, in, some, out, ints, floats});
  std::vector<Input> i;
  for (const auto& [value, kind, first] : inputs) i.push_back({value, kind, first});
  new (self) Plan(std::move(v), std::move(p), s, std::move(i), loss, output,
                  std::vector<int64_t>(index.data(), index.data() + index.shape(0)),
                  std::vector<float>(constants.data(), constants.data() + constants.shape(0)), vector_size);
}

static std::vector<std::string> features() {
  std::vector<std::string> out;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (v3) out.push_back("avx2");
  if (v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd"))
    out.push_back("avx512");
  if (__builtin_cpu_supports("avx512bf16")) out.push_back("bf16");
#endif
  return out;
}

NB_MODULE(FF_MODULE, m) {
  nb::set_leak_warnings(false);  // nets that live as long as the process hold plans
  m.attr("LANES") = VL;
#ifdef FF_INTERFACE
  m.attr("interface") = FF_INTERFACE;
#endif
  m.def("features", &features);
  m.def("half", &half_here);
  nb::class_<Plan>(m, "Plan")
      .def("__init__", &make, nb::arg("values"), nb::arg("params"), nb::arg("ops"), nb::arg("inputs"), nb::arg("loss"),
           nb::arg("output"), nb::arg("index"), nb::arg("constants"), nb::arg("vector_size"))
      .def_ro("vector_size", &Plan::vector_size)
      .def_ro("packed_size", &Plan::packed_size)
      .def("fit", &fit_, nb::arg("start"), nb::arg("row"), nb::arg("columns"), nb::arg("y"), nb::arg("rows"),
           nb::arg("begin"), nb::arg("steps"), nb::arg("per_epoch"), nb::arg("batch"), nb::arg("keys"), nb::arg("settings"),
           nb::arg("mu"), nb::arg("ref").none(), nb::arg("ref_row").none(), nb::arg("a").none(), nb::arg("mask").none(),
           nb::arg("moments").noconvert().none(), nb::arg("out").noconvert().none(), nb::arg("fold").none(), nb::arg("loss").noconvert(), nb::arg("threads"))
      .def("evaluate", &evaluate_, nb::arg("models"), nb::arg("row"), nb::arg("columns"), nb::arg("y"), nb::arg("rows"),
           nb::arg("offsets"), nb::arg("loss").noconvert(), nb::arg("right").noconvert(), nb::arg("counted").noconvert(), nb::arg("threads"))
      .def("gradient", &gradient_, nb::arg("vector"), nb::arg("columns"), nb::arg("y"), nb::arg("rows"), nb::arg("key"),
           nb::arg("step"), nb::arg("grad").noconvert())
      .def("forward", &forward_, nb::arg("vector"), nb::arg("columns"), nb::arg("rows"), nb::arg("train"), nb::arg("out").noconvert());
}
