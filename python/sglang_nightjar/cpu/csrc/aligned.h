// Memory that begins with a cache line: vectors and rows of a tile that straddle two take twice as long to load.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace nightjar {

template <typename T>
class Aligned {
 public:
  explicit Aligned(int64_t size = 0) { reserve(size); }

  // Room for so many; what they were is lost.
  void reserve(int64_t size) {
    if (size <= size_) return;
    constexpr size_t kAlignment = 64;
    const size_t bytes = (size * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    data_.reset(static_cast<T*>(std::aligned_alloc(kAlignment, bytes)));
    if (!data_) throw std::bad_alloc();
    size_ = size;
  }

  T* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

}  // namespace nightjar
