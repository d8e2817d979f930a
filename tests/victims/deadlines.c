/* Calls with a timeout: each kind once in a child and once in a thread of this process, all at the same time; or polls alone.
 *
 * Before "done", DIR/result has a line for each: who, which, how long it took in nanoseconds of CLOCK_MONOTONIC, what it returned, and errno. The
 * test knows how long none of it existed. */
#define _GNU_SOURCE
#include "check.h"

#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>

/* TIMEOUT of tests/deadlines.rs. */
#define TIMEOUT 4

static const struct timespec whole = { .tv_sec = TIMEOUT };

static struct timespec now(clockid_t clock)
{
	struct timespec time;
	clock_gettime(clock, &time);
	return time;
}

static struct timespec deadline(clockid_t clock)
{
	struct timespec time = now(clock);
	time.tv_sec += TIMEOUT;
	return time;
}

static long do_nanosleep(void)
{
	return syscall(SYS_nanosleep, &whole, NULL);
}

static long do_nanosleep_rest(void)
{
	struct timespec rest;
	return syscall(SYS_nanosleep, &whole, &rest);
}

static long do_sleep(void)
{
	return sleep(TIMEOUT);
}

static long do_relative(void)
{
	return clock_nanosleep(CLOCK_MONOTONIC, 0, &whole, NULL);
}

static long do_boottime(void)
{
	return clock_nanosleep(CLOCK_BOOTTIME, 0, &whole, NULL);
}

static long do_absolute(void)
{
	struct timespec until = deadline(CLOCK_MONOTONIC);
	return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

static long do_poll(void)
{
	struct pollfd none = { .fd = -1 };
	return poll(&none, 1, TIMEOUT * 1000);
}

static long do_ppoll(void)
{
	struct timespec time = whole;
	return ppoll(NULL, 0, &time, NULL);
}

static long do_select(void)
{
	struct timeval time = { .tv_sec = TIMEOUT };
	return select(0, NULL, NULL, NULL, &time);
}

static long do_futex(void)
{
	int word = 7;
	return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 7, &whole, NULL, 0);
}

static long do_condition(void)
{
	pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	pthread_cond_t condition;
	pthread_condattr_t attributes;
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&condition, &attributes);
	struct timespec until = deadline(CLOCK_MONOTONIC);
	pthread_mutex_lock(&mutex);
	errno = pthread_cond_timedwait(&condition, &mutex, &until);
	return -1;
}

static long do_epoll(void)
{
	struct epoll_event event;
	return epoll_wait(epoll_create1(EPOLL_CLOEXEC), &event, 1, TIMEOUT * 1000);
}

static long do_timerfd(void)
{
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
	struct itimerspec time = { .it_value = deadline(CLOCK_MONOTONIC) };
	uint64_t ticks = 0;
	if (timerfd_settime(fd, TFD_TIMER_ABSTIME, &time, NULL) || read(fd, &ticks, 8) != 8)
		return -1;
	return ticks == 1 ? 0 : -1;
}

static long do_timer(void)
{
	/* The signal is for this thread only. */
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1 };
	event._sigev_un._tid = syscall(SYS_gettid);
	struct itimerspec time = { .it_value = deadline(CLOCK_MONOTONIC) };
	timer_t timer;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, TIMER_ABSTIME, &time, NULL))
		return -1;
	return sigwaitinfo(&set, NULL) == SIGUSR1 ? 0 : -1;
}

static const struct {
	const char *name;
	long (*wait)(void);
} kinds[] = {
	{ "nanosleep", do_nanosleep },
	{ "nanosleep_rest", do_nanosleep_rest },
	{ "sleep", do_sleep },
	{ "relative", do_relative },
	{ "boottime", do_boottime },
	{ "absolute", do_absolute },
	{ "poll", do_poll },
	{ "ppoll", do_ppoll },
	{ "select", do_select },
	{ "futex", do_futex },
	{ "condition", do_condition },
	{ "epoll", do_epoll },
	{ "timerfd", do_timerfd },
	{ "timer", do_timer },
};
#define KINDS (sizeof kinds / sizeof *kinds)
#define POLL 6

static void measure(const char *who, size_t kind)
{
	struct timespec start = now(CLOCK_MONOTONIC);
	errno = 0;
	long value = kinds[kind].wait();
	int error = errno;
	struct timespec end = now(CLOCK_MONOTONIC);
	long long took = (end.tv_sec - start.tv_sec) * 1000000000ll + end.tv_nsec - start.tv_nsec;
	dprintf(result, "%s %s %lld %ld %d\n", who, kinds[kind].name, took, value, error);
}

static void *thread(void *kind)
{
	measure("thread", (size_t)kind);
	return NULL;
}

static void all(void)
{
	pthread_t threads[KINDS];
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	for (size_t kind = 0; kind < KINDS; kind++) {
		if (!fork()) {
			measure("child", kind);
			_exit(0);
		}
	}
	for (size_t kind = 0; kind < KINDS; kind++)
		if (pthread_create(&threads[kind], NULL, thread, (void *)kind))
			die("pthread_create");
	pause_here();
	for (size_t kind = 0; kind < KINDS; kind++)
		pthread_join(threads[kind], NULL);
	while (wait(NULL) > 0)
		;
}

/* A process sleeps in this call. */
static void until_in(pid_t pid, long nr)
{
	char path[64], call[32] = "";
	snprintf(path, sizeof path, "/proc/%d/syscall", pid);
	while (strtol(call, NULL, 10) != nr) {
		sched_yield();
		FILE *file = fopen(path, "re");
		if (!file || !fgets(call, sizeof call, file) || fclose(file))
			die(path);
	}
}

/* Two polls: one that nothing has interrupted, and one in a job that was stopped for a moment. */
static void overdue(void)
{
	for (int stopped = 0; stopped < 2; stopped++) {
		pid_t job = fork();
		int status;
		if (!job) {
			measure(stopped ? "stopped" : "undisturbed", POLL);
			_exit(0);
		}
		until_in(job, SYS_poll);
		if (stopped && !kill(job, SIGSTOP) && waitpid(job, &status, WUNTRACED) == job && !kill(job, SIGCONT))
			until_in(job, SYS_restart_syscall);
	}
	pause_here();
	while (wait(NULL) > 0)
		;
}

static const struct check checks[] = {
	{ "all", all },
	{ "overdue", overdue },
};

int main(int argc, char **argv)
{
	return run_check(argc, argv, checks, sizeof checks / sizeof *checks);
}
