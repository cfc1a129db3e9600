// Sinkhorn-Knopp. What it computes is in record.py beside this file.
#pragma once

#include "arithmetic.h"
#include "runtime.h"

#include <limits>

namespace {

// b with (diag(column sums) - P^T P) b = right and b_n = 0, for P with unit rows, in the place of `right`.
template <class A, class Size>
void solve_columns(const A* m, A* right, A* table, Size n) {
  for (size_t j = 0; j < n; ++j)
    for (size_t k = 0; k < n; ++k) {
      A sum = 0;
      for (size_t i = 0; i < n; ++i) sum += m[i * n + j] * m[i * n + k];
      table[j * n + k] = j == k ? 0 : -sum;
    }
  for (size_t j = 0; j < n; ++j) {
    A sum = std::numeric_limits<A>::epsilon();
    for (size_t k = 0; k < n; ++k) sum -= table[j * n + k];
    table[j * n + j] = sum;
  }
  for (size_t k = 0; k + 1 < n; ++k) {
    A pivot = table[k * n + k];
    for (size_t l = k; l + 1 < n; ++l) table[k * n + l] /= pivot;
    right[k] /= pivot;
    for (size_t j = 0; j + 1 < n; ++j) {
      A factor = j == k ? 0 : table[j * n + k];
      for (size_t l = k; l + 1 < n; ++l) table[j * n + l] -= factor * table[k * n + l];
      right[j] -= factor * right[k];
    }
  }
  right[n - 1] = 0;
}

template <class A, class Size>
void column_sums(const A* m, A* sums, Size n) {
  for (size_t column = 0; column < n; ++column) sums[column] = 0;
  for (size_t row = 0; row < n; ++row)
    for (size_t column = 0; column < n; ++column) sums[column] += m[row * n + column];
}

template <class A, class Size>
void unit_rows(A* m, Size n) {
  for (size_t row = 0; row < n; ++row) {
    A sum = 0;
    for (size_t column = 0; column < n; ++column) sum += m[row * n + column];
    for (size_t column = 0; column < n; ++column) m[row * n + column] /= sum;
  }
}

// One matrix of exponentials. `Size` is a number, or one that the compiler knows.
template <class A, class Size>
void balance(A* m, A* table, A* step, Size n, int64_t iterations, int64_t newton) {
  constexpr A kExact = 2 * std::numeric_limits<A>::epsilon();
  for (int64_t round = 0; round < iterations; ++round) {
    column_sums(m, step, n);
    for (size_t row = 0; row < n; ++row)
      for (size_t column = 0; column < n; ++column) m[row * n + column] /= step[column];
    unit_rows(m, n);
  }
  for (int64_t round = 0; round < newton; ++round) {
    column_sums(m, step, n);
    A missed = 0;
    for (size_t column = 0; column < n; ++column) {
      step[column] = 1 - step[column];
      missed = std::max(missed, std::abs(step[column]));
    }
    if (missed <= kExact) return;  // what follows would round, no more
    solve_columns(m, step, table, n);
    for (size_t column = 0; column < n; ++column)
      step[column] = std::exp(std::min(std::max(step[column], A(-4)), A(4)));
    for (size_t row = 0; row < n; ++row)
      for (size_t column = 0; column < n; ++column) m[row * n + column] *= step[column];
    unit_rows(m, n);
  }
}

// One matrix of logits, in its place; room for one matrix and one row.
template <class A>
void doubly_stochastic(A* m, A* table, A* step, size_t n, int64_t iterations, int64_t newton) {
  size_t each = n * n;
  A top = *std::max_element(m, m + each);
  for (size_t e = 0; e < each; ++e) m[e] = exponential(std::max(m[e] - top, A(-40)));
  if (n == 4)
    balance(m, table, step, std::integral_constant<size_t, 4>{}, iterations, newton);
  else
    balance(m, table, step, n, iterations, newton);
}

// inputs logits (..., n, n)
template <class T>
void sinkhorn(const Call& c) {
  using A = Wide<T>;
  Tensor logits = c.in(0);
  size_t n = logits.dim(1), each = n * n, count = each ? logits.count() / each : 0;
  require(logits.dim(2) == n, "logits must be square matrices");
  int64_t iterations = c.kernel.whole[0], newton = c.kernel.whole[1];
  T* ys = c.out<T>(logits.shape);
  over_rows<A>(c, count, each * size_t(2 * iterations + 4), 2 * each + n, [&](size_t i, size_t end, A* m) {
    A *table = m + each, *step = table + each;
    for (; i < end; ++i) {
      const T* x = rows_of<T>(logits) + i * each;
      for (size_t e = 0; e < each; ++e) m[e] = widen(x[e]);
      doubly_stochastic(m, table, step, n, iterations, newton);
      store<T, A>(ys + i * each, m, nullptr, each);
    }
  });
}

}  // namespace
