/* Sits in one system call, or in a loop of its own; see counters.h. Modes that wait for an event get it as one byte through the FIFO, which holds the
 * number of the round modulo 256. */
#define _GNU_SOURCE
#include "counters.h"
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>

enum { LATE_NS = FIRST_OWN, FUTEX };

static uint64_t now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

/* Judges a call that began at `start` and should have taken `wanted` ns; poll and epoll count in ms of a coarser clock. */
static void judge_timed(int good, uint64_t start, uint64_t wanted)
{
	uint64_t took = now() - start;
	judge(good);
	if (good && took + 1000000 < wanted)
		slot[EARLY]++;
	if (good && took > wanted && took - wanted > slot[LATE_NS])
		slot[LATE_NS] = took - wanted;
}

/* Takes the byte of this round from the FIFO, where something is there. */
static int take(void)
{
	unsigned char byte;
	errno = 0;
	ssize_t count = read(in, &byte, 1);
	if (count == 1 && byte != (slot[ROUNDS] & 0xff)) {
		errno = 1000 + byte;
		return 0;
	}
	return count == 1;
}

static void do_pipe(void)
{
	judge(take());
}

static void do_poll(void)
{
	struct pollfd fd = { .fd = in, .events = POLLIN };
	errno = 0;
	judge(poll(&fd, 1, 1000000) == 1 && fd.revents == POLLIN && take());
}

static void do_ppoll(void)
{
	struct pollfd fd = { .fd = in, .events = POLLIN };
	struct timespec limit = { .tv_sec = 1000 };
	errno = 0;
	judge(ppoll(&fd, 1, &limit, NULL) == 1 && fd.revents == POLLIN && take());
}

static void do_select(void)
{
	fd_set set;
	FD_ZERO(&set);
	FD_SET(in, &set);
	struct timeval limit = { .tv_sec = 1000 };
	errno = 0;
	judge(select(in + 1, &set, NULL, NULL, &limit) == 1 && FD_ISSET(in, &set) && take());
}

static int epoll;

static void open_epoll(void)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = 0x1122334455667788 };
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, in, &event))
		die("epoll");
}

static void do_epoll(void)
{
	struct epoll_event event = { 0 };
	errno = 0;
	judge(epoll_wait(epoll, &event, 1, -1) == 1 && event.data.u64 == 0x1122334455667788 && take());
}

static void do_epoll_timed(void)
{
	struct epoll_event event;
	uint64_t start = now();
	errno = 0;
	judge_timed(epoll_wait(epoll, &event, 1, 20) == 0, start, 20000000);
}

static void do_poll_timed(void)
{
	struct pollfd fd = { .fd = in, .events = POLLIN };
	uint64_t start = now();
	errno = 0;
	judge_timed(poll(&fd, 1, 20) == 0, start, 20000000);
}

static long futex(int operation, uint32_t value, struct timespec *limit)
{
	return syscall(SYS_futex, (uint32_t *)&slot[FUTEX], operation, value, limit, NULL, 0);
}

/* A child that wakes the futex for every byte of the FIFO. */
static void fork_waker(void)
{
	if (fork())
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		char byte;
		if (read(in, &byte, 1) != 1)
			continue;
		__atomic_add_fetch((uint32_t *)&slot[FUTEX], 1, __ATOMIC_SEQ_CST);
		futex(FUTEX_WAKE, 1, NULL);
	}
}

static void do_futex(void)
{
	uint32_t round = slot[ROUNDS];
	errno = 0;
	long result = futex(FUTEX_WAIT, round, NULL);
	int changed = (uint32_t)slot[FUTEX] == round + 1;
	judge(changed && (result == 0 || errno == EAGAIN));
}

static void do_futex_timed(void)
{
	struct timespec limit = { .tv_nsec = 20000000 };
	uint64_t start = now();
	judge_timed(futex(FUTEX_WAIT, 0, &limit) == -1 && errno == ETIMEDOUT, start, 20000000);
}

