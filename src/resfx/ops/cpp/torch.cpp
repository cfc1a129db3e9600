// The kernels as one operator of torch, by its stable interface: built once, it serves any torch from 2.10 on.
//
// It knows nothing of any kernel. Where they lie, in a library of their own, it is told with every call.

#define TORCH_TARGET_VERSION (((0ULL + 2) << 56) | ((0ULL + 10) << 48))

#include "direct.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

namespace {

using torch::stable::Tensor;

const std::pair<int32_t, Type> kPairs[] = {
    {aoti_torch_dtype_float32(), kFloat}, {aoti_torch_dtype_bfloat16(), kBFloat}, {aoti_torch_dtype_float16(), kHalf},
    {aoti_torch_dtype_float64(), kDouble}, {aoti_torch_dtype_bool(), kBool}, {aoti_torch_dtype_int64(), kInt64},
    {aoti_torch_dtype_int32(), kInt32},
};

struct Made : DirectResults {
  std::vector<Tensor> tensors;
};

void* make(DirectResults* self, int64_t type, const int64_t* dims, size_t rank) {
  int32_t dtype = 0;
  for (auto [there, here] : kPairs)
    if (here == type) dtype = there;
  std::vector<int64_t> strides(rank, 1);
  for (size_t i = rank; i-- > 1;) strides[i - 1] = strides[i] * dims[i];
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      int64_t(rank), dims, strides.data(), dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return static_cast<Made*>(self)->tensors.emplace_back(handle).data_ptr();
}

// What a kernel is to know of a tensor, which is brought into one piece; false for one that no kernel can read.
bool describe(Tensor& t, DirectTensor& to) {
  int32_t dtype = 0, layout = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(t.get(), &layout));
  if (!t.is_cpu() || layout != aoti_torch_layout_strided()) return false;
  if (!t.is_contiguous()) t = torch::stable::contiguous(t);
  int64_t* dims = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(t.get(), &dims));
  for (auto [there, here] : kPairs)
    if (there == dtype) {
      to = {t.data_ptr(), here, t.dim(), dims};
      return to.data != nullptr;
    }
  return false;
}

// The results of kernel `number`; none where it did not run, and torch is to compute them.
std::vector<Tensor> run(int64_t function, int64_t number, std::vector<std::optional<Tensor>> given,
                        std::vector<double> reals, std::vector<int64_t> wholes, int64_t limit) {
  std::vector<DirectTensor> inputs(given.size(), DirectTensor{});
  for (size_t i = 0; i < given.size(); ++i)
    if (given[i] && !describe(*given[i], inputs[i])) return {};
  Made made;
  made.make = make;
  auto call = reinterpret_cast<DirectFunction>(function);
  const char* refused =
      call(number, inputs.data(), inputs.size(), reals.data(), wholes.data(), size_t(limit), &made);
  return refused ? std::vector<Tensor>() : std::move(made.tensors);
}

}  // namespace

STABLE_TORCH_LIBRARY(resfx_native, m) {
  m.def("run(int function, int number, Tensor?[] given, float[] reals, int[] wholes, int limit) -> Tensor[]");
}

// For any device: tensors of others are refused as those of other types are.
STABLE_TORCH_LIBRARY_IMPL(resfx_native, CompositeExplicitAutograd, m) { m.impl("run", TORCH_BOX(&run)); }
