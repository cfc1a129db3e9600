// CPU kernels of the fused operators of resfx: for ONNX Runtime, 1.17 or later, and for small calls of the operators
// themselves. Built by `python -m resfx kernels`.
//
// The kernels are in the operators' folders, resfx/ops/*/kernel.h. operators.h, which includes them and lists them with
// the inputs and attributes that record.py beside each says, is written when this is built.
//
// Needs no header of the runtime: its C interface is versioned and only ever appended to, so the slots used are
// declared here. One record per operator and type of its main tensors (float, double, float16, bfloat16); numbers per
// row and weights may have any of these. Sums run in float, or double for double. Every kernel makes one pass over
// memory: a row stays in the first-level cache between its loops. Loops are plain and left to the compiler's
// vectoriser; sums have many accumulators, so no flag that changes arithmetic is needed. Rows are shared out over the
// threads of the session.

#include "runtime.h"

#include <cstring>

namespace {

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
  bool node;  // of ONNX Runtime's graphs; others are called directly alone
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
          std::vector<const char*> wholes, void (*run)(const Call&), bool node) {
  Op op{};
  op.version = kVersion;
  op.name = [](const Op* o) { return o->label; };
  op.provider = [](const Op*) { return "CPUExecutionProvider"; };
  op.input_type = [](const Op* o, size_t i) {
    char letter = input_of(o->inputs, i).first;
    return letter == 'T' ? o->type : letter == 'b' ? kBool : kAny;
  };
  op.input_count = [](const Op* o) {
    const char* end = o->inputs + std::strlen(o->inputs);
    return size_t(std::count_if(o->inputs, end, [](char c) { return c != '?' && c != '*'; }));
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
    auto made = new Kernel{o, api, std::vector<float>(o->reals.size()), std::vector<int64_t>(o->wholes.size())};
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
  op.run = run, op.node = node;
  return op;
}

}  // namespace

#include "caller.h"
#include "operators.h"  // template <class T> void add_records(std::vector<Op>& to)

namespace {

constexpr size_t kTypes = 4;

// All kernels of one type, then all of the next.
const std::vector<Op>& records() {
  static const std::vector<Op>& all = *[] {
    auto* made = new std::vector<Op>;
    add_records<float>(*made), add_records<double>(*made), add_records<Half>(*made), add_records<BFloat>(*made);
    return made;
  }();
  return all;
}

}  // namespace

#define RESFX_EXPORT extern "C" __attribute__((visibility("default")))

RESFX_EXPORT Status* RegisterCustomOps(Options* options, const ApiBase* base) {
  Api api = base->GetApi(kVersion);
  if (!api) return nullptr;  // older than 1.17: the runtime has said so
  Domain* domain = nullptr;
  Status* status = call<Status*>(api, kCreateCustomOpDomain, "resfx", &domain);
  for (const Op& op : records())
    if (op.node && !status) status = call<Status*>(api, kCustomOpDomainAdd, domain, static_cast<const CustomOp*>(&op));
  return status ? status : call<Status*>(api, kAddCustomOpDomain, options, domain);
}

// The number of a kernel among those of one type; -1 where there is none of that name.
RESFX_EXPORT int64_t resfx_find(const char* label) {
  size_t each = records().size() / kTypes;
  for (size_t i = 0; i < each; ++i)
    if (!std::strcmp(records()[i].label, label)) return int64_t(i);
  return -1;
}

RESFX_EXPORT const char* resfx_call(int64_t number, const DirectTensor* inputs, size_t count, const double* reals,
                                    const int64_t* wholes, size_t limit, DirectResults* results) {
  const Op* first = &records()[size_t(number)];
  Type type = main_type(*first, inputs, count, limit);
  size_t each = records().size() / kTypes;
  for (size_t i = 0; i < kTypes; ++i, first += each)
    if (first->type == type) {
      DirectCall call{inputs, count, type, results, {}};
      return call_directly(*first, call, reals, wholes);
    }
  return "its inputs are not this kernel's";
}
static_assert(std::is_same_v<DirectFunction, decltype(&resfx_call)>);
