// The delta shortcut. What it computes is in record.py beside this file.
#pragma once

#include "arithmetic.h"
#include "runtime.h"

namespace {

// inputs x, f, beta, v, mix?, total?
template <class T>
void delta_shortcut(const Call& c) {
  using A = Wide<T>;
  bool sum = c.kernel.whole[0];
  Tensor x = c.in(0), f = c.in(1), mixing = c.in(4), base = sum ? c.in(5) : Tensor();
  size_t d = x.dim(1), rows = d ? x.count() / d : 0;
  require(f.shape == x.shape && (!base || base.shape == x.shape), "x, f and total must have one shape");
  PerRow<A> beta(c.in(2), rows, 1), v(c.in(3), rows, 1);
  std::vector<A> mix = numbers<A>(mixing);
  require(mix.size() <= 1 || mix.size() == d, "mix must be one number or one per feature");
  bool add = sum && !base;
  A eps2 = c.kernel.real[0];
  auto *xs = static_cast<const T*>(x.data), *fs = static_cast<const T*>(f.data);
  auto* bases = base ? static_cast<const T*>(base.data) : xs;
  T* ys = c.out<T>(x.shape);
  over_rows<A>(c, rows, d, 2 * d, [=, &beta, &v, &mix](size_t row, size_t end, A* room) {
    for (; row < end; ++row) {
      const A *xw = widened(xs + row * d, d, room), *fw = widened(fs + row * d, d, room + d);
      const T* b = bases + row * d;
      T* y = ys + row * d;
      A squares, p;
      products(fw, xw, d, squares, p);
      A scale = 1 / std::sqrt(squares + eps2), weight = *beta(row) * (*v(row) - p * scale) * scale;
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
  });
}

}  // namespace