/* The child is left alone when the call fails, so that the next round waits for it again. */
static void do_wait4(void)
{
	static pid_t child;
	int status = 0;
	if (!child && !(child = fork())) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(take() ? 7 : 8);
	}
	errno = 0;
	int good = wait4(child, &status, 0, NULL) == child;
	if (good)
		child = 0;
	judge(good && WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

static void send_usr1(void)
{
	kill(getppid(), SIGUSR1);
}

static volatile sig_atomic_t handled;

static void handler(int signal)
{
	(void)signal;
	handled++;
}

static void do_sigsuspend(void)
{
	sigset_t none;
	sigemptyset(&none);
	int before = handled;
	sigsuspend(&none);
	if (handled == before + 1)
		slot[ROUNDS]++;
	else
		slot[EINTRS]++;
}

static void do_sigtimedwait(void)
{
	sigset_t set;
	struct timespec limit = { .tv_sec = 1000 };
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	errno = 0;
	judge(sigtimedwait(&set, NULL, &limit) == SIGUSR1);
}

static void prepare_signals(void)
{
	sigset_t set;
	struct sigaction action = { .sa_handler = handler };
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	helped_by(send_usr1);
	sigaction(SIGUSR1, &action, NULL);
	sigprocmask(SIG_BLOCK, &set, NULL);
}

static void do_nanosleep(void)
{
	struct timespec time = { .tv_nsec = 20000000 };
	uint64_t start = now();
	errno = 0;
	judge_timed(nanosleep(&time, NULL) == 0, start, 20000000);
}

static void do_clock_nanosleep(void)
{
	struct timespec time = { .tv_nsec = 20000000 };
	uint64_t start = now();
	errno = clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);
	judge_timed(errno == 0, start, 20000000);
}

static void do_clock_absolute(void)
{
	uint64_t start = now(), end = start + 20000000;
	struct timespec time = { .tv_sec = end / 1000000000, .tv_nsec = end % 1000000000 };
	errno = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
	judge_timed(errno == 0, start, 20000000);
}

static void do_getppid(void)
{
	static pid_t parent, self;
	static int count;
	if (!parent) {
		parent = getppid();
		self = getpid();
	}
	if (syscall(SYS_getppid) != parent || syscall(SYS_getpid) != self)
		wrong(1);
	if (++count % 10000 == 0)
		slot[ROUNDS]++;
}

#ifdef __x86_64__
/* Load the vector registers from `vectors`, fill the other registers but rsp and rcx, the red zone and the carry flag, spin, and store the
 * vector registers to `out`. They yield 0, or what changed first: 1-16 a register (its number and one), 20 the carry flag, 30 the red zone. */
uint64_t spin_sse(const void *vectors, uint64_t turns, void *out);
uint64_t spin_avx(const void *vectors, uint64_t turns, void *out);

__asm__(".macro each_register do\n"
	"\\do 0 rax\n \\do 2 rdx\n \\do 3 rbx\n \\do 5 rbp\n \\do 6 rsi\n \\do 7 rdi\n \\do 8 r8\n \\do 9 r9\n \\do 10 r10\n"
	"\\do 11 r11\n \\do 12 r12\n \\do 13 r13\n \\do 14 r14\n \\do 15 r15\n"
	".endm\n"
	".macro fill n reg\n mov $0x1111111111111100 + \\n, %\\reg\n .endm\n"
	".macro value n reg\n value_\\n: .quad 0x1111111111111100 + \\n\n .endm\n"
	".macro check n reg\n mov $1 + \\n, %ecx\n cmp value_\\n(%rip), %\\reg\n jne 9f\n .endm\n"
	".macro spin name load store register width\n"
	".globl \\name\n .type \\name, @function\n \\name:\n"
	"push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n push %rdx\n"
	".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n \\load \\n*\\width(%rdi), %\\register\\n\n .endr\n"
	"mov %rsi, %rcx\n each_register fill\n"
	"mov %rbx, -8(%rsp)\n mov %rbx, -64(%rsp)\n mov %rbx, -128(%rsp)\n stc\n"
	"1: lea -1(%rcx), %rcx\n jrcxz 2f\n jc 1b\n"
	"2: mov $20, %ecx\n jnc 9f\n"
	"each_register check\n mov $30, %ecx\n"
	"cmp %rbx, -8(%rsp)\n jne 9f\n cmp %rbx, -64(%rsp)\n jne 9f\n cmp %rbx, -128(%rsp)\n jne 9f\n"
	"xor %ecx, %ecx\n"
	"9: pop %rdx\n"
	".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n \\store %\\register\\n, \\n*\\width(%rdx)\n .endr\n"
	"mov %rcx, %rax\n pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n"
	".size \\name, . - \\name\n .endm\n"
	".text\n spin spin_sse movdqu movdqu xmm 16\n spin spin_avx vmovdqu vmovdqu ymm 32\n"
	".section .rodata\n each_register value\n .text\n");

