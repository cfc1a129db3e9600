// Calls of the kernels without ONNX Runtime: a caller in the same process says where the tensors lie.
#pragma once

#include "runtime.h"

namespace {

struct Direct {  // one tensor; what the kernels take for a value and for what is known of its shape
  void* data;
  int64_t type, rank;
  const int64_t* dims;
};

struct DirectCall {
  std::vector<Direct> inputs;
  void* out;
  int64_t room;  // elements there
  Direct result;
};

// Functions in the places that `Slot` names, of the same signatures; a status of null is success.
const std::vector<void*>& direct_table() {
  static const std::vector<void*> table = [] {
    std::vector<void*> t(kParallelFor + 1);
    auto put = [&](Slot slot, auto* function) { t[slot] = reinterpret_cast<void*>(function); };
    put(kGetInputCount, +[](const Context* c, size_t* n) -> Status* {
      *n = reinterpret_cast<const DirectCall*>(c)->inputs.size();
      return nullptr;
    });
    put(kGetInput, +[](const Context* c, size_t i, const Value** value) -> Status* {
      const Direct& input = reinterpret_cast<const DirectCall*>(c)->inputs[i];
      *value = input.data ? reinterpret_cast<const Value*>(&input) : nullptr;
      return nullptr;
    });
    put(kGetTensorTypeAndShape, +[](const Value* value, ShapeInfo** info) -> Status* {
      *info = reinterpret_cast<ShapeInfo*>(const_cast<Value*>(value));
      return nullptr;
    });
    put(kGetTensorElementType, +[](const ShapeInfo* info, Type* type) -> Status* {
      *type = Type(reinterpret_cast<const Direct*>(info)->type);
      return nullptr;
    });
    put(kGetDimensionsCount, +[](const ShapeInfo* info, size_t* rank) -> Status* {
      *rank = size_t(reinterpret_cast<const Direct*>(info)->rank);
      return nullptr;
    });
    put(kGetDimensions, +[](const ShapeInfo* info, int64_t* dims, size_t rank) -> Status* {
      std::copy_n(reinterpret_cast<const Direct*>(info)->dims, rank, dims);
      return nullptr;
    });
    put(kReleaseShapeInfo, +[](ShapeInfo*) {});
    put(kGetTensorMutableData, +[](Value* value, void** data) -> Status* {
      *data = reinterpret_cast<Direct*>(value)->data;
      return nullptr;
    });
    put(kGetOutput, +[](Context* c, size_t, const int64_t* dims, size_t rank, Value** value) -> Status* {
      auto* call = reinterpret_cast<DirectCall*>(c);
      int64_t count = 1;
      for (size_t i = 0; i < rank; ++i) count *= dims[i];
      require(count == call->room, "the result has another size than the caller made room for");
      call->result = {call->out, 0, 0, nullptr};
      *value = reinterpret_cast<Value*>(&call->result);
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

// `words`: how many inputs; of each its address (0: absent), type, rank and sizes; the address and size of the result.
const char* call_directly(const Op& op, const int64_t* words, const float* reals, const int64_t* wholes) {
  static thread_local std::string failure;
  DirectCall call;
  for (int64_t n = *words++; n; --n) {
    call.inputs.push_back({reinterpret_cast<void*>(words[0]), words[1], words[2], words + 3});
    words += 3 + words[2];
  }
  call.out = reinterpret_cast<void*>(words[0]);
  call.room = words[1];
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
