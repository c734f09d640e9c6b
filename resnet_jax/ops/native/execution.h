// Runs the parts of a problem.
//
// A core reads what another core has just written much more slowly than its own memory, and threads wait
// for one another to allocate memory. So the objects that oneDNN takes are kept from call to call, and
// each thread has its own scratchpad and reorders kernels for itself.

#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "parts.h"
#include "plan.h"
#include "threads.h"

inline void FillWithNaN(void* data, size_t bytes) {
  if (bytes) std::memset(data, 0xFF, bytes);
}

// The arrays of a call. For a sum, `y` holds the other summand before.
struct Arrays {
  void *x, *kernel, *y, *bias;
};

// Memory that stays with a thread, for a scratchpad and for a reordered kernel.
class OwnMemory {
 public:
  enum Use { kScratchpad, kKernel };

  static bool Fits(const memory::desc& description) { return description.get_size() <= kBytes; }

  static void* Get(Use use) {
    thread_local OwnMemory own;
    return static_cast<char*>(own.data_) + use * kBytes;
  }

 private:
  static constexpr size_t kBytes = 1 << 18;

  OwnMemory() : data_(std::aligned_alloc(4096, 2 * kBytes)) {
    if (!data_) throw std::bad_alloc();
  }
  ~OwnMemory() { std::free(data_); }

  void* data_;
};

// Computes one of the three arrays from the others. With `poison`, memory that a kernel must write
// before it reads it, or must write at all, is filled with NaN first, so that mistakes show.
class Execution {
 public:
  Execution(const Key& key, const Call& call, const Arrays& arrays, bool poison)
      : kind_(static_cast<Kind>(key[0])),
        key_(key),
        call_(call),
        plan_(call.parts[0].plan),
        arrays_(arrays),
        poison_(poison) {}

  // With `packed`, the kernel has the layout that oneDNN chooses.
  void Run(bool packed = false) {
    if (poison_ && !key_[3]) FillResultWithNaN();
    auto bound = call_.bound->Take(call_.parts);
    size_t count = call_.parts.size();
    bool gradient = kind_ == kKernelGradient, reorders = plan_.reorders && !gradient && !packed;
    bool shares = reorders && count * plan_.blocked_kernel.get_size() > kCopiesBytes;
    // Large memory is allocated here, not by several threads. Null is for memory of the thread's own.
    std::vector<void*> kernels(count, arrays_.kernel), scratchpads(count, nullptr);
    for (size_t i = 0; i < count; ++i) {
      if (gradient && (plan_.reorders || i > 0)) kernels[i] = Allocate(plan_.blocked_kernel);
      if (reorders && !shares) kernels[i] = AllocateIfLarge(plan_.blocked_kernel);
      scratchpads[i] = AllocateIfLarge(call_.parts[i].plan.scratchpad);
    }
    if (shares) {
      kernels.assign(count, Allocate(plan_.blocked_kernel));
      Reorder((*bound)[0], arrays_.kernel, kernels[0]);
    }
    ForEach(count, [&](size_t i) {
      RunPart(i, (*bound)[i], kernels[i], reorders && !shares, scratchpads[i]);
    });
    if (gradient) {
      ForEach(count, [&](size_t i) { Add(kernels, i); });
      if (plan_.reorders) Reorder((*bound)[0], kernels[0], arrays_.kernel);
    }
    call_.bound->Return(std::move(bound));
  }

  // Reorders the kernel into the layout that oneDNN chooses.
  void Pack(void* packed) const {
    auto bound = call_.bound->Take(call_.parts);
    Reorder((*bound)[0], arrays_.kernel, packed);
    call_.bound->Return(std::move(bound));
  }

 private:
  // Of reordered kernels. More than that doesn't fit caches, and threads share one.
  static constexpr size_t kCopiesBytes = 1 << 25;

  static dnnl::stream& Stream() {
    thread_local dnnl::stream stream(Engine());
    return stream;
  }

  static void* Offset(void* data, int64_t elements, bool bfloat16) {
    return static_cast<char*>(data) + elements * (bfloat16 ? 2 : 4);
  }

  // Adds all gradients of the kernel, float32, to the first one: one of as many sections of them.
  void Add(const std::vector<void*>& kernels, size_t section) const {
    size_t size = plan_.blocked_kernel.get_size() / sizeof(float), count = kernels.size();
    size_t first = section * size / count, last = (section + 1) * size / count;
    auto* sums = static_cast<float*>(kernels[0]);
    for (size_t i = 1; i < count; ++i) {
      auto* terms = static_cast<const float*>(kernels[i]);
      for (size_t at = first; at < last; ++at) sums[at] += terms[at];
    }
  }

  // Memory until the end of this call.
  void* Allocate(const memory::desc& description) {
    allocated_.emplace_back(description, Engine());
    void* data = allocated_.back().get_data_handle();
    if (poison_) FillWithNaN(data, description.get_size());
    return data;
  }

  // Null if a thread's own memory is large enough.
  void* AllocateIfLarge(const memory::desc& description) {
    return OwnMemory::Fits(description) ? nullptr : Allocate(description);
  }

  void* OfThread(OwnMemory::Use use, const memory::desc& description) const {
    void* data = OwnMemory::Get(use);
    if (poison_) FillWithNaN(data, description.get_size());
    return data;
  }

  void FillResultWithNaN() const {
    Problem p(key_);
    const auto& shape = kind_ == kForward ? p.y : kind_ == kInputGradient ? p.x : p.kernel;
    size_t size = key_[1] ? 2 : 4;
    for (auto length : shape) size *= length;
    FillWithNaN(kind_ == kForward         ? arrays_.y
                : kind_ == kInputGradient ? arrays_.x
                                          : arrays_.kernel,
                size);
  }

  // With `reorders`, the given kernel is reordered into `kernel` first. `kernel` and `scratchpad` are
  // null for memory of the thread's own.
  void RunPart(size_t i, Bound& bound, void* kernel, bool reorders, void* scratchpad) const {
    std::optional<OneThread> guard;
    if (call_.on_one_thread) guard.emplace();
    const Part& part = call_.parts[i];
    if (!kernel) kernel = OfThread(OwnMemory::kKernel, plan_.blocked_kernel);
    if (reorders) Reorder(bound, arrays_.kernel, kernel);
    if (!scratchpad) scratchpad = OfThread(OwnMemory::kScratchpad, part.plan.scratchpad);
    bound.image.set_data_handle(Offset(arrays_.x, part.x, key_[1]));
    bound.features.set_data_handle(Offset(arrays_.y, part.y, key_[1]));
    bound.bias.set_data_handle(arrays_.bias);
    bound.kernel.set_data_handle(kernel);
    bound.scratchpad.set_data_handle(scratchpad);
    part.plan.primitive.execute(Stream(), bound.arguments);
    Stream().wait();
  }

  void Reorder(Bound& bound, void* from, void* to) const {
    std::optional<OneThread> guard;
    if (call_.on_one_thread) guard.emplace();
    bound.reorder_from.set_data_handle(from);
    bound.reorder_to.set_data_handle(to);
    plan_.reorder.execute(Stream(), bound.reorder_arguments);
    Stream().wait();
  }

  Kind kind_;
  const Key& key_;
  const Call& call_;
  const Plan& plan_;
  Arrays arrays_;
  bool poison_;
  std::vector<memory> allocated_;
};
