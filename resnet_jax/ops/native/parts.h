// Problems in parts, on the threads of XLA's pool.
//
// OpenMP's threads, which oneDNN uses by itself, would compete with XLA's for the cores, and a small
// convolution takes less time than the system needs to wake one of them.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "plan.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

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

// Those parts of a problem, if oneDNN has kernels for all of them that take the same kernel, or else
// the whole problem, for which oneDNN uses threads of its own.
struct Call {
  std::vector<Part> parts;
  bool on_one_thread = false;
};

inline Call MakeCall(const Key& key, int64_t threads) {
  Call whole{{Part{key, 0, 0, MakePlan(Problem(key))}}};
  if (threads < 1 || !OneThread::IsPossible()) return whole;
  OneThread guard;
  try {
    Call split{Split(key, threads), true};
    for (auto& part : split.parts) {
      part.plan = MakePlan(Problem(part.key));
      if (part.plan.blocked_kernel != split.parts[0].plan.blocked_kernel) return whole;
    }
    return split.parts.empty() ? whole : split;
  } catch (const std::exception&) {
    return whole;
  }
}

// How a problem is computed on so many threads of XLA's, or on oneDNN's own (0); decided once in a
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

// Calls f(0), …, f(count - 1) on this thread and on those of XLA's pool. Only calls that have begun
// are waited for, so that threads that sleep, or are busy, hold nothing up.
template <class F>
void ForEach(ffi::ThreadPool* pool, size_t count, const F& f) {
  struct Work {
    const F& f;
    size_t count;
    std::atomic<size_t> next{0}, done{0};
    std::exception_ptr failure;  // of the call that set `failed`
    std::atomic<bool> failed{false};
    Work(const F& f, size_t count) : f(f), count(count) {}

    void Take() {
      for (size_t i; (i = next.fetch_add(1)) < count;) {
        try {
          f(i);
        } catch (...) {
          if (!failed.exchange(true)) failure = std::current_exception();
        }
        done.fetch_add(1);
      }
    }
  };
  auto work = std::make_shared<Work>(f, count);
  for (size_t i = 1; pool && i < count; ++i) pool->Schedule([work] { work->Take(); });
  work->Take();
  while (work->done < count) std::this_thread::yield();
  if (work->failure) std::rethrow_exception(work->failure);
}
