// A kernel called directly: in the place of ONNX Runtime's table of functions, one of our own.
#pragma once

#include "direct.h"
#include "runtime.h"

namespace {

struct DirectCall {
  const DirectTensor* inputs;
  size_t count;
  Type main;
  DirectResults* results;
  DirectTensor made;
};

// Functions in the places that `Slot` names, of the same signatures; a status of null is success.
const std::vector<void*>& direct_table() {
  static const std::vector<void*> table = [] {
    std::vector<void*> t(kParallelFor + 1);
    auto put = [&](Slot slot, auto* function) { t[slot] = reinterpret_cast<void*>(function); };
    put(kGetInputCount, +[](const Context* c, size_t* n) -> Status* {
      *n = reinterpret_cast<const DirectCall*>(c)->count;
      return nullptr;
    });
    put(kGetInput, +[](const Context* c, size_t i, const Value** value) -> Status* {
      const DirectTensor& input = reinterpret_cast<const DirectCall*>(c)->inputs[i];
      *value = input.data ? reinterpret_cast<const Value*>(&input) : nullptr;
      return nullptr;
    });
    put(kGetTensorTypeAndShape, +[](const Value* value, ShapeInfo** info) -> Status* {
      *info = reinterpret_cast<ShapeInfo*>(const_cast<Value*>(value));
      return nullptr;
    });
    put(kGetTensorElementType, +[](const ShapeInfo* info, Type* type) -> Status* {
      *type = Type(reinterpret_cast<const DirectTensor*>(info)->type);
      return nullptr;
    });
    put(kGetDimensionsCount, +[](const ShapeInfo* info, size_t* rank) -> Status* {
      *rank = size_t(reinterpret_cast<const DirectTensor*>(info)->rank);
      return nullptr;
    });
    put(kGetDimensions, +[](const ShapeInfo* info, int64_t* dims, size_t rank) -> Status* {
      std::copy_n(reinterpret_cast<const DirectTensor*>(info)->dims, rank, dims);
      return nullptr;
    });
    put(kReleaseShapeInfo, +[](ShapeInfo*) {});
    put(kGetTensorMutableData, +[](Value* value, void** data) -> Status* {
      *data = const_cast<void*>(reinterpret_cast<DirectTensor*>(value)->data);
      return nullptr;
    });
    put(kGetOutput, +[](Context* c, size_t i, const int64_t* dims, size_t rank, Value** value) -> Status* {
      auto* call = reinterpret_cast<DirectCall*>(c);
      Type type = i == 0 || call->main == kDouble ? call->main : kFloat;  // all but the first are of the wide type
      call->made = {call->results->make(call->results, type, dims, rank), type, 0, nullptr};
      *value = reinterpret_cast<Value*>(&call->made);
      return nullptr;
    });
    put(kParallelFor, +[](const Context*, void (*run)(void*, size_t), size_t n, size_t, void* body) -> Status* {
      for (size_t i = 0; i < n; ++i) run(body, i);
      return nullptr;
    });
    return t;
  }();
  return table;
}

// The type of the main tensors; `kAny` where these are not inputs of the kernel, or it should not take them.
Type main_type(const Op& op, const DirectTensor* inputs, size_t count, size_t limit) {
  Type main = kAny;
  size_t size = 0;
  for (size_t i = 0; i < count; ++i) {
    const DirectTensor& t = inputs[i];
    if (!t.data) continue;
    char letter = input_of(op.inputs, i).first;
    if ((t.type == kBool) != (letter == 'b')) return kAny;
    if (letter != 'T') continue;
    if (main != kAny && t.type != main) return kAny;
    main = Type(t.type);
    size_t n = 1;
    for (int64_t r = 0; r < t.rank; ++r) n *= size_t(t.dims[r]);
    size += n;
  }
  return size == 0 || (limit && size > limit) ? kAny : main;
}

const char* call_directly(const Op& op, DirectCall& call, const double* reals, const int64_t* wholes) {
  static thread_local std::string failure;
  Kernel kernel{&op, direct_table().data(), {reals, reals + op.reals.size()}, {wholes, wholes + op.wholes.size()}};
  try {
    op.run(Call{kernel, reinterpret_cast<Context*>(&call)});
    return nullptr;
  } catch (const std::exception& error) {
    failure = error.what();
    return failure.c_str();
  }
}

}  // namespace
