/* A wall clock that is off by the number of seconds in the file $CLOCK_OFFSET.

   The file is mapped: a new number counts at once. The monotonic clock goes on,
   as it does when a machine's clock is set. Deadlines of the wall clock are
   moved back to the kernel's: to it, one of a year ago has always passed, and a
   thread that waits for it would spin. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile long *offset;

__attribute__((constructor)) static void start(void) {
  const char *path = getenv("CLOCK_OFFSET");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *mapped = mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
  if (mapped != MAP_FAILED) offset = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int failed = real(clock, now);
  if (!failed && offset &&
      (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
    now->tv_sec += *offset;
  return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  static int (*real)(struct timeval *, void *);
  if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
  int failed = real(now, zone);
  if (!failed && offset) now->tv_sec += *offset;
  return failed;
}

time_t time(time_t *result) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (result) *result = now.tv_sec;
  return now.tv_sec;
}

/* Monotonic deadlines, which some of these functions take too, are small. */
static const struct timespec *moved(const struct timespec *deadline,
                                    struct timespec *room) {
  const time_t year_2000 = 946684800;
  if (!deadline || !offset || deadline->tv_sec < year_2000) return deadline;
  *room = *deadline;
  room->tv_sec -= *offset;
  return room;
}

/* Abseil's way to wait. */
long syscall(long number, ...) {
  static long (*real)(long, ...);
  if (!real) real = dlsym(RTLD_NEXT, "syscall");
  long word[6];
  va_list words;
  va_start(words, number);
  for (int i = 0; i < 6; i++) word[i] = va_arg(words, long);
  va_end(words);
  struct timespec room;
  if (number == SYS_futex && (word[1] & FUTEX_CLOCK_REALTIME))
    word[3] = (long)moved((const struct timespec *)word[3], &room);
  return real(number, word[0], word[1], word[2], word[3], word[4], word[5]);
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition,
                           pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict deadline) {
  static int (*real)(pthread_cond_t *, pthread_mutex_t *,
                     const struct timespec *);
  /* Without its version it could be that of another condition variable. */
  if (!real) real = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
  if (!real) real = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
  struct timespec room;
  return real(condition, mutex, moved(deadline, &room));
}

int pthread_cond_clockwait(pthread_cond_t *condition, pthread_mutex_t *mutex,
                           clockid_t clock, const struct timespec *deadline) {
  static int (*real)(pthread_cond_t *, pthread_mutex_t *, clockid_t,
                     const struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "pthread_cond_clockwait");
  struct timespec room;
  return real(condition, mutex, clock, moved(deadline, &room));
}

int sem_timedwait(sem_t *restrict semaphore,
                  const struct timespec *restrict deadline) {
  static int (*real)(sem_t *, const struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "sem_timedwait");
  struct timespec room;
  return real(semaphore, moved(deadline, &room));
}
