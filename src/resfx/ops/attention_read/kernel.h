// A softmax read over depth. What it computes is in record.py beside this file.
#pragma once

#include "arithmetic.h"
#include "runtime.h"

namespace {

template <class T, class A = Wide<T>>
void read_sources(const Call& c, const std::vector<A>& query, const std::vector<A>& gate) {
  Tensor base = c.in(1);
  std::vector<Tensor> given = c.rest(3);
  std::vector<const T*> sources = rows_of<T>(given);
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

// inputs query, base?, gate?, sources...
template <class T>
void attention_read(const Call& c) {
  using A = Wide<T>;
  read_sources<T>(c, numbers<A>(c.in(0)), numbers<A>(c.in(2)));
}

// inputs query, base?, gain, sources...
template <class T>
void gained_read(const Call& c) {
  using A = Wide<T>;
  std::vector<A> query = numbers<A>(c.in(0)), gain = numbers<A>(c.in(2));
  require(query.size() == gain.size(), "query and gain must have one size");
  for (size_t i = 0; i < query.size(); ++i) query[i] *= gain[i];
  read_sources<T>(c, query, std::vector<A>());
}

}  // namespace
