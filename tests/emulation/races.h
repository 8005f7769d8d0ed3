// What orders two accesses of memory, told to ThreadSanitizer: each thread of the emulation is a fiber of its, and the
// only edges between fibers are those that barriers, cluster barriers, and atomics between fences make. Without
// KDX_RACES nothing is told to anybody.
//
// cuda_emulation.cpp is compiled without -fsanitize=thread, so that what the scheduler itself does is not looked at.
#pragma once

#include <utility>

#ifdef KDX_RACES
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace emulation::races {

#ifdef KDX_RACES
constexpr bool kOn = true;
using Thread = void*;
inline Thread self() { return __tsan_get_current_fiber(); }
inline Thread create() { return __tsan_create_fiber(0); }
inline void enter(Thread thread) { __tsan_switch_to_fiber(thread, 1); }  // 1: the switch itself orders nothing
inline void release(void* at) { __tsan_release(at); }  // what came before here comes before an acquire of the same
inline void acquire(void* at) { __tsan_acquire(at); }

// The accesses of the running thread do not count as long as this lives.
struct Unseen {
  Unseen() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__), AnnotateIgnoreWritesBegin(__FILE__, __LINE__); }
  ~Unseen() { AnnotateIgnoreWritesEnd(__FILE__, __LINE__), AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
  Unseen(const Unseen&) = delete;
};
inline int reports = 0;  // counted by races.cpp

// Whether there was a report since the last call.
inline bool found() { return std::exchange(reports, 0) != 0; }
#else
constexpr bool kOn = false;
struct Thread {};
inline Thread self() { return {}; }
inline Thread create() { return {}; }
inline void enter(Thread) {}
inline void release(void*) {}
inline void acquire(void*) {}
struct Unseen {
  Unseen() {}
};
inline bool found() { return false; }
#endif

}  // namespace emulation::races
