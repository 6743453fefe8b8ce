// Row-wise operations between the matrix products: norms, rotary embedding, activation, argmax.
#pragma once

#include "team.h"
#include "vec.h"

namespace nightjar {

// Elements that are worth a claim; fewer are not worth another thread.
constexpr int64_t kParallelElements = 16384;

inline int64_t rows_per_task(int64_t width) { return std::max<int64_t>(1, kParallelElements / std::max<int64_t>(1, width)); }

// out = x / rms(x) * weight for one row; rms(x) = sqrt(mean(x^2) + eps). `out` may be `x`.
inline void rms_norm_row(const float* x, const float* weight, float* out, int64_t width, float eps) {
  Vec squares{};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const Vec v = load(x + i);
    squares += v * v;
  }
  float total = sum(squares);
  for (; i < width; ++i) total += x[i] * x[i];
  const float scale = 1.0f / std::sqrt(total / width + eps);
  for (i = 0; i + kLanes <= width; i += kLanes) store(out + i, load(x + i) * scale * load(weight + i));
  for (; i < width; ++i) out[i] = x[i] * scale * weight[i];
}

inline void rms_norm(Team::Member& team, const float* x, int64_t ldx, const float* weight, float* out, int64_t ldo, int64_t rows,
                     int64_t width, float eps) {
  team.run_ranges(rows, rows_per_task(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) rms_norm_row(x + r * ldx, weight, out + r * ldo, width, eps);
  });
}

// residual += x, then out = rms_norm(residual). `out` may be `x`.
inline void add_rms_norm(Team::Member& team, const float* x, float* residual, const float* weight, float* out, int64_t rows, int64_t width,
                         float eps) {
  team.run_ranges(rows, rows_per_task(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* sums = residual + r * width;
      for (int64_t i = 0; i < width; ++i) sums[i] += x[r * width + i];
      rms_norm_row(sums, weight, out + r * width, width, eps);
    }
  });
}

// Rotates one head in place by the angle of its position. `cos_sin` is [rotary / 2] cosines, then as many sines.
// Neox style pairs element i with i + rotary / 2, the other style 2i with 2i + 1.
inline void rotate_head(float* head, const float* cos_sin, int64_t rotary, bool neox) {
  const int64_t half = rotary / 2;
  const float *cosine = cos_sin, *sine = cos_sin + half;
  const int64_t second = neox ? half : 1, step = neox ? 1 : 2;
  int64_t i = 0;
  if (neox) {
    for (; i + kLanes <= half; i += kLanes) {
      const Vec a = load(head + i), b = load(head + half + i), c = load(cosine + i), s = load(sine + i);
      store(head + i, a * c - b * s);
      store(head + half + i, b * c + a * s);
    }
  }
  for (; i < half; ++i) {
    float &a = head[i * step], &b = head[i * step + second];
    const float rotated = a * cosine[i] - b * sine[i];
    b = b * cosine[i] + a * sine[i];
    a = rotated;
  }
}

// out[r][i] = silu(x[r][i]) * x[r][width + i]; x is [rows][2 * width].
inline void silu_and_mul(Team::Member& team, const float* x, float* out, int64_t rows, int64_t width) {
  team.run_ranges(rows, rows_per_task(4 * width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float *gate = x + r * 2 * width, *up = gate + width;
      float* y = out + r * width;
      int64_t i = 0;
      for (; i + kLanes <= width; i += kLanes) {
        const Vec g = load(gate + i);
        store(y + i, g / (exp(-g) + 1.0f) * load(up + i));
      }
      for (; i < width; ++i) y[i] = gate[i] / (exp(-gate[i]) + 1.0f) * up[i];
    }
  });
}

// Index of the first largest element of a row, as torch.argmax has it; a NaN counts as largest.
inline int64_t argmax_row(const float* x, int64_t width) {
  Vec best = broadcast(kMinusInfinity);
  IntVec any_nan{};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const Vec v = load(x + i);
    best = max(best, v);
    any_nan |= v != v;
  }
  float most = max_of(best);
  bool nan = false;
  for (int lane = 0; lane < kLanes; ++lane) nan |= any_nan[lane] != 0;
  for (; i < width; ++i) {
    most = std::max(most, x[i]);
    nan |= x[i] != x[i];
  }
  for (i = 0; i < width; ++i)
    if (nan ? x[i] != x[i] : x[i] == most) return i;
  return 0;
}

inline void argmax(Team::Member& team, const float* x, int64_t* out, int64_t rows, int64_t width) {
  team.run_ranges(rows, rows_per_task(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) out[r] = argmax_row(x + r * width, width);
  });
}

}  // namespace nightjar
