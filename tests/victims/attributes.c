/* What the kernel keeps for a process beside its memory and its files. See check.h. */
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
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

static int orphan;

/* Makes a timer that signals the thread which ends here. */
static void *makes_orphan(void *unused)
{
	struct sigevent to_thread = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR2 };
	to_thread._sigev_un._tid = gettid();
	orphan = make_timer(CLOCK_MONOTONIC, &to_thread);
	start_timer(orphan, 80, 7000);
	return unused;
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
	pthread_t thread_of_orphan;
	if (pthread_create(&thread_of_orphan, NULL, makes_orphan, NULL) || pthread_join(thread_of_orphan, NULL))
		die("pthread_create");
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
	expect_timer(orphan, 80, 7000);
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

static void filter(struct sock_filter *program, size_t count)
{
	struct sock_fprog all = { count, program };
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &all, 0, 0))
		die("filter");
}

/* ACTION for one system call, the rest is allowed. */
static void filter_one(unsigned number, unsigned action)
{
	struct sock_filter program[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, action),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	filter(program, sizeof program / sizeof *program);
}

static void expect_filtered(void)
{
	/* Of two that decide alike the newer one is heard. */
	expect(syscall(SYS_getsid, 0) == -1 && errno == 84);
	expect(syscall(SYS_getpriority, 0, 0) == -1 && errno == 77);
	/* The filter that was installed later denies this, the one before it would kill. */
	expect(syscall(SYS_getuid) >= 0);
	expect(syscall(SYS_memfd_create, "x", 0) == -1 && errno == EACCES);
	pid_t child = fork();
	if (!child) {
		syscall(SYS_mincore, 0, 0, 0);
		_exit(0);
	}
	int status;
	same(waitpid(child, &status, 0), child);
	expect(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
}

/* Filters that deny what the dump itself calls inside (memfd_create), that deny with a number, and that kill. */
static void filters(void)
{
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	filter_one(SYS_getpriority, SECCOMP_RET_ERRNO | 77);
	filter_one(SYS_mincore, SECCOMP_RET_KILL_PROCESS);
	filter_one(SYS_memfd_create, SECCOMP_RET_ERRNO | EACCES);
	filter_one(SYS_getsid, SECCOMP_RET_ERRNO | 83);
	filter_one(SYS_getsid, SECCOMP_RET_ERRNO | 84);
	pause_here();
	expect_filtered();
}

/* Without no_new_privs, and without the capability that installed it. */
static void filters_of_another_user(void)
{
	filter_one(SYS_getpriority, SECCOMP_RET_ERRNO | 77);
	filter_one(SYS_mincore, SECCOMP_RET_KILL_PROCESS);
	filter_one(SYS_memfd_create, SECCOMP_RET_ERRNO | EACCES);
	filter_one(SYS_getsid, SECCOMP_RET_ERRNO | 83);
	filter_one(SYS_getsid, SECCOMP_RET_ERRNO | 84);
	if (chmod(".", 0777) || setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
		die("setresuid");
	say_ready(getpid());
	wait_for_go();
	same(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 0);
	expect_filtered();
}

static sem_t turn[3], done;

static void *in_thread(void *number)
{
	int n = (int)(intptr_t)number;
	if (n == 1) {
		filter_one(SYS_sched_get_priority_max, SECCOMP_RET_ERRNO | 78);
		filter_one(SYS_sched_get_priority_min, SECCOMP_RET_ERRNO | 79);
	}
	sem_post(&done);
	sem_wait(&turn[n]);
	expect(syscall(SYS_getpriority, 0, 0) == -1 && errno == 77);
	expect((syscall(SYS_sched_get_priority_max, 1) == -1 && errno == 78) == (n == 1));
	expect((syscall(SYS_sched_get_priority_min, 1) == -1 && errno == 79) == (n == 1));
	expect(syscall(SYS_getsid, 0) > 0);
	sem_post(&done);
	return NULL;
}

/* Filters that all threads have, that one of them has, and that the leader alone has. */
static void threads_with_filters(void)
{
	pthread_t threads[3];
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	filter_one(SYS_getpriority, SECCOMP_RET_ERRNO | 77);
	sem_init(&done, 0, 0);
	for (intptr_t n = 1; n < 3; n++) {
		sem_init(&turn[n], 0, 0);
		pthread_create(&threads[n], NULL, in_thread, (void *)n);
		sem_wait(&done);
	}
	filter_one(SYS_getsid, SECCOMP_RET_ERRNO | 80);
	pause_here();
	expect(syscall(SYS_getpriority, 0, 0) == -1 && errno == 77);
	expect(syscall(SYS_sched_get_priority_max, 1) >= 0);
	expect(syscall(SYS_getsid, 0) == -1 && errno == 80);
	for (int n = 1; n < 3; n++) {
		sem_post(&turn[n]);
		sem_wait(&done);
		pthread_join(threads[n], NULL);
	}
}

static void *idle(void *unused)
{
	sem_post(&done);
	sem_wait(&turn[0]);
	expect(syscall(SYS_mincore, 0, 0, 0) == -1 && errno == 81);
	return unused;
}

/* Threads whose filters are the same ones can be given one more at once. */
static void threads_in_step(void)
{
	pthread_t thread;
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	filter_one(SYS_getpriority, SECCOMP_RET_ERRNO | 77);
	sem_init(&turn[0], 0, 0);
	sem_init(&done, 0, 0);
	pthread_create(&thread, NULL, idle, NULL);
	sem_wait(&done);
	pause_here();
	struct sock_filter program[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mincore, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 81),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog all = { 4, program };
	same(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &all), 0);
	sem_post(&turn[0]);
	pthread_join(thread, NULL);
}

static void *strictly(void *unused)
{
	sem_post(&done);
	prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0);
	char byte;
	while (read(go, &byte, 1) == -1)
		;
	if (write(result, "done\n", 5))
		syscall(SYS_exit, 0);
	return unused;
}

static void strict_thread(void)
{
	pthread_t thread;
	sem_init(&done, 0, 0);
	pthread_create(&thread, NULL, strictly, NULL);
	sem_wait(&done);
	char status[64], text[4096] = "";
	snprintf(status, sizeof status, "/proc/self/task/%d/status", getpid() + 1);
	while (!strstr(text, "Seccomp:\t1")) {
		int fd = open(status, O_RDONLY);
		if (fd < 0 || read(fd, text, sizeof text - 1) < 0)
			die(status);
		close(fd);
	}
	say_ready(getpid());
	for (;;)
		pause();
}

/* A filter under which the parasite could not leave. */
static void harmful_filter(void)
{
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	filter_one(SYS_getitimer, SECCOMP_RET_KILL_PROCESS);
	pause_here();
}

static void strict(void)
{
	say_ready(getpid());
	prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0);
	wait_for_go();
	if (write(result, "done\n", 5))
		syscall(SYS_exit, 0);
}

int main(int argc, char **argv)
{
	static const struct check checks[] = {
		{ "timers", timers },
		{ "filters", filters },
		{ "filters_of_another_user", filters_of_another_user },
		{ "threads_with_filters", threads_with_filters },
		{ "threads_in_step", threads_in_step },
		{ "strict_thread", strict_thread },
		{ "harmful_filter", harmful_filter },
		{ "strict", strict },
	};
	return run_check(argc, argv, checks, sizeof checks / sizeof *checks);
}
