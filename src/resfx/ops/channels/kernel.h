// Operators on a state of n channels. What it computes is in record.py beside this file.
#pragma once

#include "../sinkhorn/kernel.h"
#include "arithmetic.h"
#include "runtime.h"

namespace {

// inputs state (..., n, d), weights, unit?
template <class T>
void combine_channels(const Call& c) {
  using A = Wide<T>;
  Tensor state = c.in(0), given = c.in(1);
  size_t d = state.dim(1), n = state.dim(2), rows = n && d ? state.count() / (n * d) : 0;
  bool features = d != 1 && given.shape.size() == 2 && given.dim(1) == d;  // (n, d), else (..., n, 1)
  PerRow<A> weights(given, rows, features ? n * d : n);
  std::vector<A> unit = numbers<A>(c.in(2));
  size_t wide = features ? d : 1;
  bool centred = c.kernel.whole[0];
  if (unit.empty()) unit = {A(1)};
  require(n && (unit.size() == 1 || unit.size() == rows || unit.size() == wide), "weights and unit do not fit");
  Shape shape = state.shape;
  shape.erase(shape.end() - 2);
  T* ys = c.out<T>(shape);
  over_rows<A>(c, rows, n * d, n * d + 2 * d, [&](size_t row, size_t end, A* room) {
    A *sum = room + n * d, *excess = sum + d;
    for (size_t last = rows; row < end; ++row) {
      const A *w = weights(row), *x = widened(rows_of<T>(state) + row * n * d, n * d, room);
      if (centred) {
        if (last == rows || weights.step || unit.size() == rows)  // else as in the row before
          for (size_t i = 0; i < wide; ++i)
            excess[i] = pairs(w + i, n, wide) - unit[unit.size() == 1 ? 0 : features ? i : row];
        for (size_t i = 0; i < d; ++i) sum[i] = x[i] + excess[features ? i : 0] * x[i];
      } else {
        std::fill(sum, sum + d, A(0));
      }
      last = row;
      for (size_t j = 0; j < n; ++j) {
        const A *other = x + j * d, *wj = w + j * wide;
        if (!centred && features)
          for (size_t i = 0; i < d; ++i) sum[i] += wj[i] * other[i];
        else if (!centred)
          for (size_t i = 0; i < d; ++i) sum[i] += wj[0] * other[i];
        else if (j && features)
          for (size_t i = 0; i < d; ++i) sum[i] += wj[i] * (other[i] - x[i]);
        else if (j)
          for (size_t i = 0; i < d; ++i) sum[i] += wj[0] * (other[i] - x[i]);
      }
      store<T, A>(ys + row * d, sum, nullptr, d);
    }
  });
}

// inputs state (..., n, d), f (..., d), write (..., n), matrix? (..., n, n)
template <class T>
void mix_channels(const Call& c) {
  using A = Wide<T>;
  Tensor state = c.in(0), f = c.in(1), matrix = c.in(3);
  size_t d = state.dim(1), n = state.dim(2), rows = n && d ? state.count() / (n * d) : 0;
  require(f.count() == rows * d && f.dim(1) == d, "f must have a row for each row of channels");
  PerRow<A> write(c.in(2), rows, n), mix(matrix, rows, n * n);
  bool unit = c.kernel.whole[0];
  T* ys = c.out<T>(state.shape);
  over_rows<A>(c, rows, n * n * d, n * d + 2 * d, [&](size_t row, size_t end, A* room) {
    A* sum = room + n * d;
    for (; row < end; ++row) {
      const A *x = widened(rows_of<T>(state) + row * n * d, n * d, room);
      const A* fw = widened(rows_of<T>(f) + row * d, d, sum + d);
      for (size_t i = 0; i < n; ++i) {
        A w = write(row)[i];
        const A* start = mix ? x : x + i * d;
        A own = mix && !unit ? mix(row)[i * n] : A(1);
        for (size_t l = 0; l < d; ++l) sum[l] = own * start[l];
        for (size_t j = 1; mix && j < n; ++j) {
          A m = mix(row)[i * n + j];
          const A* other = x + j * d;
          if (unit)
            for (size_t l = 0; l < d; ++l) sum[l] += m * (other[l] - x[l]);
          else
            for (size_t l = 0; l < d; ++l) sum[l] += m * other[l];
        }
        T* y = ys + (row * n + i) * d;
        for (size_t l = 0; l < d; ++l) narrow(sum[l] + w * fw[l], y[l]);
      }
    }
  });
}

// inputs state (..., n, d), f (..., d), beta (..., 1), v (..., n), mix?
template <class T>
void delta_write(const Call& c) {
  using A = Wide<T>;
  Tensor state = c.in(0), f = c.in(1);
  size_t d = state.dim(1), n = state.dim(2), rows = n && d ? state.count() / (n * d) : 0;
  require(f.count() == rows * d && f.dim(1) == d, "f must have a row for each row of channels");
  PerRow<A> beta(c.in(2), rows, 1), v(c.in(3), rows, n);
  std::vector<A> mix = numbers<A>(c.in(4));
  require(mix.size() <= 1 || mix.size() == d, "mix must be one number or one per feature");
  A eps2 = c.kernel.real[0], add = A(c.kernel.whole[0] != 0);
  bool erase = c.kernel.whole[1];
  T* ys = c.out<T>(state.shape);
  over_rows<A>(c, rows, n * d, n * d + d, [&](size_t row, size_t end, A* room) {
    for (; row < end; ++row) {
      const A* x = widened(rows_of<T>(state) + row * n * d, n * d, room);
      const A* fw = widened(rows_of<T>(f) + row * d, d, room + n * d);
      A scale = 1 / std::sqrt(dot_of(fw, fw, d) + eps2);
      for (size_t j = 0; j < n; ++j, x += d) {
        A change = v(row)[j] - (erase ? dot_of(fw, x, d) * scale : A(0)), weight = *beta(row) * change * scale;
        T* y = ys + (row * n + j) * d;
        if (mix.size() > 1) {
          for (size_t i = 0; i < d; ++i) narrow(x[i] + add * fw[i] + mix[i] * (weight - 1) * fw[i], y[i]);
        } else {
          if (!mix.empty()) weight = mix[0] * (weight - 1);
          for (size_t i = 0; i < d; ++i) narrow(x[i] + add * fw[i] + weight * fw[i], y[i]);
        }
      }
    }
  });
}

// inputs state (..., n, d), projection (2n + m, n d), alpha, pre (n,), post (n,), res? (n, n), origin? (n,)
template <class T>
void manifold_read(const Call& c) {
  using A = Wide<T>;
  Tensor state = c.in(0), projection = c.in(1), mixing = c.in(5);
  size_t d = state.dim(1), n = state.dim(2), all = n * d, rows = all ? state.count() / all : 0;
  size_t each = mixing ? n * n : 0, seen = 2 * n + each;
  std::vector<A> alpha = numbers<A>(c.in(2)), pre = numbers<A>(c.in(3)), post = numbers<A>(c.in(4));
  std::vector<A> res = numbers<A>(mixing), start = numbers<A>(c.in(6));
  require(projection.dim(1) == all && projection.dim(2) == seen, "projection must give 2n numbers and those of res");
  require(pre.size() == n && post.size() == n && res.size() == each && alpha.size() == (each ? 3 : 2), "not for n");
  A eps = c.kernel.real[0];
  int64_t iterations = c.kernel.whole[0], newton = c.kernel.whole[1];
  for (A& x : start) x = sigmoid(x);
  A unit = start.empty() ? A(1) : pairs(start.data(), n, 1);
  Shape shape = state.shape;
  shape.erase(shape.end() - 2);
  T* ys = c.out<T>(shape);
  shape.back() = int64_t(n);
  A* posts = c.out<A>(shape, 1);
  shape.push_back(int64_t(n));
  A* matrices = each ? c.out<A>(shape, 2) : nullptr;
  const T* weights = rows_of<T>(projection);
  over_rows<A>(c, rows, (seen + 2) * all, 2 * all + d + seen + each + 2 * n, [&](size_t row, size_t end, A* room) {
    A *line = room + all, *sum = line + all, *z = sum + d, *table = z + seen, *step = table + each, *w = step + n;
    for (; row < end; ++row) {
      const A* x = widened(rows_of<T>(state) + row * all, all, room);
      A scale = 1 / std::sqrt(dot_of(x, x, all) / A(all) + eps);
      for (size_t k = 0; k < seen; ++k) {
        T near;  // as torch rounds a product of matrices
        narrow(dot_of(x, widened(weights + k * all, all, line), all), near);
        z[k] = widen(near) * scale;
      }
      for (size_t i = 0; i < n; ++i) {
        w[i] = sigmoid(pre[i] + alpha[0] * z[i]);
        A half = sigmoid(post[i] + alpha[1] * z[n + i]);
        posts[row * n + i] = half + half;
      }
      A excess = pairs(w, n, 1) - unit;
      for (size_t i = 0; i < d; ++i) sum[i] = x[i] + excess * x[i];
      for (size_t j = 1; j < n; ++j)
        for (size_t i = 0; i < d; ++i) sum[i] += w[j] * (x[j * d + i] - x[i]);
      store<T, A>(ys + row * d, sum, nullptr, d);
      if (!each) continue;
      A* m = matrices + row * each;
      for (size_t e = 0; e < each; ++e) m[e] = res[e] + alpha[2] * z[2 * n + e];
      doubly_stochastic(m, table, step, n, iterations, newton);
    }
  });
}

}  // namespace
