// What the executor tells a listener about a running kernel. The race checker is the one listener there is; a library
// without it has no observer, and then none of this costs more than a test for null.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace simt {

// A place in a source file, taken where a function is called.
struct Site {
  const char* file;
  int line;
};

enum class Access : uint8_t {
  read,
  write,
  atomic,          // read-modify-write that no other atomic can divide
  async_write,     // an asynchronous copy was issued: until it is complete the bytes belong to it
  async_complete,  // it has landed, as a write of the thread that waited for it
  async_landed,    // it has landed, as a write at the time of issue, which an mbarrier publishes
};

// Memory that the observer must tell apart, as half-open ranges of addresses.
struct MemoryMap {
  const char* stacks_begin;  // the fibers' stacks: private to a thread
  const char* stacks_end;
  const char* shared_pool_begin;  // what surrounds the dynamic shared memory of a block, guard pages included
  const char* shared_pool_end;
};

class Observer {
 public:
  virtual void launch_begins(const MemoryMap& memory) = 0;
  virtual void block_begins(unsigned block, unsigned threads, const char* shared_begin, const char* shared_end) = 0;
  virtual void launch_ends() = 0;

  // Order in memory. Threads are numbered within the block.
  virtual void block_barrier() = 0;                                     // all live threads with one another
  virtual void synchronise(unsigned first_thread, uint32_t lanes) = 0;  // lanes of one warp with one another
  virtual void release(unsigned thread, const void* object) = 0;        // what came before is published here
  virtual void acquire(unsigned thread, const void* object) = 0;        // what was published here comes before
  virtual void forget(const void* object) = 0;                          // the object is new or starts afresh

  // An access that the compiler's instrumentation cannot see, made by a wrapper called at `site`.
  virtual void access(const void* address, size_t bytes, Access kind, Site site, unsigned thread) = 0;

 protected:
  ~Observer() = default;
};

// Null unless a checker is linked in, which sets it while the library is loaded.
__attribute__((visibility("hidden"))) extern Observer* observer;

// True while code of the executor runs, also on a fiber: its accesses are not the kernel's.
__attribute__((visibility("hidden"))) extern volatile bool in_executor;

// Marks a stretch of executor code.
class ExecutorScope {
 public:
  ExecutorScope() : outer_(in_executor) { in_executor = true; }
  ~ExecutorScope() { in_executor = outer_; }
  ExecutorScope(const ExecutorScope&) = delete;
  ExecutorScope& operator=(const ExecutorScope&) = delete;

 private:
  bool outer_;
};

// "file:line" of an instruction, by the debug information (addr2line); "module+offset" without.
std::string describe_code(const void* instruction);

}  // namespace simt
