// Problems in parts, on threads of this library.
//
// OpenMP gives each thread that calls oneDNN threads of its own, and XLA calls oneDNN from several. If
// they sleep in between, a small convolution takes less time than the system needs to wake them; if
// they don't, they take the cores from one another.

#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "plan.h"

// Of OpenMP's library, if oneDNN uses one.
extern "C" {
[[gnu::weak]] int omp_get_max_threads();
[[gnu::weak]] void omp_set_num_threads(int);
}

// While it exists, oneDNN stays on the thread that calls it.
class OneThread {
 public:
  static bool IsPossible() { return omp_get_max_threads && omp_set_num_threads; }
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }

 private:
  int before_;
};

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

// The cores that this process might use when it began; hardware_concurrency() may count the machine's.
inline unsigned Cores() {
  static const unsigned count = [] {
    cpu_set_t cores;
    if (sched_getaffinity(0, sizeof cores, &cores) == 0) return unsigned(CPU_COUNT(&cores));
    return std::thread::hardware_concurrency();
  }();
  return count;
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

// Calls of a function that threads share.
class Work {
 public:
  Work(const std::function<void(size_t)>& function, size_t count)
      : function_(function), count_(count) {}

  // Makes calls that no thread has begun, until there are none.
  void Take() {
    for (size_t i; (i = next_.fetch_add(1)) < count_;) {
      try {
        function_(i);
      } catch (...) {
        if (!failed_.exchange(true)) failure_ = std::current_exception();
      }
      done_.fetch_add(1);
    }
  }

  // Waits for all calls; throws what a call threw.
  void Wait() const {
    while (done_ < count_) std::this_thread::yield();
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  const std::function<void(size_t)>& function_;  // which exists until all calls have ended
  size_t count_;
  std::atomic<size_t> next_{0}, done_{0};
  std::atomic<bool> failed_{false};
  std::exception_ptr failure_;
};

// Threads that help with work, one fewer than the cores that the process may use. To wake a thread takes longer
// than a small convolution, so a thread waits awake for a while, for the convolution that follows.
// Threads of XLA's pool would do that, too, but they wait much longer, and all at once.
class Helpers {
 public:
  static Helpers& Get() {
    static auto* helpers = new Helpers;  // the threads need it until the process ends
    return *helpers;
  }

  void Call(std::shared_ptr<Work> work, size_t count) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      work_ = std::move(work);
    }
    ++number_;  // without the lock, or threads that are awake would fall asleep on it
    if (!asleep_) return;
    std::lock_guard<std::mutex> lock(mutex_);  // until a thread that was about to sleep does
    for (size_t i = 0; i < count; ++i) wake_.notify_one();
  }

 private:
  static constexpr auto kAwake = std::chrono::microseconds(50);

  Helpers() {
    try {
      for (unsigned i = 1; i < Cores(); ++i) std::thread([this] { Help(); }).detach();
    } catch (const std::system_error&) {  // the system has no more threads: fewer help
    }
  }

  void Help() {
    using Clock = std::chrono::steady_clock;
    for (uint64_t seen = 0;;) {
      auto ends = Clock::now() + kAwake;
      while (number_ == seen && Clock::now() < ends) std::this_thread::yield();
      std::unique_lock<std::mutex> lock(mutex_);
      if (number_ == seen) {
        ++asleep_;
        wake_.wait(lock, [&] { return number_ != seen; });
        --asleep_;
      }
      seen = number_;
      auto work = work_;
      lock.unlock();
      work->Take();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::shared_ptr<Work> work_;  // of the last call
  std::atomic<uint64_t> number_{0};  // of calls
  std::atomic<int> asleep_{0};
};

// Calls f(0), …, f(count - 1) on this thread and on the helpers. Only calls that have begun are waited
// for, so that threads that sleep, or are busy, hold nothing up.
inline void ForEach(size_t count, const std::function<void(size_t)>& function) {
  auto work = std::make_shared<Work>(function, count);
  if (count > 1) Helpers::Get().Call(work, count - 1);
  work->Take();
  work->Wait();
}
