// OpenMP's parallel regions of this tree on plain threads. ThreadSanitizer knows how those start
// and end; libgomp's pool waits in ways it cannot see, and every loop would look like a race.
// LibTorch's own regions stay libgomp's.
#include <omp.h>
#include <pthread.h>
#include <vector>

namespace {

struct Place {
  int number = 0, count = 1;
};
thread_local Place place;

struct Member {
  void (*body)(void*);
  void* data;
  Place place;
};

void* run(void* argument) {
  const Member& member = *static_cast<Member*>(argument);
  const Place outer = place;
  place = member.place;
  member.body(member.data);
  place = outer;
  return nullptr;
}

}  // namespace

// What the linker's --wrap puts in the place of libgomp's functions.
extern "C" {

int __wrap_omp_get_thread_num() {
  return place.number;
}
int __wrap_omp_get_num_threads() {
  return place.count;
}

void __wrap_GOMP_parallel(void (*body)(void*), void* data, unsigned wanted, unsigned) {
  const int count = wanted > 0 ? static_cast<int>(wanted) : omp_get_max_threads();
  std::vector<Member> members;
  for (int number = 0; number < count; ++number) members.push_back({body, data, {number, count}});
  std::vector<pthread_t> threads(static_cast<size_t>(count));
  for (int number = 1; number < count; ++number)
    if (pthread_create(&threads[number], nullptr, run, &members[number]) != 0) __builtin_trap();
  run(&members[0]);
  for (int number = 1; number < count; ++number) pthread_join(threads[number], nullptr);
}
}
