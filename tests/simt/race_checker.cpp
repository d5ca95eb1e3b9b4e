// Finds data races, uninitialised reads and out-of-bounds accesses of shared memory in kernels that executor.hpp runs.
//
// Kernel files are compiled with -fsanitize=thread, which makes the compiler call __tsan_read4(address) and the like
// before every load and store, but are not linked with the sanitizer's own runtime: the calls come here, where blocks,
// warps and barriers are known. This file and the executor are compiled without that flag.
//
// Two accesses race when at least one writes, not both are atomic, and nothing orders them: no block barrier,
// __syncwarp, named barrier or mbarrier leads from one to the other. Order is computed exactly (vector clocks), from
// the synchronisation that the program did, not from the turns that the executor happened to give: a race is found even
// when this run's result is right. Threads of different blocks are never ordered.
#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "executor.hpp"
#include "shadow_memory.hpp"
#include "vector_clock.hpp"

namespace simt {
namespace {

thread_local volatile char thread_local_anchor;  // touching it makes the thread-local block of the library exist

struct AddressRange {
  uintptr_t begin = 0;
  uintptr_t end = 0;

  bool contains(uintptr_t address) const { return address >= begin && address < end; }
};

AddressRange range_of(const void* begin, const void* end) {
  return {reinterpret_cast<uintptr_t>(begin), reinterpret_cast<uintptr_t>(end)};
}

// Where this library's thread-local variables lie for the calling thread: that is where static __shared__ arrays are.
AddressRange thread_local_block() {
  thread_local_anchor = 1;
  struct Search {
    uintptr_t code;
    AddressRange found;
  } search{reinterpret_cast<uintptr_t>(&thread_local_block), {}};
  dl_iterate_phdr(
      [](dl_phdr_info* module, size_t, void* argument) {
        Search& s = *static_cast<Search*>(argument);
        bool is_this_library = false;
        size_t thread_local_bytes = 0;
        for (int i = 0; i < module->dlpi_phnum; ++i) {
          const auto& segment = module->dlpi_phdr[i];
          const uintptr_t begin = module->dlpi_addr + segment.p_vaddr;
          is_this_library |= segment.p_type == PT_LOAD && s.code >= begin && s.code < begin + segment.p_memsz;
          thread_local_bytes += segment.p_type == PT_TLS ? segment.p_memsz : 0;
        }
        if (is_this_library && module->dlpi_tls_data != nullptr) {
          const auto begin = reinterpret_cast<uintptr_t>(module->dlpi_tls_data);
          s.found = {begin, begin + thread_local_bytes};
        }
        return is_this_library ? 1 : 0;
      },
      &search);
  return search.found;
}

enum class Space { dynamic_shared, static_shared, global };

struct Finding {
  std::string what;
  Space space;
  uintptr_t address;  // in dynamic shared memory: the offset
  uint32_t block;
  uint32_t thread;
  Place place;
  bool has_other;
  const char* other_did;
  uint32_t other_block;
  uint32_t other_thread;
  Place other_place;
};

class RaceChecker final : public Observer {
 public:
  RaceChecker() {
    time_.resize(VectorClock::max_threads);
    clocks_.resize(VectorClock::max_threads);
    observer = this;
  }

  // ---- The program

  void launch_begins(const MemoryMap& memory) override {
    launch_++;
    stacks_ = range_of(memory.stacks_begin, memory.stacks_end);
    shared_pool_ = range_of(memory.shared_pool_begin, memory.shared_pool_end);
    static_shared_ = thread_local_block();
    shadow_.trim();
  }

  void block_begins(unsigned block, unsigned threads, const char* shared_begin, const char* shared_end) override {
    block_ = block;
    threads_ = threads;
    shared_ = range_of(shared_begin, shared_end);
    epoch_ = 1;
    std::fill(time_.begin(), time_.end(), 1);
    objects_.clear();
    forget_this_epoch();
  }

  void launch_ends() override {}

  void block_barrier() override {
    epoch_++;
    forget_this_epoch();
  }

  void synchronise(unsigned first_thread, uint32_t lanes) override {
    VectorClock& common = scratch_clock_;
    common.clear();
    for_each_lane(first_thread, lanes, [&](unsigned thread) {
      common.join(clocks_[thread]);
      common.learn(thread, time_[thread]);
    });
    for_each_lane(first_thread, lanes, [&](unsigned thread) {
      clocks_[thread].join(common);
      time_[thread]++;
    });
  }

