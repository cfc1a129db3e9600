// Floating types of tensors, and how they become numbers to compute with and back.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

enum Type { kAny = 0, kFloat = 1, kInt32 = 6, kInt64 = 7, kBool = 9, kHalf = 10, kDouble = 11, kBFloat = 16 };

struct Half { uint16_t bits; };
struct BFloat { uint16_t bits; };

template <class To, class From>
To cast_bits(From from) {
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat x) { return cast_bits<float>(uint32_t(x.bits) << 16); }
inline void narrow(float x, float& to) { to = x; }
inline void narrow(double x, double& to) { to = x; }
inline void narrow(float x, BFloat& to) {
  uint32_t bits = cast_bits<uint32_t>(x), even = bits + 0x7fff + ((bits >> 16) & 1);
  to.bits = uint16_t((x == x ? even : bits | 0x400000) >> 16);
}
#if defined(__FLT16_MAX__) && !defined(RESFX_SOFT_HALF)
inline float widen(Half x) { return float(cast_bits<_Float16>(x)); }
inline void narrow(float x, Half& to) { to = cast_bits<Half>(_Float16(x)); }
#else  // a compiler without the type
inline float widen(Half x) {
  float size = cast_bits<float>(uint32_t(x.bits & 0x7fff) << 13) * 5.192296858534828e33f;  // 2^112
  uint32_t bits = cast_bits<uint32_t>(size) | (size >= 65536.f ? 0x7f800000u : 0u);
  return cast_bits<float>(bits | uint32_t(x.bits & 0x8000) << 16);
}
inline void narrow(float x, Half& to) {
  uint32_t bits = cast_bits<uint32_t>(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  uint32_t normal = (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;
  uint32_t small = cast_bits<uint32_t>(cast_bits<float>(size) + 0.5f) - 0x3f000000;  // the adder rounds to 2^-24
  uint32_t out = size < 0x38800000 ? small : size < 0x477ff000 ? normal : size <= 0x7f800000 ? 0x7c00 : 0x7e00;
  to.bits = uint16_t(out | sign);
}
#endif

template <class T> struct TypeOf;
template <> struct TypeOf<float> { static constexpr Type value = kFloat; };
template <> struct TypeOf<double> { static constexpr Type value = kDouble; };
template <> struct TypeOf<Half> { static constexpr Type value = kHalf; };
template <> struct TypeOf<BFloat> { static constexpr Type value = kBFloat; };
template <class T> using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

}  // namespace
