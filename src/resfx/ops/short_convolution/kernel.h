// A short convolution over positions. What it computes is in record.py beside this file.
#pragma once

#include "arithmetic.h"
#include "runtime.h"

namespace {

// inputs x (batch, T + k - 1, d), weight (d, k), bias?, base? (batch, T, d)
template <class T>
void short_convolution(const Call& c) {
  using A = Wide<T>;
  Tensor x = c.in(0), taps = c.in(1), base = c.in(3);
  require(x.shape.size() == 3 && taps.shape.size() == 2 && taps.dim(2) == x.dim(1), "weight must be (d, k)");
  size_t d = x.dim(1), length = x.dim(2), k = taps.dim(1);
  require(k && length + 1 >= k, "x must have k - 1 positions more than the result");
  size_t size = length + 1 - k, rows = x.dim(3) * size;
  std::vector<A> given = numbers<A>(taps), weight(d * k), bias = numbers<A>(c.in(2));
  for (size_t i = 0; i < d; ++i)
    for (size_t s = 0; s < k; ++s) weight[s * d + i] = given[i * k + s];
  require(bias.empty() || bias.size() == d, "bias must have one number per feature");
  bool silu = c.kernel.whole[0];
  Shape shape = {x.shape[0], int64_t(size), x.shape[2]};
  require(!base || base.shape == shape, "base must have the shape of the result");
  const T* bases = rows_of<T>(base);
  T* ys = c.out<T>(shape);
  over_rows<A>(c, rows, k * d, d, [&](size_t row, size_t end, A* sum) {
    for (; row < end; ++row) {
      const T* from = rows_of<T>(x) + (row / size * length + row % size) * d;
      if (bias.empty()) std::fill(sum, sum + d, A(0));
      else std::copy(bias.begin(), bias.end(), sum);
      for (size_t s = 0; s < k; ++s) {
        const A* w = weight.data() + s * d;
        for (size_t i = 0; i < d; ++i) sum[i] += w[i] * widen(from[s * d + i]);
      }
      if (silu)
        for (size_t i = 0; i < d; ++i) sum[i] = sum[i] / (1 + exponential(-sum[i]));
      store(ys + row * d, sum, bases ? bases + row * d : nullptr, d);
    }
  });
}

}  // namespace
