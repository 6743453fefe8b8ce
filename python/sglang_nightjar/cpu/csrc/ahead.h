// Rows of the KV cache on their way to the processor while others are computed with.
//
// A slot's keys and values are a few cache lines somewhere in memory, which the processor can't foresee. Asked for one
// block at a time, as fast as it goes, they fill the core's buffers and the computation stands still; asked for when
// they are needed, memory stands still. So they are asked for a row at a time, in step with the computation.
#pragma once

#include <cstdint>

namespace nightjar {

constexpr int64_t kCacheLine = 64;

// The number is the cache level. Written so that the compiler can't take it for a computation without effect.
inline void fetch_into_level_2(const char* address) {
#if defined(__x86_64__)
  asm volatile("prefetcht1 %0" : : "m"(*address));
#else
  __builtin_prefetch(address, 0, 2);
#endif
}

// Keys and values of the slots that come next.
class Ahead {
 public:
  // `width` elements of each slot's row, from element `first` on. `work`: about how many cycles spend() will hear of.
  template <typename Tensors>
  Ahead(const Tensors& t, int64_t first, int64_t width, const int32_t* slots, int64_t count, float work)
      : k_(reinterpret_cast<const char*>(t.k + first)),
        v_(reinterpret_cast<const char*>(t.v + first)),
        k_stride_(t.k_stride * sizeof *t.k),
        v_stride_(t.v_stride * sizeof *t.v),
        width_(width * sizeof *t.k),
        slots_(slots),
        rows_(2 * count),
        per_cycle_(rows_ / work) {}

  // Fetches what is due after so many more cycles of computation.
  void spend(float cycles) {
    for (due_ += cycles * per_cycle_; due_ >= 1.0f && row_ < rows_; due_ -= 1.0f, ++row_) {
      const int64_t slot = slots_[row_ / 2];
      const char* from = row_ % 2 == 0 ? k_ + slot * k_stride_ : v_ + slot * v_stride_;
      for (int64_t i = 0; i < width_; i += kCacheLine) fetch_into_level_2(from + i);
    }
  }

 private:
  const char *k_, *v_;
  int64_t k_stride_, v_stride_, width_;
  const int32_t* slots_;
  int64_t rows_;
  float per_cycle_;
  int64_t row_ = 0;
  float due_ = 0.0f;
};

}  // namespace nightjar
