// What the race checker remembers about each piece of memory.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <unordered_map>

namespace simt {

// Where an access stands in the program: the instruction, or for a wrapper the call site (as a number, see
// RaceChecker).
using Place = uintptr_t;

enum class WriteKind : uint8_t { none, plain, atomic, unfinished_copy };

struct LastWrite {
  Place place;
  uint32_t block;
  uint32_t epoch;  // number of block barriers before it
  uint32_t time;   // of the thread, see VectorClock
  uint16_t thread;
  WriteKind kind;
};

// Lanes of one warp that read at the same time.
struct Readers {
  Place place;
  uint32_t time;
  uint32_t lanes;  // 0: nobody
  uint32_t warp;
};

// Some reader in a block that ran before.
struct ForeignReader {
  Place place;  // 0: none
  uint32_t block;
  uint32_t thread;
};

// All zero means: never accessed. `generation` says of which launch (global memory) or block (shared memory) the rest
// tells; older contents count as never accessed.
struct Cell {
  uint64_t generation;
  LastWrite write;
  uint32_t readers_block;  // of the readers since the last write:
  uint32_t readers_epoch;
  Readers readers;
  uint32_t more_readers;  // 1 + the number of a list with further ones, 0: no list
  ForeignReader foreign;
};

// Cells for all of memory, made page by page. A page starts with a cell for each four bytes; the first access to less
// splits it, so that float32 kernels pay for a quarter of what bytes would cost.
class ShadowMemory {
 public:
  // Calls visit(cell, address) for the cells of the bytes [address, address + bytes).
  template <typename Visit>
  void for_each_cell(uintptr_t address, size_t bytes, const Visit& visit) {
    const uintptr_t end = address + bytes;
    unsigned shift = coarsest_shift;
    while (((address | bytes) & ((uintptr_t{1} << shift) - 1)) != 0) {
      --shift;
    }
    while (address < end) {
      Page& page = page_of(address);
      if (page.shift > shift) {
        split(page, shift);
      }
      const uintptr_t page_end = (address | (page_bytes - 1)) + 1;
      const uintptr_t stop = end < page_end ? end : page_end;
      const uintptr_t step = uintptr_t{1} << page.shift;
      for (; address < stop; address += step) {
        visit(page.cells[(address & (page_bytes - 1)) >> page.shift], address);
      }
    }
  }

  // Forgets everything if it has grown large. Between launches only.
  void trim() {
    if (bytes_ < max_bytes) {
      return;
    }
    for (auto& entry : pages_) {
      free(entry.second.cells);
    }
    pages_.clear();
    memset(recent_, 0, sizeof recent_);
    bytes_ = 0;
  }

 private:
  static constexpr size_t page_bytes = 4096;
  static constexpr unsigned coarsest_shift = 2;
  static constexpr size_t max_bytes = size_t{512} << 20;
  static constexpr size_t recent_pages = 256;

  struct Page {
    Cell* cells = nullptr;
    unsigned shift = coarsest_shift;
  };
  struct RecentPage {
    uintptr_t number;
    Page* page;
  };

  Cell* make_cells(unsigned shift) {
    const size_t count = page_bytes >> shift;
    auto* cells = static_cast<Cell*>(calloc(count, sizeof(Cell)));
    if (cells == nullptr) {
      abort();  // a test machine without memory; there is nobody to tell
    }
    bytes_ += count * sizeof(Cell);
    return cells;
  }

  Page& page_of(uintptr_t address) {
    const uintptr_t number = address / page_bytes;
    RecentPage& recent = recent_[number % recent_pages];
    if (recent.page == nullptr || recent.number != number) {
      Page& page = pages_[number];
      if (page.cells == nullptr) {
        page.cells = make_cells(page.shift);
      }
      recent = {number, &page};  // stays where it is: the map never moves its elements
    }
    return *recent.page;
  }

  void split(Page& page, unsigned shift) {
    Cell* finer = make_cells(shift);
    for (size_t i = 0; i < page_bytes >> shift; ++i) {
      finer[i] = page.cells[i >> (page.shift - shift)];
    }
    bytes_ -= (page_bytes >> page.shift) * sizeof(Cell);
    free(page.cells);
    page.cells = finer;
    page.shift = shift;
  }

  std::unordered_map<uintptr_t, Page> pages_;
  RecentPage recent_[recent_pages] = {};
  size_t bytes_ = 0;
};

}  // namespace simt
