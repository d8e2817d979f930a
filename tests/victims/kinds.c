/* Kinds of descriptors that are neither files nor terminals; see check.h. */
#define _GNU_SOURCE
#include "check.h"
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>

static void expect_read(int fd, uint64_t expected)
{
	uint64_t value = 0;
	same(read(fd, &value, sizeof value), sizeof value);
	same(value, expected);
}

static void expect_nothing(int fd)
{
	uint64_t value;
	expect(read(fd, &value, sizeof value) == -1 && errno == EAGAIN);
}

static void eventfds(void)
{
	int plain = eventfd(7, EFD_NONBLOCK | EFD_CLOEXEC), empty = eventfd(0, EFD_NONBLOCK);
	int semaphore = eventfd(2, EFD_SEMAPHORE | EFD_NONBLOCK), full = eventfd(0, EFD_NONBLOCK);
	int again = dup(plain);
	uint64_t most = UINT64_MAX - 1, one = 1;
	if (write(full, &most, 8) != 8)
		die("write");
	pause_here();
	same(fcntl(plain, F_GETFD), FD_CLOEXEC);
	same(fcntl(again, F_GETFD), 0);
	expect_read(again, 7);
	expect_nothing(plain);
	expect_nothing(empty);
	expect_read(semaphore, 1);
	expect_read(semaphore, 1);
	expect_nothing(semaphore);
	expect(write(full, &one, 8) == -1 && errno == EAGAIN);
	expect_read(full, UINT64_MAX - 1);
}

static void timerfds(void)
{
	struct itimerspec got, hour = { .it_value = { 3600, 0 } }, both = { { 7, 5 }, { 0, 1000000 } };
	struct itimerspec soon = { .it_value = { 0, 1000000 } }, point = { .it_value = { 0, 0 } }, off = { { 9, 0 }, { 0, 0 } };
	struct timespec now;
	int left = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC), expired = timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK);
	int repeats = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), at = timerfd_create(CLOCK_REALTIME, 0);
	int never = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK), after = timerfd_create(CLOCK_MONOTONIC, 0);
	timerfd_settime(left, 0, &hour, NULL);
	timerfd_settime(expired, 0, &soon, NULL);
	timerfd_settime(repeats, 0, &both, NULL);
	timerfd_settime(never, 0, &off, NULL);
	clock_gettime(CLOCK_REALTIME, &now);
	point.it_value.tv_sec = now.tv_sec + 5000;
	timerfd_settime(at, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &point, NULL);
	clock_gettime(CLOCK_MONOTONIC, &now);
	hour.it_value.tv_sec = now.tv_sec + 2000;
	timerfd_settime(after, TFD_TIMER_ABSTIME, &hour, NULL);
	struct pollfd both_expired[] = { { expired, POLLIN, 0 }, { repeats, POLLIN, 0 } };
	while (both_expired[0].revents == 0 || both_expired[1].revents == 0)
		poll(both_expired, 2, -1);
	pause_here();
	timerfd_gettime(left, &got);
	expect(got.it_value.tv_sec > 3500 && got.it_value.tv_sec < 3600 && !got.it_interval.tv_sec);
	expect_read(expired, 1);
	expect_nothing(expired);
	uint64_t ticks = 0;
	same(read(repeats, &ticks, 8), 8);
	expect(ticks >= 1 && ticks < 100);
	timerfd_gettime(repeats, &got);
	same(got.it_interval.tv_sec * 1000000000 + got.it_interval.tv_nsec, 7000000005);
	expect(got.it_value.tv_sec < 7);
	clock_gettime(CLOCK_REALTIME, &now);
	timerfd_gettime(at, &got);
	long long off_by = (now.tv_sec + got.it_value.tv_sec - point.it_value.tv_sec) * 1000000000 + now.tv_nsec + got.it_value.tv_nsec;
	expect(off_by > -500000000 && off_by < 500000000);
	timerfd_gettime(after, &got);
	expect(got.it_value.tv_sec > 1900 && got.it_value.tv_sec <= 2000);
	timerfd_gettime(never, &got);
	same(got.it_value.tv_sec + got.it_value.tv_nsec, 0);
	same(got.it_interval.tv_sec, 9);
	expect_nothing(never);
}