  void release(unsigned thread, const void* object) override {
    std::unique_ptr<PublishedClock>& published = objects_[object];
    if (published == nullptr) {
      published = std::make_unique<PublishedClock>();
    }
    if (published->epoch != epoch_) {
      published->epoch = epoch_;
      published->clock.clear();
    }
    published->clock.join(clocks_[thread]);
    published->clock.learn(thread, time_[thread]);
    time_[thread]++;
  }

  void acquire(unsigned thread, const void* object) override {
    const auto found = objects_.find(object);
    if (found != objects_.end() && found->second->epoch == epoch_) {
      clocks_[thread].join(found->second->clock);
    }
  }

  void forget(const void* object) override { objects_.erase(object); }

  void access(const void* address, size_t bytes, Access kind, Site site, unsigned thread) override {
    check(reinterpret_cast<uintptr_t>(address), bytes, kind, place_of(site), thread);
  }

  // A load or store that the compiler reported, by the thread whose turn it is.
  void instrumented_access(const void* pointer, size_t bytes, Access kind, const void* return_address) {
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    // Only fibers run kernels: other threads of the process may be in instrumented host code meanwhile.
    if (!stacks_.contains(reinterpret_cast<uintptr_t>(__builtin_frame_address(0))) || stacks_.contains(address)) {
      return;
    }
    check(address, bytes, kind, reinterpret_cast<Place>(return_address) - 1, current_thread);
  }

  // ---- The findings

  int count() const { return static_cast<int>(findings_.size()); }

  std::string report() const {
    constexpr size_t max_lines = 20;
    std::string text;
    for (size_t i = 0; i < findings_.size() && i < max_lines; ++i) {
      text += describe(findings_[i]) + "\n";
    }
    if (findings_.size() > max_lines) {
      text += "... and " + std::to_string(findings_.size() - max_lines) + " more\n";
    }
    return text;
  }

  void reset() {
    findings_.clear();
    seen_.clear();
  }

 private:
  struct PublishedClock {
    uint32_t epoch = 0;
    VectorClock clock;
  };

  template <typename Visit>
  static void for_each_lane(unsigned first_thread, uint32_t lanes, const Visit& visit) {
    for (; lanes != 0; lanes &= lanes - 1) {
      visit(first_thread + static_cast<unsigned>(__builtin_ctz(lanes)));
    }
  }

  // Everything up to a block barrier comes before everything after it; what was known in between is not needed.
  void forget_this_epoch() {
    for (unsigned thread = 0; thread < threads_; ++thread) {
      clocks_[thread].clear();
    }
    reader_lists_used_ = 0;
  }

  // Call sites are numbered: small numbers, which no instruction has as its address.
  Place place_of(Site site) {
    const auto key = std::make_pair(site.file, site.line);
    const auto found = site_numbers_.find(key);
    if (found != site_numbers_.end()) {
      return found->second;
    }
    sites_.push_back(site);
    const Place number = sites_.size();
    site_numbers_.emplace(key, number);
    return number;
  }

  std::string describe_place(Place place) const {
    if (place <= sites_.size()) {
      const Site& site = sites_[place - 1];
      return std::string(site.file) + ":" + std::to_string(site.line);
    }
    return describe_code(reinterpret_cast<const void*>(place));
  }

  // ---- One access

  void check(uintptr_t address, size_t bytes, Access kind, Place place, unsigned thread) {
    Space space = Space::global;
    if (shared_pool_.contains(address)) {
      space = Space::dynamic_shared;
      if (address < shared_.begin || address + bytes > shared_.end) {
        out_of_bounds(address, bytes, kind, place, thread);
      }
    } else if (static_shared_.contains(address)) {
      space = Space::static_shared;
    }
    const uint64_t generation = space == Space::global ? launch_ : block_serial();
    shadow_.for_each_cell(address, bytes, [&](Cell& cell, uintptr_t cell_address) {
      if (cell.generation != generation) {
        cell = Cell{};
        cell.generation = generation;
      }
      const Current now{space, cell_address, place, thread};
      switch (kind) {
        case Access::read:
          check_read(cell, now, false);
          add_reader(cell, now);
          break;
        case Access::write:
          check_write(cell, now, WriteKind::plain, "write");
          break;
        case Access::atomic:
          check_read(cell, now, true);
          check_write(cell, now, WriteKind::atomic, "atomic");
          break;
        case Access::async_write:
          check_write(cell, now, WriteKind::unfinished_copy, "asynchronous write");
          break;
        case Access::async_complete:
          cell.write = {place, block_, epoch_, time_[thread], static_cast<uint16_t>(thread), WriteKind::plain};
          break;
        case Access::async_landed:
          cell.write.kind = WriteKind::plain;
          break;
      }
    });
  }

