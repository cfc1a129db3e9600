// What is used of ONNX Runtime's C interface, declared here, and one call of a kernel.
#pragma once

#include "types.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

struct Status;
struct Value;
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
enum Presence { kRequired = 0, kOptional = 1, kVariadic = 2 };
constexpr uint32_t kVersion = 17;

template <class R = Status*, class... Args>
R call(Api api, Slot slot, Args... args) {
  return reinterpret_cast<R (*)(Args...)>(api[slot])(args...);
}

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
  std::vector<float> real;     // attributes, in the record's order
  std::vector<int64_t> whole;
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
  // The i-th result. Only kernels that are called directly have several; those behind the first are of the wide type.
  template <class T>
  T* out(const Shape& shape, size_t i = 0) const {
    Value* value = nullptr;
    void* data = nullptr;
    check(kGetOutput, context, i, shape.data(), shape.size(), &value);
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

}  // namespace
