/* What the kernel keeps for a process beside its memory and its files. See check.h. */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>

#include "check.h"

static long long nanoseconds(const struct timespec *time)
{
	return time->tv_sec * 1000000000ll + time->tv_nsec;
}

/* The number that the kernel gave, which the C library hides. */
static int make_timer(int clock, struct sigevent *event)
{
	int number = -1;
	if (syscall(SYS_timer_create, clock, event, &number))
		die("timer_create");
	return number;
}

static void start_timer(int number, time_t interval, time_t left)
{
	struct itimerspec spec = { { interval, 0 }, { left, 0 } };
	if (syscall(SYS_timer_settime, number, 0, &spec, NULL))
		die("timer_settime");
}

static void expect_timer(int number, time_t interval, time_t at_most)
{
	struct itimerspec spec;
	if (syscall(SYS_timer_gettime, number, &spec)) {
		wrong("timer %d is gone (errno %d)", number, errno);
		return;
	}
	same(spec.it_interval.tv_sec, interval);
	long long left = nanoseconds(&spec.it_value), most = at_most * 1000000000ll;
	if (left > most || left < most - 100 * 1000000000ll)
		wrong("timer %d has %lld ns left of %lld", number, left, most);
}

static void timers(void)
{
	struct sigevent by_signal = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 3, .sigev_value.sival_int = 4711 };
	struct sigevent quiet = { .sigev_notify = SIGEV_NONE };
	struct sigevent to_thread = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR2, .sigev_value.sival_ptr = &go };
	to_thread._sigev_un._tid = getpid();
	sigset_t blocked;
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGRTMIN + 3);
	sigaddset(&blocked, SIGUSR2);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	int gone[3];
	for (int n = 0; n < 3; n++)
		gone[n] = make_timer(CLOCK_MONOTONIC, &quiet);
	int interval = make_timer(CLOCK_MONOTONIC, &by_signal), idle = make_timer(CLOCK_REALTIME, &by_signal);
	int silent = make_timer(CLOCK_BOOTTIME, &quiet), thread = make_timer(CLOCK_MONOTONIC, &to_thread);
	int processor = make_timer(CLOCK_PROCESS_CPUTIME_ID, &by_signal), fired = make_timer(CLOCK_MONOTONIC, &to_thread);
	for (int n = 0; n < 3; n++)
		if (n != 1)
			syscall(SYS_timer_delete, gone[n]);
	start_timer(interval, 70, 5000);
	start_timer(silent, 0, 3000);
	start_timer(thread, 0, 4000);
	start_timer(processor, 5, 6000);
	/* This one has gone off, and its signal waits. */
	struct itimerspec at_once = { { 0, 0 }, { 0, 1 } };
	syscall(SYS_timer_settime, fired, 0, &at_once, NULL);
	sigset_t pending;
	do
		sigpending(&pending);
	while (!sigismember(&pending, SIGUSR2));
	pause_here();
	expect_timer(interval, 70, 5000);
	expect_timer(silent, 0, 3000);
	expect_timer(thread, 0, 4000);
	expect_timer(processor, 5, 6000);
	expect_timer(idle, 0, 0);
	expect_timer(fired, 0, 0);
	expect_timer(gone[1], 0, 0);
	struct itimerspec spec;
	expect(syscall(SYS_timer_gettime, gone[0], &spec) == -1 && syscall(SYS_timer_gettime, gone[2], &spec) == -1);
	siginfo_t info;
	struct timespec patience = { 20, 0 };
	sigset_t one;
	sigemptyset(&one);
	sigaddset(&one, SIGUSR2);
	same(sigtimedwait(&one, &info, &patience), SIGUSR2);
	same(info.si_code, SI_TIMER);
	expect(info.si_value.sival_ptr == &go);
	syscall(SYS_timer_settime, thread, 0, &at_once, NULL);
	same(sigtimedwait(&one, &info, &patience), SIGUSR2);
	same(info.si_code, SI_TIMER);
	sigemptyset(&one);
	sigaddset(&one, SIGRTMIN + 3);
	syscall(SYS_timer_settime, interval, 0, &at_once, NULL);
	same(sigtimedwait(&one, &info, &patience), SIGRTMIN + 3);
	same(info.si_value.sival_int, 4711);
	int fresh = make_timer(CLOCK_MONOTONIC, &quiet);
	expect(fresh != interval && fresh != idle && fresh != silent && fresh != thread && fresh != processor && fresh != fired);
}

int main(int argc, char **argv)
{
	static const struct check checks[] = {
		{ "timers", timers },
	};
	return run_check(argc, argv, checks, sizeof checks / sizeof *checks);
}