  struct Current {
    Space space;
    uintptr_t address;
    Place place;
    unsigned thread;
  };

  bool comes_before(const LastWrite& write, unsigned thread) const {
    return write.block == block_ &&
           (write.thread == thread || write.epoch < epoch_ || clocks_[thread].knows(write.thread, write.time));
  }

  void check_read(const Cell& cell, const Current& now, bool is_atomic) {
    const LastWrite& write = cell.write;
    if (write.kind == WriteKind::none) {
      if (now.space != Space::global) {
        add_finding("uninitialised read", now, nullptr, 0, 0, 0);
      }
    } else if (write.kind == WriteKind::unfinished_copy) {
      add_finding("read of an asynchronous copy that was not waited for", now, "copy issued", write.block, write.thread,
                  write.place);
    } else if (!is_atomic && !comes_before(write, now.thread)) {
      add_finding("race: read", now, "write", write.block, write.thread, write.place);
    }
  }

  void check_write(Cell& cell, const Current& now, WriteKind kind, const char* did) {
    const LastWrite& write = cell.write;
    const bool both_atomic = kind == WriteKind::atomic && write.kind == WriteKind::atomic;
    if (write.kind == WriteKind::unfinished_copy && kind != WriteKind::atomic) {
      add_finding(std::string(did) + " over an asynchronous copy that was not waited for", now, "copy issued",
                  write.block, write.thread, write.place);
    } else if (write.kind != WriteKind::none && write.kind != WriteKind::unfinished_copy && !both_atomic &&
               !comes_before(write, now.thread)) {
      add_finding(std::string("race: ") + did, now, "write", write.block, write.thread, write.place);
    }
    if (cell.foreign.place != 0) {
      add_finding(std::string("race: ") + did, now, "read", cell.foreign.block, cell.foreign.thread,
                  cell.foreign.place);
    }
    if (cell.readers.lanes != 0) {
      if (cell.readers_block != block_) {
        const unsigned reader = cell.readers.warp * 32 + static_cast<unsigned>(__builtin_ctz(cell.readers.lanes));
        add_finding(std::string("race: ") + did, now, "read", cell.readers_block, reader, cell.readers.place);
      } else if (cell.readers_epoch == epoch_) {
        check_write_after(cell.readers, now, did);
        if (cell.more_readers != 0) {
          for (const Readers& readers : reader_lists_[cell.more_readers - 1]) {
            check_write_after(readers, now, did);
          }
        }
      }
    }
    cell.write = {now.place, block_, epoch_, time_[now.thread], static_cast<uint16_t>(now.thread), kind};
    cell.readers.lanes = 0;
    cell.more_readers = 0;
    cell.foreign.place = 0;
  }

  void check_write_after(const Readers& readers, const Current& now, const char* did) {
    for_each_lane(readers.warp * 32, readers.lanes, [&](unsigned reader) {
      if (reader != now.thread && !clocks_[now.thread].knows(reader, readers.time)) {
        add_finding(std::string("race: ") + did, now, "read", block_, reader, readers.place);
      }
    });
  }

  void add_reader(Cell& cell, const Current& now) {
    const Readers reader{now.place, time_[now.thread], 1u << now.thread % 32, now.thread / 32};
    if (cell.readers.lanes != 0 && cell.readers_block != block_) {
      cell.foreign = {cell.readers.place, cell.readers_block,
                      cell.readers.warp * 32 + static_cast<unsigned>(__builtin_ctz(cell.readers.lanes))};
      cell.readers.lanes = 0;
    }
    if (cell.readers.lanes == 0 || cell.readers_epoch != epoch_) {  // those of an older epoch come before any write
      cell.readers_block = block_;
      cell.readers_epoch = epoch_;
      cell.readers = reader;
      cell.more_readers = 0;
      return;
    }
    if (same_group(cell.readers, reader)) {
      cell.readers.lanes |= reader.lanes;
      return;
    }
    if (cell.more_readers == 0) {
      if (reader_lists_used_ == reader_lists_.size()) {
        reader_lists_.emplace_back();
      }
      reader_lists_[reader_lists_used_].clear();
      cell.more_readers = static_cast<uint32_t>(++reader_lists_used_);
    }
    std::vector<Readers>& list = reader_lists_[cell.more_readers - 1];
    for (Readers& group : list) {
      if (same_group(group, reader)) {
        group.lanes |= reader.lanes;
        return;
      }
    }
    list.push_back(reader);
  }

  static bool same_group(const Readers& a, const Readers& b) { return a.warp == b.warp && a.time == b.time; }

