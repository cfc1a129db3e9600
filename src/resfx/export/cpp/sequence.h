// Short windows and short convolutions over positions. What each computes is in resfx/ops/*/onnx.py.
#pragma once

#include "arithmetic.h"
#include "runtime.h"

namespace {

// inputs q (batch, heads, T, d_k), k and v (batch, heads_k, S, d), mask? (batch, S)
template <class T>
void windowed_attention(const Call& c) {
  using A = Wide<T>;
  Tensor q = c.in(0), k = c.in(1), v = c.in(2), mask = c.in(3);
  require(q.shape.size() == 4 && k.shape.size() == 4 && v.shape.size() == 4, "q, k and v must have four axes");
  size_t heads = q.dim(3), size = q.dim(2), dk = q.dim(1), shared = k.dim(3), length = k.dim(2), dv = v.dim(1);
  require(shared && heads % shared == 0 && v.dim(3) == shared && v.dim(2) == length && k.dim(1) == dk,
          "q, k and v do not belong together");
  require(length >= size, "there must be a key for each query");
  const size_t batch = q.dim(4), rows = batch * heads * size, past = length - size;
  const bool causal = c.kernel.whole[1], chunk = c.kernel.whole[2];
  const size_t window = size_t(c.kernel.whole[0]), left = causal ? window - 1 : window / 2, right = window - 1 - left;
  const A scale = c.kernel.real[0] != 0 ? A(c.kernel.real[0]) : 1 / std::sqrt(A(dk));
  require(!mask || mask.count() == length || mask.count() == batch * length, "the mask must say yes or no to each key");
  const bool* allowed = static_cast<const bool*>(mask.data);
  const size_t mask_step = mask.count() == length ? 0 : length;
  T* ys = c.out<T>({q.shape[0], q.shape[1], q.shape[2], v.shape[3]});
  over_rows<A>(c, rows, window * (dk + dv), 2 * dk + dv + window, [&](size_t row, size_t end, A* room) {
    A *sum = room + 2 * dk, *weights = sum + dv;
    for (; row < end; ++row) {
      size_t head = row / size, t = row % size + past, pair = head / heads * shared + head % heads / (heads / shared);
      size_t from = chunk ? t / window * window : t > left ? t - left : 0;
      size_t to = std::min(length, causal ? t + 1 : chunk ? from + window : t + right + 1);
      const A* query = widened(rows_of<T>(q) + row * dk, dk, room);
      const T *keys = rows_of<T>(k) + pair * length * dk, *values = rows_of<T>(v) + pair * length * dv;
      const bool* may = allowed ? allowed + head / heads * mask_step : nullptr;
      size_t n = 0;
      for (size_t j = from; j < to; ++j)
        if (!may || may[j]) weights[n++] = dot_of(query, widened(keys + j * dk, dk, room + dk), dk) * scale;
      std::fill(sum, sum + dv, A(0));
      if (n) softmax(weights, n);
      n = 0;
      for (size_t j = from; j < to; ++j)
        if (!may || may[j]) add_row(sum, weights[n++], values + j * dv, dv, false);
      store<T, A>(ys + row * dv, sum, nullptr, dv);
    }
  });
}

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
