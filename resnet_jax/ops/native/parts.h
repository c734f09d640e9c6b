// Problems in parts, each for one thread.

#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "plan.h"
#include "threads.h"

// A part of a problem: some images, or some rows of the features, computed by one thread.
struct Part {
  Key key;
  int64_t x = 0, y = 0;  // elements before the part's in the images and in the features
  Plan plan;
};

// The part of rows [first, last) of the features of image `image`.
inline Part RowsOf(const Key& whole, int64_t image, int64_t first, int64_t last) {
  Problem p(whole);
  int64_t reach = (p.kernel[0] - 1) * p.dilation[0] + 1;
  int64_t top = first * p.strides[0] - p.padding[0];
  int64_t bottom = (last - 1) * p.strides[0] - p.padding[0] + reach;
  int64_t from = std::max<int64_t>(top, 0), to = std::min(bottom, p.x[1]);
  if (to <= from) throw dnnl::error(dnnl_unimplemented, "rows of padding only");
  Part part{whole};
  part.key[5] = part.key[13] = 1;
  part.key[6] = to - from;
  part.key[14] = last - first;
  part.key[19] = from - top;
  part.key[20] = bottom - to;
  part.x = (image * p.x[1] + from) * p.x[2] * p.x[3];
  part.y = (image * p.y[1] + first) * p.y[2] * p.y[3];
  return part;
}

// The part of images [first, last).
inline Part ImagesOf(const Key& whole, int64_t first, int64_t last) {
  Problem p(whole);
  Part part{whole};
  part.key[5] = part.key[13] = last - first;
  part.x = first * p.x[1] * p.x[2] * p.x[3];
  part.y = first * p.y[1] * p.y[2] * p.y[3];
  return part;
}

// Multiply-adds that are worth another thread: those of some microseconds.
constexpr int64_t kLeastWork = 1 << 18;
// Pixels of the features that are worth another gradient of the kernel, to be added to the others.
constexpr int64_t kLeastPixels = 64;

// The parts of a problem for so many threads; none where they would leave most of them idle.
inline std::vector<Part> Split(const Key& key, int64_t threads) {
  Problem p(key);
  int64_t n = p.x[0];
  if (n == 0) return {};
  int64_t work = p.kernel[0] * p.kernel[1] * p.kernel[2];
  for (auto size : p.y) work *= size;
  int64_t count = std::min(threads, std::max<int64_t>(work / kLeastWork, 1));
  int64_t wanted = count;
  int64_t most = p.kind == kKernelGradient ? n * p.y[1] * p.y[2] / kLeastPixels : n;
  std::vector<Part> parts;
  if (n >= count || p.kind != kForward) {
    count = std::clamp<int64_t>(count, 1, std::clamp<int64_t>(most, 1, n));
    for (int64_t i = 0; i < count; ++i)
      parts.push_back(ImagesOf(key, i * n / count, (i + 1) * n / count));
  } else {
    int64_t bands = std::min((count + n - 1) / n, p.y[1]);
    for (int64_t image = 0; image < n; ++image)
      for (int64_t i = 0; i < bands; ++i)
        parts.push_back(RowsOf(key, image, i * p.y[1] / bands, (i + 1) * p.y[1] / bands));
  }
  if (2 * static_cast<int64_t>(parts.size()) <= wanted) parts.clear();
  return parts;
}

// The objects that oneDNN takes for a part, whose addresses are set at each call.
struct Bound {
  memory image, features, bias, kernel, scratchpad, reorder_from, reorder_to;
  std::unordered_map<int, memory> arguments, reorder_arguments;

  explicit Bound(const Part& part) {
    const Plan& plan = part.plan;
    auto without_memory = [](const memory::desc& d) { return memory(d, Engine(), nullptr); };
    image = without_memory(plan.image);
    features = without_memory(plan.features);
    bias = without_memory(plan.bias);
    kernel = without_memory(plan.blocked_kernel);
    scratchpad = without_memory(plan.scratchpad);
    auto kind = part.key[0];
    if (kind == kForward) {
      arguments = {{DNNL_ARG_SRC, image}, {DNNL_ARG_WEIGHTS, kernel}, {DNNL_ARG_DST, features}};
      arguments.insert({DNNL_ARG_BIAS, bias});
    } else if (kind == kInputGradient) {
      arguments = {{DNNL_ARG_DIFF_SRC, image}, {DNNL_ARG_WEIGHTS, kernel},
                   {DNNL_ARG_DIFF_DST, features}};
    } else {
      arguments = {{DNNL_ARG_SRC, image}, {DNNL_ARG_DIFF_WEIGHTS, kernel},
                   {DNNL_ARG_DIFF_DST, features}};
    }
    arguments.insert({DNNL_ARG_SCRATCHPAD, scratchpad});
    bool to_blocked = kind != kKernelGradient;
    reorder_from = without_memory(to_blocked ? plan.kernel : plan.blocked_kernel);
    reorder_to = without_memory(to_blocked ? plan.blocked_kernel : plan.kernel);
    reorder_arguments = {{DNNL_ARG_FROM, reorder_from}, {DNNL_ARG_TO, reorder_to},
                         {DNNL_ARG_SCRATCHPAD, memory(plan.reorder_scratchpad, Engine())}};
  }
};

// The objects of all parts. Each call takes some for itself; there are as many as there were calls at
// the same time.
class BoundParts {
 public:
  using Parts = std::unique_ptr<std::vector<Bound>>;

  Parts Take(const std::vector<Part>& parts) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return std::make_unique<std::vector<Bound>>(parts.begin(), parts.end());
    Parts taken = std::move(free_.back());
    free_.pop_back();
    return taken;
  }

  void Return(Parts parts) {
    std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(parts));
  }

 private:
  std::mutex mutex_;
  std::vector<Parts> free_;
};

// Those parts of a problem, if oneDNN has kernels for all of them that take the same kernel, or else
// the whole problem, for which oneDNN uses threads of its own.
struct Call {
  std::vector<Part> parts;
  bool on_one_thread = false;
  std::unique_ptr<BoundParts> bound = std::make_unique<BoundParts>();
};

inline Call MakeCall(const Key& key, int64_t threads) {
  Call whole;
  whole.parts.push_back({key, 0, 0, MakePlan(Problem(key))});
  if (threads < 1 || !OneThread::IsPossible()) return whole;
  OneThread guard;
  try {
    Call split{Split(key, threads), true};
    for (auto& part : split.parts) {
      part.plan = MakePlan(Problem(part.key));
      if (part.plan.blocked_kernel != split.parts[0].plan.blocked_kernel) return whole;
    }
    if (!split.parts.empty()) return split;
  } catch (const std::exception&) {  // the whole problem
  }
  return whole;
}

// How a problem is computed on so many threads, or on oneDNN's own (0); decided once in a
// process. Throws where oneDNN has no kernel for it.
inline const Call& FindCall(const Key& key, int64_t threads) {
  static std::mutex mutex;
  static std::map<std::pair<Key, int64_t>, Call> calls;
  std::lock_guard<std::mutex> lock(mutex);
  auto found = calls.find({key, threads});
  if (found == calls.end())
    found = calls.emplace(std::make_pair(key, threads), MakeCall(key, threads)).first;
  return found->second;
}

// As FindCall for as many threads as there are cores: the same for all who share a packed kernel.
inline const Call& FindPackedCall(const Key& key) { return FindCall(key, Cores()); }