static void do_spin(void)
{
	static unsigned char vectors[16 * 32], out[16 * 32];
	int avx = __builtin_cpu_supports("avx");
	for (size_t i = 0; i < sizeof vectors; i++)
		vectors[i] = i * 7 + slot[ROUNDS];
	uint64_t changed = (avx ? spin_avx : spin_sse)(vectors, 3000000, out);
	if (!changed && memcmp(out, vectors, avx ? sizeof out : sizeof out / 2))
		changed = 40;
	if (changed)
		wrong(changed);
	else
		slot[ROUNDS]++;
}
#endif

static void do_tty_line(void)
{
	char line[64];
	errno = 0;
	judge(read(0, line, sizeof line) == 5 && !memcmp(line, "line\n", 5));
}

static void set_raw(void)
{
	struct termios termios;
	if (tcgetattr(0, &termios))
		die("tcgetattr");
	cfmakeraw(&termios);
	termios.c_cc[VMIN] = 4;
	termios.c_cc[VTIME] = 0;
	if (tcsetattr(0, TCSANOW, &termios))
		die("tcsetattr");
}

static void do_tty_min(void)
{
	char bytes[64];
	errno = 0;
	judge(read(0, bytes, 4) == 4 && !memcmp(bytes, "abcd", 4));
}

/* More than a pty holds, so that the call waits until the master is read; once. */
static void do_tty_write(void)
{
	static char bytes[48000];
	memset(bytes, 'x', sizeof bytes);
	errno = 0;
	judge(write(1, bytes, sizeof bytes) == sizeof bytes);
	for (;;)
		pause();
}

static const struct mode modes[] = {
	{ "pipe", NULL, do_pipe },
	{ "poll", NULL, do_poll },
	{ "ppoll", NULL, do_ppoll },
	{ "select", NULL, do_select },
	{ "epoll", open_epoll, do_epoll },
	{ "epoll_timed", open_epoll, do_epoll_timed },
	{ "poll_timed", NULL, do_poll_timed },
	{ "futex", fork_waker, do_futex },
	{ "futex_timed", NULL, do_futex_timed },
	{ "wait4", NULL, do_wait4 },
	{ "sigsuspend", prepare_signals, do_sigsuspend },
	{ "sigtimedwait", prepare_signals, do_sigtimedwait },
	{ "nanosleep", NULL, do_nanosleep },
	{ "clock_nanosleep", NULL, do_clock_nanosleep },
	{ "clock_absolute", NULL, do_clock_absolute },
	{ "getppid", NULL, do_getppid },
#ifdef __x86_64__
	{ "spin", NULL, do_spin },
#endif
	{ "tty_line", NULL, do_tty_line },
	{ "tty_min", set_raw, do_tty_min },
	{ "tty_write", NULL, do_tty_write },
};

int main(int argc, char **argv)
{
	return run_mode(argc, argv, modes, sizeof modes / sizeof *modes);
}
