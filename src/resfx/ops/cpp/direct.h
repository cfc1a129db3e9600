// Calls of the kernels without ONNX Runtime: a caller in the same process says where the tensors lie.
#pragma once

#include "types.h"

#include <cstddef>

struct DirectTensor {
  const void* data;  // null: an optional input that is absent
  int64_t type, rank;
  const int64_t* dims;
};

struct DirectResults {  // whoever calls makes room for what comes out
  void* (*make)(DirectResults* self, int64_t type, const int64_t* dims, size_t rank);
};

// Runs a kernel on inputs in one piece: null, or why it did not. `limit`: elements above which it is not to; 0: none.
using DirectFunction = const char* (*)(int64_t number, const DirectTensor* inputs, size_t count, const double* reals,
                                       const int64_t* wholes, size_t limit, DirectResults* results);
