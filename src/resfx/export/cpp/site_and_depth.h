// The delta shortcut, and reads over depth. What each computes is in the file of its record, resfx/ops/*/onnx.py.
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

// inputs weights, base?, sources...
template <class T>
void weighted_sum(const Call& c) {
  using A = Wide<T>;
  Tensor base = c.in(1);
  std::vector<Tensor> given = c.rest(2);
  std::vector<const T*> sources = rows_of<T>(given);
  const Shape& shape = given.at(0).shape;
  size_t d = given[0].dim(1), rows = d ? given[0].count() / d : 0, n = sources.size();
  require(!base || base.shape == shape, "base must have the shape of the sources");
  PerRow<A> weights(c.in(0), rows, n);
  const T* bases = rows_of<T>(base);
  T* ys = c.out<T>(shape);
  over_rows<A>(c, rows, n * d, d, [&, d](size_t row, size_t end, A* sum) {
    for (; row < end; ++row) {
      for (size_t j = 0; j < n; ++j) add_row(sum, weights(row)[j], sources[j] + row * d, d, j == 0);
      store(ys + row * d, sum, bases ? bases + row * d : nullptr, d);
    }
  });
}

// inputs query, base?, gate?, sources...
template <class T>
void attention_read(const Call& c) {
  using A = Wide<T>;
  Tensor base = c.in(1);
  std::vector<Tensor> given = c.rest(3);
  std::vector<const T*> sources = rows_of<T>(given);
  std::vector<A> query = numbers<A>(c.in(0)), gate = numbers<A>(c.in(2));
  const Shape& shape = given.at(0).shape;
  size_t d = given[0].dim(1), rows = d ? given[0].count() / d : 0, n = sources.size();
  require(query.size() == d && gate.size() <= 1, "query must have one number per feature, gate one");
  require(!base || base.shape == shape, "base must have the shape of the sources");
  A eps = c.kernel.real[0], scale = gate.empty() ? A(1) : gate[0];
  bool relative = c.kernel.whole[0];
  const T* bases = rows_of<T>(base);
  T* ys = c.out<T>(shape);
  over_rows<A>(c, rows, 2 * n * d, (n + 1) * d + n, [&, d, n](size_t row, size_t end, A* room) {
    A *sum = room + n * d, *weights = sum + d;
    std::vector<const A*> wide(n);
    for (; row < end; ++row) {
      for (size_t j = 0; j < n; ++j) {
        A squares, dot;
        wide[j] = widened(sources[j] + row * d, d, room + j * d);
        products(wide[j], query.data(), d, squares, dot);
        weights[j] = dot / std::sqrt(squares / A(d) + eps);
      }
      softmax(weights, n, relative ? A(n) : A(1));
      for (size_t j = 0; j < n; ++j) add_row(sum, (weights[j] - A(relative)) * scale, wide[j], d, j == 0);
      store(ys + row * d, sum, bases ? bases + row * d : nullptr, d);
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
