// The delta shortcut. What it computes is in record.py beside this file.
#pragma once

#include "arithmetic.h"
#include "runtime.h"

namespace {

// The shortcut of one row but for its two numbers, `beta` and `v`.
template <class T, class A = Wide<T>>
struct DeltaRows {
  Tensor x, f, base;
  size_t d, rows;
  std::vector<A> mix;
  bool add;
  A eps2;

  DeltaRows(const Call& c, size_t mixing, size_t total, A least, bool sum)
      : x(c.in(0)), f(c.in(1)), base(sum ? c.in(total) : Tensor()), d(x.dim(1)), rows(d ? x.count() / d : 0),
        mix(numbers<A>(c.in(mixing))), add(sum && !base), eps2(least) {
    require(f.shape == x.shape && (!base || base.shape == x.shape), "x, f and total must have one shape");
    require(mix.size() <= 1 || mix.size() == d, "mix must be one number or one per feature");
  }
  const A* wide_x(size_t row, A* room) const { return widened(rows_of<T>(x) + row * d, d, room); }
  const A* wide_f(size_t row, A* room) const { return widened(rows_of<T>(f) + row * d, d, room); }

  void write(size_t row, const A* xw, const A* fw, A beta, A v, T* y) const {
    const T* b = rows_of<T>(base ? base : x) + row * d;
    A squares, p;
    products(fw, xw, d, squares, p);
    A scale = 1 / std::sqrt(squares + eps2), weight = beta * (v - p * scale) * scale;
    if (mix.size() == 1) weight = mix[0] * (weight - 1);
    if (mix.size() > 1 && add)
      for (size_t i = 0; i < d; ++i) narrow(xw[i] + fw[i] + mix[i] * (weight - 1) * fw[i], y[i]);
    else if (mix.size() > 1)
      for (size_t i = 0; i < d; ++i) narrow(widen(b[i]) + mix[i] * (weight - 1) * fw[i], y[i]);
    else if (add)
      for (size_t i = 0; i < d; ++i) narrow(xw[i] + fw[i] + weight * fw[i], y[i]);
    else
      for (size_t i = 0; i < d; ++i) narrow(widen(b[i]) + weight * fw[i], y[i]);
  }
};

// inputs x, f, beta, v, mix?, total?
template <class T>
void delta_shortcut(const Call& c) {
  using A = Wide<T>;
  DeltaRows<T> delta(c, 4, 5, c.kernel.real[0], c.kernel.whole[0]);
  PerRow<A> beta(c.in(2), delta.rows, 1), v(c.in(3), delta.rows, 1);
  T* ys = c.out<T>(delta.x.shape);
  size_t d = delta.d;
  over_rows<A>(c, delta.rows, d, 2 * d, [=, &delta, &beta, &v](size_t row, size_t end, A* room) {
    for (; row < end; ++row)
      delta.write(row, delta.wide_x(row, room), delta.wide_f(row, room + d), *beta(row), *v(row), ys + row * d);
  });
}

// A linear map of rows to one number each, rounded to the type of its weight as torch does it.
template <class T, class A = Wide<T>>
struct RowMap {
  std::vector<A> weight, bias;
  bool rounds;

  RowMap(const Tensor& w, const Tensor& b, size_t width) : weight(numbers<A>(w)), bias(numbers<A>(b)) {
    rounds = w.type == TypeOf<T>::value;
    require(rounds || w.type == TypeOf<A>::value, "a weight must have the type of the stream, or a wider one");
    require(weight.size() == width && bias.size() <= 1, "a weight must have one row");
  }
  A operator()(const A* row) const {
    A sum = dot_of(row, weight.data(), weight.size()) + (bias.empty() ? A(0) : bias[0]);
    if (!rounds) return sum;
    T near;
    narrow(sum, near);
    return widen(near);
  }
};

// inputs x, f, context, weight of the gate, its bias?, weight of the target?, its bias?, mix?, total?
template <class T>
void delta_site(const Call& c) {
  using A = Wide<T>;
  enum { kContext = 0, kStream = 1, kConstant = 3 };
  bool erase = c.kernel.whole[1];
  int64_t source = c.kernel.whole[2];
  A top = c.kernel.real[1], constant = c.kernel.real[2];
  DeltaRows<T> delta(c, 7, 8, c.kernel.real[0], c.kernel.whole[0]);
  Tensor context = c.in(2);
  size_t d = delta.d, wide = context.dim(1);
  require(context.count() == delta.rows * wide, "the context must have a row for each row of the stream");
  RowMap<T> gate(c.in(3), c.in(4), wide);
  std::vector<RowMap<T>> target;
  if (source != kConstant) target.emplace_back(c.in(5), c.in(6), source == kContext ? wide : d);
  T* ys = c.out<T>(delta.x.shape);
  over_rows<A>(c, delta.rows, 2 * d + wide, 2 * d + wide, [=, &delta, &gate, &target](size_t row, size_t end, A* room) {
    for (; row < end; ++row) {
      const A *xw = delta.wide_x(row, room), *fw = delta.wide_f(row, room + d);
      const A* cw = widened(rows_of<T>(context) + row * wide, wide, room + 2 * d);
      A logit = gate(cw), half = erase ? std::tanh(logit) : sigmoid(logit), v = constant;
      if (!target.empty()) v = target[0](source == kContext ? cw : source == kStream ? xw : fw);
      if (!target.empty() && top) v = top * sigmoid(v);
      delta.write(row, xw, fw, half + half, v, ys + row * d);
    }
  });
}

}  // namespace
