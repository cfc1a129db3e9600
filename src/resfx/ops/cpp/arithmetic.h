// Sums, softmax and row operations in loops that a compiler vectorises.
#pragma once

#include "types.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

constexpr size_t kLanes = 32;

template <class A>
A total(A* lanes) {
  for (size_t half = kLanes / 2; half; half /= 2)
    for (size_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

// (a . a, a . b)
template <class A>
void products(const A* a, const A* b, size_t n, A& squares, A& dot) {
  A s[kLanes] = {}, p[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (size_t l = 0; l < kLanes; ++l) {
      s[l] += a[i + l] * a[i + l];
      p[l] += a[i + l] * b[i + l];
    }
  for (size_t l = 0; i + l < n; ++l) {
    s[l] += a[i + l] * a[i + l];
    p[l] += a[i + l] * b[i + l];
  }
  squares = total(s);
  dot = total(p);
}

template <class A>
A dot_of(const A* a, const A* b, size_t n) {
  A p[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (size_t l = 0; l < kLanes; ++l) p[l] += a[i + l] * b[i + l];
  for (size_t l = 0; i + l < n; ++l) p[l] += a[i + l] * b[i + l];
  return total(p);
}

// exp by a polynomial that vectorises; within 2 units in the last place, 0 below -87.
inline float exponential(float x) {
  float bounded = std::min(std::max(x, -87.f), 88.f);
  float n = std::rint(bounded * 1.44269504f);
  float r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.f;
  y *= cast_bits<float>(uint32_t(int32_t(n) + 127) << 23);
  return x < -87.f ? 0.f : x == x ? y : x;
}
inline double exponential(double x) { return std::exp(x); }

// The same result for the same number wherever it is called: no loop is vectorised around it.
template <class A>
__attribute__((noinline)) A sigmoid(A x) {
  return 1 / (1 + std::exp(-x));
}

// `factor` softmax: exactly 1 where all are equal and `factor` is their number.
template <class A>
void softmax(A* scores, size_t n, A factor = 1) {
  A top = *std::max_element(scores, scores + n), sum = 0;
  for (size_t i = 0; i < n; ++i) scores[i] = exponential(scores[i] - top);
  for (size_t i = 0; i < n; ++i) sum += scores[i];
  for (size_t i = 0; i < n; ++i) scores[i] = scores[i] * factor / sum;
}

// A sum in pairs: exact for a power of two of equal numbers.
template <class A>
A pairs(const A* x, size_t n, size_t step) {
  std::vector<A> level;
  for (size_t i = 0; i < n; ++i) level.push_back(x[i * step]);
  for (; level.size() > 1; level.resize((level.size() + 1) / 2))
    for (size_t i = 0; 2 * i < level.size(); ++i)
      level[i] = 2 * i + 1 < level.size() ? level[2 * i] + level[2 * i + 1] : level[2 * i];
  return level[0];
}

// to += weight * from; the first term replaces.
template <class T, class A>
void add_row(A* to, A weight, const T* from, size_t n, bool first) {
  if (first)
    for (size_t i = 0; i < n; ++i) to[i] = weight * widen(from[i]);
  else
    for (size_t i = 0; i < n; ++i) to[i] += weight * widen(from[i]);
}

// base + from, or from alone.
template <class T, class A>
void store(T* to, const A* from, const T* base, size_t n) {
  if (base)
    for (size_t i = 0; i < n; ++i) narrow(widen(base[i]) + from[i], to[i]);
  else
    for (size_t i = 0; i < n; ++i) narrow(from[i], to[i]);
}

}  // namespace