static void signalfds(void)
{
	sigset_t mask;
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	sigaddset(&mask, SIGRTMAX);
	sigaddset(&mask, SIGUSR2);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	sigdelset(&mask, SIGUSR2);
	int fd = signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC), set = epoll_create1(0);
	struct epoll_event event = { EPOLLIN, { .u64 = 0x123456789abcdef0 } }, got;
	epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
	sigqueue(getpid(), SIGRTMAX, (union sigval){ .sival_int = 5 });
	kill(getpid(), SIGUSR2);
	pause_here();
	struct signalfd_siginfo info;
	same(epoll_wait(set, &got, 1, 0), 1);
	same(got.data.u64, 0x123456789abcdef0);
	same(read(fd, &info, sizeof info), sizeof info);
	same(info.ssi_signo, SIGRTMAX);
	same(info.ssi_int, 5);
	same(read(fd, &info, sizeof info), -1);
	same(epoll_wait(set, &got, 1, 0), 0);
	kill(getpid(), SIGUSR1);
	same(epoll_wait(set, &got, 1, 0), 1);
	same(read(fd, &info, sizeof info), sizeof info);
	same(info.ssi_signo, SIGUSR1);
}

static void add(int set, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event event = { events, { .u64 = data } };
	if (epoll_ctl(set, EPOLL_CTL_ADD, fd, &event))
		die("epoll_ctl");
}

static void expect_events(const char *what, int set, int count, uint64_t data, uint32_t events)
{
	struct epoll_event got[8] = { 0 };
	int found = epoll_wait(set, got, 8, 0);
	if (found != count || (count == 1 && (got[0].data.u64 != data || got[0].events != events)))
		wrong("%s: %d events, the first %#x of %llu", what, found, got[0].events, (unsigned long long)got[0].data.u64);
}

static void epolls(void)
{
	int level = epoll_create1(EPOLL_CLOEXEC), seen = epoll_create1(0), unseen = epoll_create1(0), once = epoll_create1(0);
	int closed = epoll_create1(0), outer = epoll_create1(0), inner = epoll_create1(0), twice = epoll_create1(0);
	int pipes[4][2];
	for (int n = 0; n < 4; n++)
		if (pipe2(pipes[n], O_NONBLOCK))
			die("pipe");
	int terminal = posix_openpt(O_RDWR | O_NOCTTY);
	/* pipe 0 is readable, pipe 1 is not */
	if (write(pipes[0][1], "x", 1) != 1)
		die("write");
	add(level, pipes[0][0], EPOLLIN, 1);
	add(level, pipes[1][0], EPOLLIN, 2);
	add(level, terminal, EPOLLIN | EPOLLPRI | EPOLLRDHUP, 3);
	add(seen, pipes[0][0], EPOLLIN | EPOLLET, 4);
	add(unseen, pipes[0][0], EPOLLIN | EPOLLET, 5);
	add(once, pipes[0][0], EPOLLIN | EPOLLONESHOT, 6);
	add(once, pipes[2][0], EPOLLIN | EPOLLONESHOT, 7);
	expect_events("edge", seen, 1, 4, EPOLLIN);
	expect_events("edge, seen", seen, 0, 0, 0);
	expect_events("once", once, 1, 6, EPOLLIN);
	/* Under a number that is closed by now, and under one that is another file's. */
	int number = fcntl(pipes[1][0], F_DUPFD, 60), other = dup(pipes[2][0]);
	add(closed, number, EPOLLIN, 8);
	add(closed, other, EPOLLIN, 9);
	close(number);
	dup2(pipes[3][0], other);
	add(inner, pipes[1][0], EPOLLIN, 10);
	add(outer, inner, EPOLLIN, 11);
	/* One number twice. */
	int same_number = dup(pipes[1][0]);
	add(twice, same_number, EPOLLIN, 12);
	dup2(pipes[2][0], same_number);
	add(twice, same_number, EPOLLIN, 13);
	pause_here();
	expect_events("level", level, 1, 1, EPOLLIN);
	expect_events("edge, seen before", seen, 0, 0, 0);
	expect_events("edge, not seen", unseen, 1, 5, EPOLLIN);
	expect_events("edge, seen now", unseen, 0, 0, 0);
	expect_events("once, fired", once, 0, 0, 0);
	expect_events("closed", closed, 0, 0, 0);
	expect_events("nested", outer, 0, 0, 0);
	same(fcntl(other, F_GETFL) & O_ACCMODE, O_RDONLY);
	same(fcntl(number, F_GETFD), -1);
	same(write(pipes[1][1], "y", 1), 1);
	expect_events("closed, another", closed, 1, 8, EPOLLIN);
	expect_events("nested, inner", outer, 1, 11, EPOLLIN);
	expect_events("twice, first", twice, 1, 12, EPOLLIN);
	same(write(pipes[2][1], "z", 1), 1);
	expect_events("both closed", closed, 2, 0, 0);
	expect_events("twice, both", twice, 2, 0, 0);
	expect_events("once, second", once, 1, 7, EPOLLIN);
	expect_events("once, second fired", once, 0, 0, 0);
	close(pipes[0][1]);
	expect_events("edge, after", seen, 1, 4, EPOLLIN | EPOLLHUP);
	expect_events("once, fired, hung up", once, 0, 0, 0);
	struct epoll_event again = { EPOLLIN | EPOLLONESHOT, { .u64 = 14 } };
	same(epoll_ctl(once, EPOLL_CTL_MOD, pipes[0][0], &again), 0);
	expect_events("once, again", once, 1, 14, EPOLLIN | EPOLLHUP);
}

