// Threads that share out one phase of work after the other inside a single parallel region.
//
// Every thread runs the same code and calls run() for the same phases in the same order. Pieces of a phase are claimed
// one by one, and a phase ends when all its pieces are done, not when all threads have come by. A thread that the
// system has put aside (SGLang's other processes share the cores) therefore holds up only the piece that it had
// claimed; when it comes back it passes through the finished phases and joins in. A parallel region per phase would
// wait for it each time, some two hundred times per forward pass.
#pragma once

#include <ATen/Parallel.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <memory>

namespace nightjar {

class Team {
  struct alignas(64) Phase {
    std::atomic<int64_t> claimed{0}, done{0};

    int64_t claim() { return claimed.fetch_add(1, std::memory_order_relaxed); }
  };

 public:
  // What one thread knows: the phase that it is in.
  class Member {
   public:
    explicit Member(Team& team) : team_(team) {}

    int64_t threads() const { return team_.threads_; }

    // Calls piece(i) once for every 0 <= i < count, spread over the team; returns when all are done.
    template <typename Piece>
    void run(int64_t count, const Piece& piece) {
      if (team_.threads_ == 1) {
        for (int64_t i = 0; i < count; ++i) piece(i);
        return;
      }
      Phase& phase = team_.phases_[next_++];
      for (int64_t i; (i = phase.claim()) < count;) {
        piece(i);
        phase.done.fetch_add(1, std::memory_order_release);
      }
      wait(phase, count);
    }

    // The same as piece(i, next), where `next` is what this thread does afterwards, or `count` or more.
    template <typename Piece>
    void run_ahead(int64_t count, const Piece& piece) {
      if (team_.threads_ == 1) {
        for (int64_t i = 0; i < count; ++i) piece(i, i + 1);
        return;
      }
      Phase& phase = team_.phases_[next_++];
      for (int64_t i = phase.claim(), next; i < count; i = next) {
        next = phase.claim();
        piece(i, next);
        phase.done.fetch_add(1, std::memory_order_release);
      }
      wait(phase, count);
    }

    // The same for ranges of [0, count), `size` long except for the last.
    template <typename Range>
    void run_ranges(int64_t count, int64_t size, const Range& range) {
      run((count + size - 1) / size, [&](int64_t i) { range(i * size, std::min(count, (i + 1) * size)); });
    }

   private:
    static constexpr int64_t kPatience = 2000;

    static void wait(const Phase& phase, int64_t count) {
      for (int64_t turns = 0; phase.done.load(std::memory_order_acquire) < count; ++turns) {
        // Whoever holds the last piece may be waiting for this very core.
        if (turns > kPatience) sched_yield();
      }
    }

    Team& team_;
    size_t next_ = 0;
  };

  // Runs body(member) on every thread; `phases` is how many times body calls run(), or more.
  template <typename Body>
  static void parallel(size_t phases, bool worth_it, const Body& body) {
    const int64_t threads = worth_it ? at::get_num_threads() : 1;
    Team team(threads, phases);
    if (threads == 1) {
      Member member(team);
      body(member);
      return;
    }
    at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
      Member member(team);
      body(member);
    });
  }

 private:
  Team(int64_t threads, size_t phases) : threads_(threads) {
    if (threads > 1) phases_ = std::make_unique<Phase[]>(phases);
  }

  int64_t threads_;
  std::unique_ptr<Phase[]> phases_;
};

}  // namespace nightjar