  // ---- Findings

  // One for each pair of places, however many threads and addresses are concerned.
  void add_finding(const std::string& what, const Current& now, const char* other_did, uint32_t other_block,
                   uint32_t other_thread, Place other_place) {
    if (!seen_.emplace(what, now.place, other_place).second) {
      return;
    }
    const uintptr_t address = now.space == Space::dynamic_shared ? now.address - shared_.begin : now.address;
    findings_.push_back({what, now.space, address, block_, now.thread, now.place, other_did != nullptr,
                         other_did != nullptr ? other_did : "", other_block, other_thread, other_place});
  }

  std::string describe(const Finding& finding) const {
    char where[100];
    if (finding.space == Space::dynamic_shared) {
      snprintf(where, sizeof where, "byte %td of dynamic shared memory", static_cast<ptrdiff_t>(finding.address));
    } else {
      snprintf(where, sizeof where, "%s memory at %#lx", finding.space == Space::global ? "global" : "static shared",
               static_cast<unsigned long>(finding.address));
    }
    std::string text = finding.what + " (" + where + ") by thread " + std::to_string(finding.thread) + " of block " +
                       std::to_string(finding.block) + " at " + describe_place(finding.place);
    if (finding.has_other) {
      text += std::string(", not ordered with the ") + finding.other_did + " by thread " +
              std::to_string(finding.other_thread) + " of block " + std::to_string(finding.other_block) + " at " +
              describe_place(finding.other_place);
    }
    return text;
  }

  // The access must not take place: it would fall on the executor's own bytes.
  [[noreturn]] void out_of_bounds(uintptr_t address, size_t bytes, Access kind, Place place, unsigned thread) {
    const Current now{Space::dynamic_shared, address, place, thread};
    add_finding("out-of-bounds shared access", now, nullptr, 0, 0, 0);
    const std::string text = std::string("out-of-bounds shared ") + (kind == Access::read ? "read" : "write") +
                             ": byte " + std::to_string(static_cast<ptrdiff_t>(address - shared_.begin)) + " to " +
                             std::to_string(static_cast<ptrdiff_t>(address + bytes - shared_.begin)) + " of " +
                             std::to_string(shared_.end - shared_.begin) + " bytes of dynamic shared memory";
    if (place <= sites_.size()) {
      fail_at(text, "asynchronous copy or atomic", sites_[place - 1]);
    }
    fail_at_instruction(text, reinterpret_cast<const void*>(place));
  }

  struct SiteHash {
    size_t operator()(const std::pair<const char*, int>& site) const {
      return std::hash<const void*>()(site.first) * 31 + static_cast<size_t>(site.second);
    }
  };

  AddressRange stacks_, shared_pool_, shared_, static_shared_;
  uint64_t launch_ = 0;
  uint32_t block_ = 0;
  uint32_t threads_ = 0;
  uint32_t epoch_ = 1;
  std::vector<uint32_t> time_;       // of each thread
  std::vector<VectorClock> clocks_;  // what each thread knows of the others, within the epoch
  VectorClock scratch_clock_;
  std::unordered_map<const void*, std::unique_ptr<PublishedClock>> objects_;
  ShadowMemory shadow_;
  std::vector<std::vector<Readers>> reader_lists_;
  size_t reader_lists_used_ = 0;
  std::vector<Site> sites_;
  std::unordered_map<std::pair<const char*, int>, Place, SiteHash> site_numbers_;
  std::vector<Finding> findings_;
  std::set<std::tuple<std::string, Place, Place>> seen_;
};

RaceChecker checker;

}  // namespace

// Called by tsan_hooks.cpp for each load and store of instrumented code.
void instrumented_access(const void* address, size_t bytes, Access kind, const void* return_address) {
  if (in_executor) {
    return;
  }
  const ExecutorScope scope;
  checker.instrumented_access(address, bytes, kind, return_address);
}

}  // namespace simt

// ---- What tests call. Not while a kernel runs.
// --------------------------------------------------------------------------

#define STURDY_SIMT_EXPORT extern "C" __attribute__((visibility("default")))

// How many findings there are since the last reset: one for each pair of places in the source.
STURDY_SIMT_EXPORT int sturdy_simt_race_count() { return simt::checker.count(); }

// One line for each; valid until the next call.
STURDY_SIMT_EXPORT const char* sturdy_simt_race_report() {
  static std::string text;
  text = simt::checker.report();
  return text.c_str();
}

STURDY_SIMT_EXPORT void sturdy_simt_race_reset() { simt::checker.reset(); }