/* What only some epoll entries have: one waiter woken, no sleep of the machine, an edge that came after the last look. */
static void epoll_modes(void)
{
	int exclusive = epoll_create1(0), awake = epoll_create1(0), edges = epoll_create1(0), once = epoll_create1(0);
	int pipes[2][2];
	for (int n = 0; n < 2; n++)
		if (pipe2(pipes[n], O_NONBLOCK))
			die("pipe");
	add(exclusive, pipes[0][0], EPOLLIN | EPOLLEXCLUSIVE, 1);
	add(awake, pipes[0][0], EPOLLIN | EPOLLWAKEUP, 2);
	add(edges, pipes[0][0], EPOLLIN | EPOLLET, 3);
	add(edges, pipes[1][1], EPOLLIN | EPOLLOUT | EPOLLET, 4);
	add(once, pipes[1][0], EPOLLIN | EPOLLET | EPOLLONESHOT, 5);
	add(once, pipes[1][1], EPOLLOUT | EPOLLET | EPOLLONESHOT, 6);
	expect_events("edge of the writer", edges, 1, 4, EPOLLOUT);
	expect_events("once, fired", once, 1, 6, EPOLLOUT);
	same(write(pipes[0][1], "x", 1), 1);
	expect_events("edge", edges, 1, 3, EPOLLIN);
	same(write(pipes[0][1], "y", 1), 1);
	pause_here();
	expect_events("exclusive", exclusive, 1, 1, EPOLLIN);
	expect_events("awake", awake, 1, 2, EPOLLIN);
	struct epoll_event got[8];
	int count = epoll_wait(edges, got, 8, 0), new_edge = 0;
	for (int n = 0; n < count; n++)
		new_edge |= got[n].data.u64 == 3 && got[n].events == EPOLLIN;
	expect(new_edge);
	expect_events("edges, seen", edges, 0, 0, 0);
	expect_events("once, fired before", once, 0, 0, 0);
	same(write(pipes[1][1], "z", 1), 1);
	expect_events("once, first", once, 1, 5, EPOLLIN);
	same(write(pipes[1][1], "z", 1), 1);
	expect_events("once, fired now", once, 0, 0, 0);
	/* The kernel forbids to modify an exclusive entry. */
	struct epoll_event plain = { EPOLLIN, { .u64 = 1 } };
	same(epoll_ctl(exclusive, EPOLL_CTL_MOD, pipes[0][0], &plain), -1);
	same(errno, EINVAL);
}

