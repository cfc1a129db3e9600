// A weighted sum over depth. What it computes is in record.py beside this file.
#pragma once

#include "arithmetic.h"
#include "runtime.h"

namespace {

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

}  // namespace
