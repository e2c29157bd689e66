// Runs this tree's OpenMP parallel regions on plain threads. ThreadSanitizer recognises when such
// threads start and end. It does not recognise how libgomp's thread pool synchronises, so it would
// report every loop as a race. LibTorch's own regions still use libgomp.
#include <omp.h>
#include <pthread.h>
#include <vector>

namespace {

struct ThreadPosition {
  int number = 0, count = 1;
};
thread_local ThreadPosition position;

struct Thread {
  void (*body)(void*);
  void* data;
  ThreadPosition position;
};

void* run(void* argument) {
  const Thread& thread = *static_cast<Thread*>(argument);
  const ThreadPosition outer = position;
  position = thread.position;
  thread.body(thread.data);
  position = outer;
  return nullptr;
}

}  // namespace

// With the linker option --wrap, these functions are called instead of libgomp's.
extern "C" {

int __wrap_omp_get_thread_num() {
  return position.number;
}
int __wrap_omp_get_num_threads() {
  return position.count;
}

void __wrap_GOMP_parallel(void (*body)(void*), void* data, unsigned requested, unsigned) {
  const int count = requested > 0 ? static_cast<int>(requested) : omp_get_max_threads();
  std::vector<Thread> threads;
  for (int number = 0; number < count; ++number) threads.push_back({body, data, {number, count}});
  std::vector<pthread_t> handles(static_cast<size_t>(count));
  for (int number = 1; number < count; ++number)
    if (pthread_create(&handles[number], nullptr, run, &threads[number]) != 0) __builtin_trap();
  run(&threads[0]);
  for (int number = 1; number < count; ++number) pthread_join(handles[number], nullptr);
}
}