static void fired_epoll(void)
{
	int set = epoll_create1(0), ends[2];
	char byte;
	if (pipe(ends) || write(ends[1], "x", 1) != 1)
		die("pipe");
	add(set, ends[0], EPOLLIN | EPOLLONESHOT, 1);
	expect_events("once", set, 1, 1, EPOLLIN);
	same(read(ends[0], &byte, 1), 1);
	pause_here();
	expect_events("once, fired", set, 0, 0, 0);
}

static void alarms(void)
{
	struct itimerspec hour = { { 5, 0 }, { 3600, 0 } }, point = { { 0, 0 }, { 0, 0 } }, got;
	struct timespec now;
	int after = timerfd_create(CLOCK_BOOTTIME_ALARM, TFD_NONBLOCK), at = timerfd_create(CLOCK_REALTIME_ALARM, TFD_NONBLOCK);
	if (after < 0 || at < 0)
		die("timerfd_create");
	timerfd_settime(after, 0, &hour, NULL);
	clock_gettime(CLOCK_REALTIME, &now);
	point.it_value.tv_sec = now.tv_sec + 5000;
	timerfd_settime(at, TFD_TIMER_ABSTIME, &point, NULL);
	pause_here();
	timerfd_gettime(after, &got);
	expect(got.it_value.tv_sec > 3500 && got.it_value.tv_sec < 3600);
	same(got.it_interval.tv_sec, 5);
	clock_gettime(CLOCK_REALTIME, &now);
	timerfd_gettime(at, &got);
	long long off_by = (now.tv_sec + got.it_value.tv_sec - point.it_value.tv_sec) * 1000000000 + now.tv_nsec + got.it_value.tv_nsec;
	expect(off_by > -500000000 && off_by < 500000000);
	expect_nothing(after);
}

static void pidfds(void)
{
	pid_t child = fork();
	if (!child)
		for (;;)
			pause();
	pid_t dead = fork();
	if (!dead)
		_exit(3);
	siginfo_t info;
	waitid(P_PID, dead, &info, WEXITED | WNOWAIT);
	int fd = syscall(SYS_pidfd_open, child, 0), self = syscall(SYS_pidfd_open, getpid(), O_NONBLOCK);
	int over = syscall(SYS_pidfd_open, dead, 0), set = epoll_create1(0);
	add(set, fd, EPOLLIN, 1);
	pause_here();
	struct pollfd one = { fd, POLLIN, 0 };
	same(poll(&one, 1, 0), 0);
	expect_events("alive", set, 0, 0, 0);
	same(fcntl(self, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	same(syscall(SYS_pidfd_send_signal, self, 0, NULL, 0), 0);
	one.fd = over;
	same(poll(&one, 1, 0), 1);
	same(waitid(P_PIDFD, over, &info, WEXITED), 0);
	same(info.si_status, 3);
	same(syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0), 0);
	one.fd = fd;
	same(poll(&one, 1, 10000), 1);
	expect_events("ended", set, 1, 1, EPOLLIN);
	same(waitid(P_PIDFD, fd, &info, WEXITED), 0);
	same(info.si_status, SIGKILL);
}

int main(int argc, char **argv)
{
	static const struct check checks[] = {
		{ "eventfds", eventfds }, { "timerfds", timerfds }, { "signalfds", signalfds }, { "epolls", epolls },
		{ "pidfds", pidfds }, { "epoll_modes", epoll_modes }, { "fired_epoll", fired_epoll }, { "alarms", alarms },
	};
	return run_check(argc, argv, checks, sizeof checks / sizeof *checks);
}
