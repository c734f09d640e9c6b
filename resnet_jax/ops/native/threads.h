// Threads of this library.
//
// OpenMP gives each thread that calls oneDNN threads of its own, and XLA calls oneDNN from several. If
// they sleep in between, a small convolution takes less time than the system needs to wake them; if
// they don't, they take the cores from one another.

#pragma once

#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

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

// The cores that this process might use when it began; hardware_concurrency() may count the machine's.
inline unsigned Cores() {
  static const unsigned count = [] {
    cpu_set_t cores;
    if (sched_getaffinity(0, sizeof cores, &cores) == 0) return unsigned(CPU_COUNT(&cores));
    return std::thread::hardware_concurrency();
  }();
  return count;
}

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
