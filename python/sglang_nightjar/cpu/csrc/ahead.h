// Weights and rows of the KV cache on their way to the processor while others are computed with.
//
// Asked for a block at a time, as fast as it goes, they fill the core's buffers and the computation stands still; asked
// for when they are needed, memory stands still. So they are asked for a cache line at a time, in step with the computation.
#pragma once

#include <cstdint>

namespace nightjar {

constexpr int64_t kCacheLine = 64;

// Written so that the compiler can't take it for a computation without effect.
template <int kLevel>
inline void fetch_into_level(const char* address) {
  static_assert(kLevel == 1 || kLevel == 2);
#if defined(__x86_64__)
  if constexpr (kLevel == 1) asm volatile("prefetcht0 %0" : : "m"(*address));
  if constexpr (kLevel == 2) asm volatile("prefetcht1 %0" : : "m"(*address));
#else
  __builtin_prefetch(address, 0, 4 - kLevel);
#endif
}

// Keys and values of the slots that come next; the processor can't foresee where they are.
class Ahead {
 public:
  // `width` elements of each slot's row, from element `first` on. `work`: about how many cycles spend() will hear of.
  template <typename Tensors>
  Ahead(const Tensors& t, int64_t first, int64_t width, const int32_t* slots, int64_t count, float work)
      : k_(reinterpret_cast<const char*>(t.k + first)),
        v_(reinterpret_cast<const char*>(t.v + first)),
        k_stride_(t.k_stride * sizeof *t.k),
        v_stride_(t.v_stride * sizeof *t.v),
        lines_((width * sizeof *t.k + kCacheLine - 1) / kCacheLine),
        slots_(slots),
        rows_(2 * count),
        per_cycle_(rows_ * lines_ / work) {}

  // Fetches what is due after so many more cycles of computation.
  void spend(float cycles) {
    due_ += cycles * per_cycle_;
    const auto lines = static_cast<int64_t>(due_);
    due_ -= lines;
    for (int64_t i = 0; i < lines && row_ < rows_; ++i) {
      if (line_ == 0) {
        const int64_t slot = slots_[row_ / 2];
        at_ = row_ % 2 == 0 ? k_ + slot * k_stride_ : v_ + slot * v_stride_;
      }
      fetch_into_level<2>(at_ + line_ * kCacheLine);
      if (++line_ == lines_) {
        line_ = 0;
        ++row_;
      }
    }
  }

 private:
  const char *k_, *v_;
  int64_t k_stride_, v_stride_, lines_;
  const int32_t* slots_;
  int64_t rows_;
  float per_cycle_;
  // Where the next line is.
  int64_t row_ = 0, line_ = 0;
  const char* at_ = nullptr;
  float due_ = 0.0f;
};

}  // namespace nightjar
