// Training and measuring many clients with one plan: one client at a time per thread, folded where it lies.
// Here: what is asked, arenas, threads. Not here: any arithmetic of layers (ops), Python (module.cpp).
// Invariant: what is computed of a client depends on its own inputs only, to the bit: not on threads, nor on neighbours.
#pragma once
#include "plan.h"

namespace ff {

enum class Kind { f32, f64, u8, i8, i16, u16, i32, u32, i64, b };

struct Column {  // a column of the data, one row behind the other
  const void* data;
  Kind kind;
  int64_t rows, width;  // numbers a row
  int64_t bytes() const {  // of a row
    const bool wide = kind == Kind::f64 || kind == Kind::i64, middle = kind == Kind::f32 || kind == Kind::i32 || kind == Kind::u32;
    return width * (wide ? 8 : middle ? 4 : kind == Kind::i16 || kind == Kind::u16 ? 2 : 1);
  }
};

struct Settings {
  double lr = 0, momentum = 0, weight_decay = 0, clip_norm = 0;  // clip_norm 0: none
  bool nesterov = false, adam = false;
  bool half = false;  // products of dense layers round to bfloat16
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  int moments() const { return adam ? 2 : momentum > 0 ? 1 : 0; }
};

struct Fold {  // total[P] += weight * round(delta / step), where |delta| <= min(cap / max(weight, 1), 2^51 step) all over
  double step, cap, clip;  // clip: the norm that a delta is first shrunk to; 0: none
  const int64_t* weights;
  int64_t* total;
  uint8_t* refused;
};

struct Fit {
  int64_t n;
  const float* start;
  int64_t models;
  const int64_t* row;
  std::vector<Column> columns;
  const Column* y;         // targets: whole numbers for labels, others as floats
  const int64_t* rows;     // of the columns, client after client, step after step
  const int64_t* begin;    // [n + 1]
  const int64_t* steps;
  const int64_t* per_epoch;
  int64_t batch;
  const uint64_t* keys;
  Settings settings;
  double mu;
  const float* ref;        // [refs][P] by ref_row; null: the start
  const int64_t* ref_row;
  const float* a;          // rows of P floats, a_stride apart (0: one for all); null: none
  int64_t a_stride;
  const uint8_t* mask;     // [P]; null: all
  float* moments;          // [n][moments_size]; null: not kept
  float* out;              // [n][P]; null: only folded
  const Fold* fold;
  double* loss;            // [n]
  int threads;
};

struct Bad {               // a client, by its place, whose examples do not fit (the one that was found first); -1: none
  int64_t place = -1, value = 0;
  int column = -1;         // of tokens; -1: labels
};

struct Evaluate {
  int64_t n;
  const float* models;
  int64_t count;
  const int64_t* row;
  std::vector<Column> columns;
  const Column* y;
  const int64_t* rows;
  const int64_t* offsets;  // [n + 1]
  double *loss, *right, *counted;  // sums, [n]
  int threads;
};

// Errors: std::invalid_argument for what does not fit the plan; std::bad_alloc.
bool half_here();  // whether this build and processor have products of bfloat16
Bad fit(const Plan& plan, const Fit& ask);
Bad evaluate(const Plan& plan, const Evaluate& ask);
// One batch: its loss, and the gradient [P] where not null
double gradient(const Plan& plan, const float* vector, const std::vector<Column>& columns, const Column* y,
                const int64_t* rows, int64_t count, uint64_t key, int64_t step, float* grad);
// The outputs [count][positions * c] of a batch
void forward(const Plan& plan, const float* vector, const std::vector<Column>& columns, const int64_t* rows,
             int64_t count, bool train, float* out);

}  // namespace ff
