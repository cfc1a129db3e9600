// Attention over a short window. What it computes is in record.py beside this file.
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
  require(k.dim(4) == q.dim(4) && v.dim(4) == q.dim(4), "q, k and v must have one batch");
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

// inputs q, then keys and as many values
template <class T>
void windowed_attention_row(const Call& c) {
  using A = Wide<T>;
  Tensor q = c.in(0);
  std::vector<Tensor> given = c.rest(1);
  size_t n = given.size() / 2;
  require(given.size() == 2 * n && n, "there must be as many keys as values");
  std::vector<Tensor> last(given.begin() + ptrdiff_t(n), given.end());
  given.resize(n);
  std::vector<const T*> keys = rows_of<T>(given), values = rows_of<T>(last);
  size_t dk = q.dim(1), dv = last[0].dim(1), rows = dk ? q.count() / dk : 0;
  require(given[0].shape == q.shape && last[0].count() == rows * dv, "keys must have the shape of the query");
  A scale = c.kernel.real[0] != 0 ? A(c.kernel.real[0]) : 1 / std::sqrt(A(dk));
  T* ys = c.out<T>(last[0].shape);
  over_rows<A>(c, rows, n * (dk + dv), 2 * dk + dv + n, [&](size_t row, size_t end, A* room) {
    A *sum = room + 2 * dk, *weights = sum + dv;
    for (; row < end; ++row) {
      const A* query = widened(rows_of<T>(q) + row * dk, dk, room);
      for (size_t j = 0; j < n; ++j)
        weights[j] = dot_of(query, widened(keys[j] + row * dk, dk, room + dk), dk) * scale;
      softmax(weights, n);
      for (size_t j = 0; j < n; ++j) add_row(sum, weights[j], values[j] + row * dv, dv, j == 0);
      store<T, A>(ys + row * dv, sum, nullptr, dv);
    }
  });
}

}  // namespace
