// CPU kernels of the fused operators of resfx for ONNX Runtime, 1.17 or later. Built by `python -m resfx kernels`.
//
// Needs no header of the runtime: its C interface is versioned and only ever appended to, so the slots used are
// declared here. One record per operator and type of its main tensors (float, double, float16, bfloat16); numbers per
// row and weights may have any of these. Sums run in float, or double for double. Every kernel makes one pass over
// memory: a row stays in the first-level cache between its loops. Loops are plain and left to the compiler's
// vectoriser; sums have many accumulators, so no flag that changes arithmetic is needed. Rows are shared out over the
// threads of the session.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace {

// ---- The runtime's interface ----------------------------------------------------------------------------------------

struct Status;
struct Value;
struct Info;
struct ShapeInfo;
struct KernelInfo;
struct Context;
struct Domain;
struct Options;
using Api = void* const*;  // a table of functions

struct ApiBase {
  Api (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

enum Slot {
  kCreateStatus = 0, kCreateCustomOpDomain = 26, kCustomOpDomainAdd = 27, kAddCustomOpDomain = 28,
  kGetTensorMutableData = 51, kGetTensorElementType = 60, kGetDimensionsCount = 61, kGetDimensions = 62,
  kGetTensorTypeAndShape = 65, kAttributeFloat = 85, kAttributeInt = 86, kGetInputCount = 88, kGetInput = 90,
  kGetOutput = 91, kReleaseStatus = 93, kReleaseShapeInfo = 99, kParallelFor = 274,
};
enum Type { kAny = 0, kFloat = 1, kInt32 = 6, kInt64 = 7, kBool = 9, kHalf = 10, kDouble = 11, kBFloat = 16 };
enum Presence { kRequired = 0, kOptional = 1, kVariadic = 2 };
constexpr uint32_t kVersion = 17;

template <class R = Status*, class... Args>
R call(Api api, Slot slot, Args... args) {
  return reinterpret_cast<R (*)(Args...)>(api[slot])(args...);
}

// ---- Types ----------------------------------------------------------------------------------------------------------

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

// ---- One call of a kernel -------------------------------------------------------------------------------------------

using Shape = std::vector<int64_t>;

struct Tensor {
  const void* data = nullptr;
  Type type = kAny;
  Shape shape;
  size_t count() const {
    size_t n = 1;
    for (int64_t s : shape) n *= size_t(s);
    return n;
  }
  size_t dim(int back) const { return size_t(shape.at(shape.size() - size_t(back))); }
  explicit operator bool() const { return data != nullptr; }
};

struct Op;
struct Kernel {
  const Op* op;
  Api api;
  float real[2] = {};
  int64_t whole[4] = {};
};

struct Call {
  const Kernel& kernel;
  Context* context;

  template <class... Args>
  void check(Slot slot, Args... args) const {
    if (Status* status = call<Status*>(kernel.api, slot, args...)) {
      call<void>(kernel.api, kReleaseStatus, status);
      throw std::runtime_error("ONNX Runtime refused function " + std::to_string(slot) + " of its interface");
    }
  }
  size_t inputs() const {
    size_t n = 0;
    check(kGetInputCount, static_cast<const Context*>(context), &n);
    return n;
  }
  Tensor in(size_t i) const {
    Tensor t;
    const Value* value = nullptr;
    if (i >= inputs()) return t;
    check(kGetInput, static_cast<const Context*>(context), i, &value);
    if (!value) return t;
    ShapeInfo* info = nullptr;
    size_t rank = 0;
    check(kGetTensorTypeAndShape, value, &info);
    check(kGetTensorElementType, static_cast<const ShapeInfo*>(info), &t.type);
    check(kGetDimensionsCount, static_cast<const ShapeInfo*>(info), &rank);
    t.shape.resize(rank);
    check(kGetDimensions, static_cast<const ShapeInfo*>(info), t.shape.data(), rank);
    call<void>(kernel.api, kReleaseShapeInfo, info);
    void* data = nullptr;
    check(kGetTensorMutableData, const_cast<Value*>(value), &data);
    static const char nothing = 0;
    t.data = data ? data : &nothing;
    return t;
  }
  // The inputs from `first` on: rows of one type.
  std::vector<Tensor> rest(size_t first) const {
    std::vector<Tensor> all;
    for (size_t i = first; i < inputs(); ++i) all.push_back(in(i));
    return all;
  }
  template <class T>
  T* out(const Shape& shape) const {
    Value* value = nullptr;
    void* data = nullptr;
    check(kGetOutput, context, size_t(0), shape.data(), shape.size(), &value);
    check(kGetTensorMutableData, value, &data);
    return static_cast<T*>(data);
  }
};

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

template <class T>
const T* rows_of(const Tensor& t) { return static_cast<const T*>(t.data); }

// The same of a list of tensors, which must have one shape.
template <class T>
std::vector<const T*> rows_of(const std::vector<Tensor>& all) {
  std::vector<const T*> rows;
  for (const Tensor& t : all) {
    require(t.shape == all[0].shape, "the tensors of a list must have one shape");
    rows.push_back(rows_of<T>(t));
  }
  return rows;
}

// A small tensor of any type as numbers to compute with.
template <class A>
std::vector<A> numbers(const Tensor& t) {
  std::vector<A> out(t.count());
  auto copy = [&](auto* from) {
    for (size_t i = 0; i < out.size(); ++i) out[i] = A(widen(from[i]));
  };
  if (!t) return {};
  if (t.type == kFloat) copy(static_cast<const float*>(t.data));
  else if (t.type == kDouble) copy(static_cast<const double*>(t.data));
  else if (t.type == kHalf) copy(static_cast<const Half*>(t.data));
  else if (t.type == kBFloat) copy(static_cast<const BFloat*>(t.data));
  else require(false, "a number per row or a weight must be of a floating type");
  return out;
}

// Numbers that are given per row, or once for all rows.
template <class A>
struct PerRow {
  std::vector<A> values;
  size_t step = 0;
  PerRow(const Tensor& t, size_t rows, size_t each) : values(numbers<A>(t)) {
    if (!t) return;
    require(values.size() == each || values.size() == rows * each, "weights fit neither one row nor all rows");
    step = values.size() == each ? 0 : each;
  }
  const A* operator()(size_t row) const { return values.data() + row * step; }
  explicit operator bool() const { return !values.empty(); }
};

// A row to compute with: itself where it has the wide type, else a copy in `room`.
template <class T, class A = Wide<T>>
const A* widened(const T* row, size_t n, A* room) {
  if constexpr (std::is_same_v<T, A>) {
    return row;
  } else {
    for (size_t i = 0; i < n; ++i) room[i] = widen(row[i]);
    return room;
  }
}

// body(first row, last row, scratch) over all rows, in pieces on the session's threads.
template <class A, class Body>
void over_rows(const Call& c, size_t rows, size_t cost, size_t scratch, Body body) {
  constexpr size_t kPiece = 1 << 15;  // elements worth waking a thread for
  size_t pieces = std::max<size_t>(1, std::min<size_t>({rows, 64, rows * cost / kPiece}));
  std::vector<A> room(pieces * scratch);
  auto piece = [&](size_t i) { body(rows * i / pieces, rows * (i + 1) / pieces, room.data() + i * scratch); };
  if (pieces == 1) return rows ? piece(0) : void();
  using Piece = decltype(piece);
  void (*run)(void*, size_t) = [](void* p, size_t i) { (*static_cast<Piece*>(p))(i); };
  c.check(kParallelFor, static_cast<const Context*>(c.context), run, pieces, size_t(0), static_cast<void*>(&piece));
}

// ---- Arithmetic -----------------------------------------------------------------------------------------------------

constexpr size_t kLanes = 32;

template <class A>
A total(const A* lanes) {
  A sum = 0;
  for (size_t l = 0; l < kLanes; ++l) sum += lanes[l];
  return sum;
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

// ---- Operators: what each computes is in the file of its record, resfx/ops/*_onnx.py ----------------------------------

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
  A scale = c.kernel.real[0];
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
  const A scale = c.kernel.real[0];
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

// inputs state (..., n, d), weights, unit?
template <class T>
void combine_channels(const Call& c) {
  using A = Wide<T>;
  Tensor state = c.in(0), given = c.in(1);
  size_t d = state.dim(1), n = state.dim(2), rows = n * d ? state.count() / (n * d) : 0;
  bool features = d != 1 && given.shape.size() == 2 && given.dim(1) == d;  // (n, d), else (..., n, 1)
  PerRow<A> weights(given, rows, features ? n * d : n);
  std::vector<A> unit = numbers<A>(c.in(2));
  size_t wide = features ? d : 1, lead = size_t(c.kernel.whole[0]);
  bool centred = c.kernel.whole[1];
  if (unit.empty()) unit = {A(1)};
  require(lead < n && (unit.size() == 1 || unit.size() == rows || unit.size() == wide), "weights and unit do not fit");
  Shape shape = state.shape;
  shape.erase(shape.end() - 2);
  T* ys = c.out<T>(shape);
  over_rows<A>(c, rows, n * d, n * d + 2 * d, [&](size_t row, size_t end, A* room) {
    A *sum = room + n * d, *excess = sum + d;
    for (size_t last = rows; row < end; ++row) {
      const A *w = weights(row), *x = widened(rows_of<T>(state) + row * n * d, n * d, room), *first = x + lead * d;
      if (centred) {
        if (last == rows || weights.step || unit.size() == rows)  // else as in the row before
          for (size_t i = 0; i < wide; ++i)
            excess[i] = pairs(w + i, n, wide) - unit[unit.size() == 1 ? 0 : features ? i : row];
        for (size_t i = 0; i < d; ++i) sum[i] = first[i] + excess[features ? i : 0] * first[i];
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
        else if (j != lead && features)
          for (size_t i = 0; i < d; ++i) sum[i] += wj[i] * (other[i] - first[i]);
        else if (j != lead)
          for (size_t i = 0; i < d; ++i) sum[i] += wj[0] * (other[i] - first[i]);
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
  size_t d = state.dim(1), n = state.dim(2), rows = n * d ? state.count() / (n * d) : 0;
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
  size_t d = state.dim(1), n = state.dim(2), rows = n * d ? state.count() / (n * d) : 0;
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

// inputs logits (..., n, n)
template <class T>
void sinkhorn(const Call& c) {
  using A = Wide<T>;
  Tensor logits = c.in(0);
  size_t n = logits.dim(1), each = n * n, count = each ? logits.count() / each : 0;
  require(logits.dim(2) == n, "logits must be square matrices");
  int64_t iterations = c.kernel.whole[0];
  T* ys = c.out<T>(logits.shape);
  over_rows<A>(c, count, each * size_t(2 * iterations + 4), each + 1, [&](size_t i, size_t end, A* m) {
    for (; i < end; ++i) {
      const T* x = rows_of<T>(logits) + i * each;
      for (size_t e = 0; e < each; ++e) m[e] = widen(x[e]);
      A top = *std::max_element(m, m + each);
      for (size_t e = 0; e < each; ++e) m[e] = exponential(std::max(m[e] - top, A(-40)));
      for (int64_t round = 0; round < iterations; ++round) {
        for (size_t column = 0; column < n; ++column) {
          A sum = 0;
          for (size_t row = 0; row < n; ++row) sum += m[row * n + column];
          for (size_t row = 0; row < n; ++row) m[row * n + column] /= sum;
        }
        for (size_t row = 0; row < n; ++row) {
          A sum = 0;
          for (size_t column = 0; column < n; ++column) sum += m[row * n + column];
          for (size_t column = 0; column < n; ++column) m[row * n + column] /= sum;
        }
      }
      store<T, A>(ys + i * each, m, nullptr, each);
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

// ---- Records --------------------------------------------------------------------------------------------------------

struct CustomOp {  // what the runtime reads of a record: version 17 of its layout
  uint32_t version;
  void* (*create)(const Op*, Api, const KernelInfo*);
  const char* (*name)(const Op*);
  const char* (*provider)(const Op*);
  Type (*input_type)(const Op*, size_t);
  size_t (*input_count)(const Op*);
  Type (*output_type)(const Op*, size_t);
  size_t (*output_count)(const Op*);
  void (*compute)(void*, Context*);
  void (*destroy)(void*);
  Presence (*input_presence)(const Op*, size_t);
  Presence (*output_presence)(const Op*, size_t);
  int (*input_memory)(const Op*, size_t);
  int (*least_inputs)(const Op*);
  int (*inputs_alike)(const Op*);
  int (*least_outputs)(const Op*);
  int (*outputs_alike)(const Op*);
  Status* (*create_or_fail)(const Op*, Api, const KernelInfo*, void**);
  Status* (*compute_or_fail)(void*, Context*);
  Status* (*infer_shape)(const Op*, void*);
  int (*since)(const Op*);
  int (*until)(const Op*);
};
static_assert(sizeof(CustomOp) == 176, "the layout of version 17");

struct Op : CustomOp {
  const char* label;
  Type type;           // of the main tensors
  const char* inputs;  // a letter each: T main, n numbers, b flags; with ? after it optional, with * any number
  std::vector<const char*> reals, wholes;
  void (*run)(const Call&);
};

// The i-th input of a description such as "TTnnn?T?": its letter and what follows it.
std::pair<char, Presence> input_of(const char* inputs, size_t i) {
  for (const char* p = inputs; *p; ++p) {
    Presence presence = p[1] == '?' ? kOptional : p[1] == '*' ? kVariadic : kRequired;
    if (i-- == 0) return {*p, presence};
    if (presence != kRequired) ++p;
  }
  return {'T', kRequired};
}

Status* failed(Api api, const std::exception& error) { return call<Status*>(api, kCreateStatus, 1, error.what()); }

Op record(const char* label, Type type, const char* inputs, std::vector<const char*> reals,
          std::vector<const char*> wholes, void (*run)(const Call&)) {
  Op op{};
  op.version = kVersion;
  op.name = [](const Op* o) { return o->label; };
  op.provider = [](const Op*) { return "CPUExecutionProvider"; };
  op.input_type = [](const Op* o, size_t i) {
    char letter = input_of(o->inputs, i).first;
    return letter == 'T' ? o->type : letter == 'b' ? kBool : kAny;
  };
  op.input_count = [](const Op* o) {
    return size_t(std::count_if(o->inputs, o->inputs + std::strlen(o->inputs), [](char c) { return c != '?' && c != '*'; }));
  };
  op.output_type = [](const Op* o, size_t) { return o->type; };
  op.output_count = [](const Op*) { return size_t(1); };
  op.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.input_presence = [](const Op* o, size_t i) { return input_of(o->inputs, i).second; };
  op.output_presence = [](const Op*, size_t) { return kRequired; };
  op.input_memory = [](const Op*, size_t) { return 0; };
  op.least_inputs = op.inputs_alike = op.least_outputs = op.outputs_alike = [](const Op*) { return 1; };
  op.since = [](const Op*) { return 1; };
  op.until = [](const Op*) { return 1; };
  op.create_or_fail = [](const Op* o, Api api, const KernelInfo* info, void** kernel) -> Status* {
    auto made = new Kernel{o, api};
    *kernel = made;
    Status* status = nullptr;
    for (size_t i = 0; i < o->reals.size() && !status; ++i)
      status = call<Status*>(api, kAttributeFloat, info, o->reals[i], &made->real[i]);
    for (size_t i = 0; i < o->wholes.size() && !status; ++i)
      status = call<Status*>(api, kAttributeInt, info, o->wholes[i], &made->whole[i]);
    return status;
  };
  op.compute_or_fail = [](void* kernel, Context* context) -> Status* {
    auto* k = static_cast<Kernel*>(kernel);
    try {
      k->op->run(Call{*k, context});
      return nullptr;
    } catch (const std::exception& error) {
      return failed(k->api, std::runtime_error(std::string("resfx::") + k->op->label + ": " + error.what()));
    }
  };
  op.label = label, op.type = type, op.inputs = inputs, op.reals = std::move(reals), op.wholes = std::move(wholes);
  op.run = run;
  return op;
}

template <class T>
void add_records(std::vector<Op>& to) {
  Type t = TypeOf<T>::value;
  to.push_back(record("DeltaShortcut", t, "TTnnn?T?", {"eps2"}, {"add"}, delta_shortcut<T>));
  to.push_back(record("WeightedSum", t, "nT?T*", {}, {}, weighted_sum<T>));
  to.push_back(record("AttentionRead", t, "nT?n?T*", {"eps"}, {"relative"}, attention_read<T>));
  to.push_back(record("WindowedAttentionRow", t, "TT*", {"scale"}, {}, windowed_attention_row<T>));
  to.push_back(record("WindowedAttention", t, "TTTb?", {"scale"}, {"window", "causal", "chunk"}, windowed_attention<T>));
  to.push_back(record("CombineChannels", t, "Tnn?", {}, {"lead", "centred"}, combine_channels<T>));
  to.push_back(record("MixChannels", t, "TTnn?", {}, {"unit"}, mix_channels<T>));
  to.push_back(record("DeltaWrite", t, "TTnnn?", {"eps2"}, {"add", "erase"}, delta_write<T>));
  to.push_back(record("Sinkhorn", t, "T", {}, {"iterations"}, sinkhorn<T>));
  to.push_back(record("ShortConvolution", t, "Tnn?T?", {}, {"silu"}, short_convolution<T>));
}

}  // namespace

extern "C" __attribute__((visibility("default"))) Status* RegisterCustomOps(Options* options, const ApiBase* base) {
  Api api = base->GetApi(kVersion);
  if (!api) return nullptr;  // older than 1.17: the runtime has said so
  static const std::vector<Op>& records = *[] {
    auto* all = new std::vector<Op>;
    add_records<float>(*all), add_records<double>(*all), add_records<Half>(*all), add_records<BFloat>(*all);
    return all;
  }();
  Domain* domain = nullptr;
  Status* status = call<Status*>(api, kCreateCustomOpDomain, "resfx", &domain);
  for (const Op& op : records)
    if (!status) status = call<Status*>(api, kCustomOpDomainAdd, domain, static_cast<const CustomOp*>(&op));
  return status ? status : call<Status*>(api, kAddCustomOpDomain, options, domain);
}
