#include "common/parallel.h"

#include <pthread.h>

#include <algorithm>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace sturdy {
namespace {

// One job at a time: a call that finds the pool busy (from another thread, or from inside a body) runs alone.
class Pool {
 public:
  explicit Pool(int32_t threads) {
    for (int32_t i = 1; i < threads; ++i) {
      workers_.emplace_back([this] { work(); });
    }
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) {
      worker.join();
    }
  }

  void run(int64_t n, int64_t grain, sturdy_body body, void* arg) {
    const int64_t most = static_cast<int64_t>(workers_.size() + 1) * 4;  // four pieces a thread even out a slow one
    const int64_t piece = std::max<int64_t>(std::max<int64_t>(grain, 1), (n + most - 1) / most);
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (workers_.empty() || piece >= n || !turn.owns_lock()) {
      body(arg, 0, n);
      return;
    }
    auto job = std::make_shared<Job>(n, piece, body, arg);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = job;
      ++generation_;
    }
    wake_.notify_all();
    job->drain();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [&] { return job->covered.load(std::memory_order_acquire) == n; });
    job_.reset();
  }

 private:
  struct Job {
    Job(int64_t n, int64_t piece, sturdy_body body, void* arg) : n(n), piece(piece), body(body), arg(arg) {}

    // Takes pieces until none is left; true if this call finished the last one.
    bool drain() {
      for (;;) {
        const int64_t begin = next.fetch_add(piece, std::memory_order_relaxed);
        if (begin >= n) {
          return false;
        }
        const int64_t end = std::min(n, begin + piece);
        body(arg, begin, end);
        if (covered.fetch_add(end - begin, std::memory_order_acq_rel) + (end - begin) == n) {
          return true;
        }
      }
    }

    const int64_t n;
    const int64_t piece;
    const sturdy_body body;
    void* const arg;
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> covered{0};
  };

  void work() {
    uint64_t seen = 0;
    for (;;) {
      std::shared_ptr<Job> job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return stopping_ || generation_ != seen; });
        if (stopping_) {
          return;
        }
        seen = generation_;
        job = job_;  // kept alive by this reference, even when the caller has gone on
      }
      if (job != nullptr && job->drain()) {
        std::lock_guard<std::mutex> lock(mutex_);
        done_.notify_all();
      }
    }
  }

  std::vector<std::thread> workers_;
  std::mutex turn_;   // held by the call that uses the workers
  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  std::condition_variable done_;
  std::shared_ptr<Job> job_;
  uint64_t generation_ = 0;
  bool stopping_ = false;
};

std::mutex pool_mutex;
std::shared_ptr<Pool>& pool = *new std::shared_ptr<Pool>;  // never destroyed: at exit its threads may be gone already
int32_t wanted_threads = 0;                                // 0: as many as the machine has

// A forked child has the pool object but none of its threads: forget it (its threads cannot be joined), make a new one
// at the next call. The mutex is held across the fork so that the child finds it in a known state.
void before_fork() { pool_mutex.lock(); }
void after_fork_parent() { pool_mutex.unlock(); }
void after_fork_child() {
  new std::shared_ptr<Pool>(std::move(pool));  // leaked on purpose
  pool.reset();
  pool_mutex.unlock();
}

std::shared_ptr<Pool> current_pool() {
  static const bool registered = pthread_atfork(before_fork, after_fork_parent, after_fork_child) == 0;
  (void)registered;
  std::lock_guard<std::mutex> lock(pool_mutex);
  if (pool == nullptr) {
    const int32_t machine = std::max<int32_t>(1, static_cast<int32_t>(std::thread::hardware_concurrency()));
    pool = std::make_shared<Pool>(wanted_threads > 0 ? wanted_threads : machine);
  }
  return pool;
}

}  // namespace

void pool_parallel_for(void* /*unused*/, int64_t n, int64_t grain, sturdy_body body, void* arg) {
  std::shared_ptr<Pool> threads;
  try {
    threads = current_pool();
  } catch (...) {
    body(arg, 0, n);  // no thread to be had: the work is done all the same
    return;
  }
  threads->run(n, grain, body, arg);
}

void set_pool_threads(int32_t n) {
  std::shared_ptr<Pool> old;  // joined outside the lock, when its last user is done
  std::lock_guard<std::mutex> lock(pool_mutex);
  wanted_threads = n;
  old.swap(pool);
}

int32_t pool_threads() {
  std::lock_guard<std::mutex> lock(pool_mutex);
  const int32_t machine = std::max<int32_t>(1, static_cast<int32_t>(std::thread::hardware_concurrency()));
  return wanted_threads > 0 ? wanted_threads : machine;
}

}  // namespace sturdy
