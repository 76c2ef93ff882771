// Memory for numbers: blocks that begin as zeros, carved from large aligned pieces which outlive the call they were made for.
// Invariant: a block overlaps no other that is in use; what is kept between calls is bounded.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <utility>
#include <vector>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace ff {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool RECYCLED = false;  // every block by itself, so that a read beyond its end is seen
#else
constexpr bool RECYCLED = true;
#endif

// A piece of memory. The pages of a new one must be cleared by the system, a call's worth of training long for small
// models: so pieces are kept for later calls, KEPT bytes at most.
class Piece {
 public:
  static constexpr size_t LARGE = size_t(2) << 20, KEPT = size_t(64) << 20;

  Piece() = default;
  explicit Piece(size_t wanted) : bytes(wanted) {
    if (RECYCLED) {
      std::unique_lock<std::mutex> hold(free_ones().guard, std::try_to_lock);  // not waited for: a fork may have left it locked
      if (hold)
        for (auto& one : free_ones().list)
          if (one.second == bytes) {
            p = one.first;
            one = free_ones().list.back();
            free_ones().list.pop_back();
            free_ones().kept -= bytes;
            return;
          }
    }
    const bool large = RECYCLED && bytes % LARGE == 0;
    p = (char*)aligned_alloc(large ? LARGE : 64, bytes);
    if (!p) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (large) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  }
  Piece(const Piece&) = delete;
  Piece(Piece&& o) noexcept : p(std::exchange(o.p, nullptr)), bytes(o.bytes) {}
  Piece& operator=(Piece&& o) noexcept {
    std::swap(p, o.p);
    std::swap(bytes, o.bytes);
    return *this;
  }
  ~Piece() {
    if (p && RECYCLED) {
      std::unique_lock<std::mutex> hold(free_ones().guard, std::try_to_lock);
      if (hold && free_ones().kept + bytes <= KEPT && free_ones().list.size() < free_ones().list.capacity()) {
        free_ones().list.emplace_back(p, bytes);
        free_ones().kept += bytes;
        return;
      }
    }
    free(p);
  }

  char* p = nullptr;
  size_t bytes = 0;

 private:
  struct Free {
    std::mutex guard;
    std::vector<std::pair<char*, size_t>> list;
    size_t kept = 0;
    Free() { list.reserve(64); }
  };
  static Free& free_ones() {
    static Free* one = new Free;  // never destroyed: threads may end after it would be
    return *one;
  }
};

// Blocks of one owner, which end with it
class Blocks {
 public:
  float* block(int64_t floats) {  // aligned, zero
    if (floats < 0 || floats > (int64_t(1) << 37)) throw std::bad_alloc();
    const size_t bytes = ((size_t)floats * sizeof(float) + 127) / 64 * 64;
    if (!RECYCLED || used + bytes > (pieces.empty() ? 0 : pieces.back().bytes)) {
      pieces.emplace_back(RECYCLED ? (bytes + Piece::LARGE - 1) / Piece::LARGE * Piece::LARGE : bytes);
      used = 0;
    }
    char* out = pieces.back().p + used;
    used += bytes;
    memset(out, 0, bytes);
    return (float*)out;
  }

 private:
  std::vector<Piece> pieces;
  size_t used = 0;  // bytes of the last one
};

}  // namespace ff
