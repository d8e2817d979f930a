/* What a process has: memory, signals, attributes, descriptors, children. See check.h. */
#define _GNU_SOURCE
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "check.h"

static void in_deep_stack(int depth, void (*then)(void))
{
	char frame[PAGE * 4];
	paint(frame, sizeof frame, depth);
	if (depth)
		in_deep_stack(depth - 1, then);
	else
		then();
	expect_painted("stack", frame, sizeof frame, depth);
}

static void private_memory(void)
{
	size_t size = 64 * PAGE;
	char *plain = map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	paint(plain, size, 1);
	char *holes = map(1024 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (size_t n = 0; n < 1024; n += 3)
		paint(holes + n * PAGE, PAGE, n);
	char *fixed = map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	paint(fixed, size, 2);
	mprotect(fixed, size, PROT_READ);
	char *hidden = map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	paint(hidden, size, 3);
	mprotect(hidden, size, PROT_NONE);
	char *reserved = map(1ul << 40, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *once = map(PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	volatile char zero = *once;
	char *marked = map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	paint(marked, size, 4);
	madvise(marked, size, MADV_DONTFORK);
	char *start = sbrk(1 << 20);
	paint(start, 1 << 20, 5);
	in_deep_stack(100, pause_here);
	expect_painted("private", plain, size, 1);
	for (size_t n = 0; n < 1024; n += 3)
		expect_painted("private with holes", holes + n * PAGE, PAGE, n);
	for (size_t n = 1; n < 1024; n += 3)
		expect(holes[n * PAGE] == 0);
	same(shown(fixed, size, "r--p"), size);
	expect_painted("read only", fixed, size, 2);
	same(shown(hidden, size, "---p"), size);
	expect(!mprotect(hidden, size, PROT_READ));
	expect_painted("no access", hidden, size, 3);
	same(shown(reserved, 1ul << 40, "---p"), 1ul << 40);
	same(*once, zero);
	expect_painted("not forked", marked, size, 4);
	pid_t child = fork();
	if (!child) {
		unsigned char vector;
		_exit(mincore(marked, PAGE, &vector) == 0 || errno != ENOMEM);
	}
	int status;
	same(waitpid(child, &status, 0), child);
	same(status, 0);
	expect_painted("heap", start, 1 << 20, 5);
	expect(brk_after == brk_before);
	char *more = sbrk(PAGE), *now = sbrk(0);
	expect(now == more + PAGE);
	paint(more, PAGE, 6);
	expect_painted("grown heap", more, PAGE, 6);
}

static void shared_memory(void)
{
	size_t size = 32 * PAGE;
	char *both = map(size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char *read_only = map(size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char *left = map(size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char *part = map(size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char *hidden = map(size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char *twice = mremap(both, 0, size, MREMAP_MAYMOVE);
	volatile uint64_t *words = (volatile uint64_t *)both;
	int pipes[2], status;
	paint(both + PAGE, size - PAGE, 1);
	paint(read_only, size, 2);
	mprotect(read_only, size, PROT_READ);
	paint(part, size, 4);
	munmap(part, 2 * PAGE);
	paint(hidden, size, 5);
	mprotect(hidden, size, PROT_NONE);
	if (twice == MAP_FAILED || pipe(pipes))
		die("shared");
	/* Pages that only a process which is gone has touched. */
	pid_t gone = fork();
	if (!gone) {
		paint(left, size / 2, 3);
		_exit(0);
	}
	waitpid(gone, &status, 0);
	pid_t child = fork();
	if (!child) {
		char byte;
		munmap(read_only, size);
		if (read(pipes[0], &byte, 1) != 1)
			_exit(9);
		words[0]++;
		words[1] = (uint64_t)getpid();
		_exit(both[PAGE] == twice[PAGE] ? 0 : 8);
	}
	pause_here();
	expect_painted("shared", both + PAGE, size - PAGE, 1);
	expect_painted("second view", twice + PAGE, size - PAGE, 1);
	expect_painted("shared, read only", read_only, size, 2);
	same(shown(read_only, size, "r--s"), size);
	expect_painted("left behind", left, size / 2, 3);
	expect(left[size - 1] == 0);
	uint64_t *rest = (uint64_t *)(part + 2 * PAGE);
	for (size_t n = 0; n < (size - 2 * PAGE) / 8; n++)
		if (rest[n] != 4 * 0x9e3779b97f4a7c15ull + n + 2 * PAGE / 8) {
			wrong("partly unmapped shared memory changed at word %zu", n);
			break;
		}
	mprotect(hidden, size, PROT_READ);
	expect_painted("shared, no access", hidden, size, 5);
	words[0] = 41;
	same(write(pipes[1], "x", 1), 1);
	same(waitpid(child, &status, 0), child);
	same(status, 0);
	same(words[0], 42);
	same(words[1], child);
	same(((volatile uint64_t *)twice)[0], 42);
}

static void file_memory(void)
{
	size_t size = 16 * PAGE;
	int fd = open("file", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	char page[PAGE];
	for (int n = 0; n < 16; n++) {
		paint(page, PAGE, n);
		if (write(fd, page, PAGE) != (ssize_t)PAGE)
			die("file");
	}
	char *private = map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	char *shared = map(size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	char *offset = map(4 * PAGE, PROT_READ, MAP_PRIVATE, fd, 8 * PAGE);
	char *written = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 4 * PAGE);
	paint(private + 3 * PAGE, PAGE, 100);
	paint(written, PAGE, 101);
	mprotect(written, 4 * PAGE, PROT_READ);
	close(fd);
	pause_here();
	for (int n = 0; n < 16; n++) {
		expect_painted("private file mapping", private + n * PAGE, PAGE, n == 3 ? 100 : n);
		expect_painted("shared file mapping", shared + n * PAGE, PAGE, n);
	}
	for (int n = 0; n < 4; n++) {
		expect_painted("file mapping with offset", offset + n * PAGE, PAGE, 8 + n);
		expect_painted("written file mapping", written + n * PAGE, PAGE, n ? 4 + n : 101);
	}
	paint(shared + 5 * PAGE, PAGE, 105);
	expect_painted("private view of the file", private + 5 * PAGE, PAGE, 105);
	fd = open("file", O_RDONLY | O_CLOEXEC);
	same(pread(fd, page, PAGE, 5 * PAGE), PAGE);
	expect_painted("file", page, PAGE, 105);
	paint(private + 6 * PAGE, PAGE, 106);
	expect_painted("shared file mapping", shared + 6 * PAGE, PAGE, 6);
}

static volatile sig_atomic_t handled[65];
static volatile int values[8], value_count, on_stack;
static char *alternate;

static void handler(int signal, siginfo_t *info, void *context)
{
	char here;
	(void)context;
	handled[signal]++;
	if (signal >= SIGRTMIN && value_count < 8)
		values[value_count++] = info->si_value.sival_int;
	if (&here >= alternate && &here < alternate + 65536)
		on_stack = 1;
}

static void signals(void)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART }, got;
	sigset_t mask, pending;
	alternate = map(65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	stack_t stack = { .ss_sp = alternate, .ss_size = 65536 }, stack_got;
	sigaltstack(&stack, NULL);
	sigemptyset(&action.sa_mask);
	sigaddset(&action.sa_mask, SIGTERM);
	sigaction(SIGUSR1, &action, NULL);
	sigaction(SIGRTMIN + 1, &action, NULL);
	action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
	sigaction(SIGUSR2, &action, NULL);
	action.sa_flags = SA_SIGINFO | SA_RESETHAND;
	sigaction(SIGALRM, &action, NULL);
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	sigaddset(&mask, SIGRTMIN + 1);
	sigaddset(&mask, SIGRTMIN + 2);
	sigaddset(&mask, SIGHUP);
	sigprocmask(SIG_SETMASK, &mask, NULL);
	kill(getpid(), SIGUSR1);
	kill(getpid(), SIGUSR1);
	syscall(SYS_tgkill, getpid(), gettid(), SIGHUP);
	for (int n = 1; n <= 3; n++)
		sigqueue(getpid(), SIGRTMIN + 1, (union sigval){ .sival_int = n * 11 });
	sigqueue(getpid(), SIGRTMIN + 2, (union sigval){ .sival_int = 99 });
	struct itimerval real = { { 7, 500000 }, { 3600, 0 } }, virtual = { { 0, 0 }, { 5000, 0 } }, got_timer;
	setitimer(ITIMER_REAL, &real, NULL);
	setitimer(ITIMER_VIRTUAL, &virtual, NULL);
	pause_here();
	sigprocmask(SIG_SETMASK, NULL, &pending);
	expect(!memcmp(&pending, &mask, 8));
	sigpending(&pending);
	expect(sigismember(&pending, SIGUSR1) && sigismember(&pending, SIGHUP) && sigismember(&pending, SIGRTMIN + 1));
	expect(!sigismember(&pending, SIGCHLD) && !sigismember(&pending, SIGTERM));
	sigaction(SIGUSR1, NULL, &got);
	same(got.sa_flags & ~0x04000000, SA_SIGINFO | SA_RESTART);
	expect(got.sa_sigaction == handler && sigismember(&got.sa_mask, SIGTERM) && !sigismember(&got.sa_mask, SIGINT));
	sigaction(SIGUSR2, NULL, &got);
	same(got.sa_flags & ~0x04000000, SA_SIGINFO | SA_ONSTACK | SA_NODEFER);
	sigaction(SIGALRM, NULL, &got);
	same(got.sa_flags & ~0x04000000, SA_SIGINFO | (int)SA_RESETHAND);
	sigaction(SIGPIPE, NULL, &got);
	expect(got.sa_handler == SIG_IGN);
	sigaltstack(NULL, &stack_got);
	expect(stack_got.ss_sp == alternate && stack_got.ss_size == 65536 && stack_got.ss_flags == 0);
	raise(SIGUSR2);
	same(handled[SIGUSR2], 1);
	same(on_stack, 1);
	siginfo_t info;
	sigset_t one;
	sigemptyset(&one);
	sigaddset(&one, SIGRTMIN + 2);
	same(sigwaitinfo(&one, &info), SIGRTMIN + 2);
	same(info.si_value.sival_int, 99);
	same(info.si_code, SI_QUEUE);
	same(info.si_pid, getpid());
	sigemptyset(&one);
	sigaddset(&one, SIGHUP);
	same(sigwaitinfo(&one, &info), SIGHUP);
	/* The C library says SI_USER for SI_TKILL. */
	same(info.si_code, SI_USER);
	sigemptyset(&mask);
	sigprocmask(SIG_SETMASK, &mask, NULL);
	same(handled[SIGUSR1], 1);
	same(handled[SIGRTMIN + 1], 3);
	for (int n = 0; n < 3; n++)
		same(values[n], (n + 1) * 11);
	getitimer(ITIMER_REAL, &got_timer);
	same(got_timer.it_interval.tv_sec * 1000000 + got_timer.it_interval.tv_usec, 7500000);
	expect(got_timer.it_value.tv_sec >= 3540 && got_timer.it_value.tv_sec < 3600);
	getitimer(ITIMER_VIRTUAL, &got_timer);
	expect(got_timer.it_value.tv_sec >= 4990 && got_timer.it_value.tv_sec <= 5000);
}

static long number_in(const char *path)
{
	char text[32] = "";
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || read(fd, text, sizeof text - 1) < 0)
		die(path);
	close(fd);
	return atol(text);
}

static void attributes(void)
{
	char name[16], cwd[4096], here[4096];
	struct rlimit limit, files = { 300, 400 }, core = { 0, 12345 };
	int number, adjust = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (adjust < 0 || write(adjust, "321", 3) != 3)
		die("oom_score_adj");
	close(adjust);
	umask(0137);
	mkdir("sub", 0700);
	if (chdir("sub") || !getcwd(here, sizeof here))
		die("sub");
	setrlimit(RLIMIT_NOFILE, &files);
	setrlimit(RLIMIT_CORE, &core);
	setpriority(PRIO_PROCESS, 0, 5);
	prctl(PR_SET_NAME, "a (strange) )c");
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	prctl(PR_SET_PDEATHSIG, SIGWINCH);
	prctl(PR_SET_TIMERSLACK, 77777);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	prctl(PR_SET_DUMPABLE, 1);
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	if (chdir(".."))
		die("..");
	say_ready(getpid());
	if (chdir("sub"))
		die("sub");
	/* Both the directory and the name of the program are asked for by path later on. */
	wait_for_go();
	prctl(PR_GET_NAME, name);
	expect(!strcmp(name, "a (strange) )c"));
	expect(getcwd(cwd, sizeof cwd) && !strcmp(cwd, here));
	same(umask(0), 0137);
	getrlimit(RLIMIT_NOFILE, &limit);
	same(limit.rlim_cur, 300);
	same(limit.rlim_max, 400);
	getrlimit(RLIMIT_CORE, &limit);
	same(limit.rlim_cur, 0);
	same(limit.rlim_max, 12345);
	same(getpriority(PRIO_PROCESS, 0), 5);
	same(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
	prctl(PR_GET_PDEATHSIG, &number);
	same(number, SIGWINCH);
	same(prctl(PR_GET_TIMERSLACK), 77777);
	prctl(PR_GET_CHILD_SUBREAPER, &number);
	same(number, 1);
	same(prctl(PR_GET_DUMPABLE), 1);
	same(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 1);
	same(number_in("/proc/self/oom_score_adj"), 321);
	same(getsid(0), getpid());
	same(getpgrp(), getpid());
	if (chdir(".."))
		die("..");
}

static void capabilities(struct __user_cap_data_struct data[2])
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	memset(data, 0, 2 * sizeof *data);
	if (syscall(SYS_capget, &header, data))
		die("capget");
}

static void check_identity(void)
{
	struct __user_cap_data_struct before[2], after[2];
	uid_t uid[3], uid_now[3];
	gid_t gid[3], gid_now[3], groups[8], groups_now[8];
	int count = getgroups(8, groups), bits = prctl(PR_GET_SECUREBITS), dumpable = prctl(PR_GET_DUMPABLE);
	getresuid(&uid[0], &uid[1], &uid[2]);
	getresgid(&gid[0], &gid[1], &gid[2]);
	int fsuid = syscall(SYS_setfsuid, -1), fsgid = syscall(SYS_setfsgid, -1);
	capabilities(before);
	int bounding[40], ambient[40];
	for (int cap = 0; cap < 40; cap++) {
		bounding[cap] = prctl(PR_CAPBSET_READ, cap, 0, 0, 0);
		ambient[cap] = prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, cap, 0, 0);
	}
	same(bounding[CAP_SYS_BOOT], 0);
	same(ambient[CAP_NET_RAW], 1);
	pause_here();
	capabilities(after);
	getresuid(&uid_now[0], &uid_now[1], &uid_now[2]);
	getresgid(&gid_now[0], &gid_now[1], &gid_now[2]);
	for (int n = 0; n < 3; n++) {
		same(uid_now[n], uid[n]);
		same(gid_now[n], gid[n]);
	}
	same(syscall(SYS_setfsuid, -1), fsuid);
	same(syscall(SYS_setfsgid, -1), fsgid);
	same(getgroups(8, groups_now), count);
	expect(!memcmp(groups, groups_now, count * sizeof *groups));
	expect(!memcmp(before, after, sizeof before));
	same(prctl(PR_GET_SECUREBITS), bits);
	same(prctl(PR_GET_DUMPABLE), dumpable);
	for (int cap = 0; cap < 40; cap++) {
		same(prctl(PR_CAPBSET_READ, cap, 0, 0, 0), bounding[cap]);
		same(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, cap, 0, 0), ambient[cap]);
	}
}

static void other_user(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2];
	gid_t groups[] = { 4711, 23456, 31000 };
	prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT, 0, 0, 0);
	prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0);
	if (setgroups(3, groups) || setresgid(23456, 23457, 23458) || setresuid(12345, 12346, 12347))
		die("setresuid");
	memset(data, 0, sizeof data);
	data[0].permitted = data[0].inheritable = 1 << CAP_NET_RAW | 1 << CAP_DAC_OVERRIDE;
	data[0].effective = 1 << CAP_DAC_OVERRIDE;
	if (syscall(SYS_capset, &header, data) || prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_RAW, 0, 0))
		die("capset");
	check_identity();
}

static void other_user_without_privilege(void)
{
	prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT, 0, 0, 0);
	gid_t group = 65534;
	/* What it writes at the end is open already; what it writes before is in a directory of everybody. */
	if (chmod(".", 0777) || setgroups(1, &group) || setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
		die("setresuid");
	struct __user_cap_data_struct data[2];
	capabilities(data);
	expect(!data[0].permitted);
	say_ready(getpid());
	wait_for_go();
	uid_t uid[3];
	getresuid(&uid[0], &uid[1], &uid[2]);
	same(uid[0] == 65534 && uid[1] == 65534 && uid[2] == 65534, 1);
	same(getgroups(0, NULL), 1);
	capabilities(data);
	same(data[0].permitted | data[0].effective | data[0].inheritable, 0);
	same(prctl(PR_CAPBSET_READ, CAP_SYS_BOOT, 0, 0, 0), 0);
	expect(setuid(0) == -1 && errno == EPERM);
}

static void expect_bytes(int fd, const char *expected)
{
	char bytes[256] = "";
	ssize_t got = read(fd, bytes, sizeof bytes);
	if (got != (ssize_t)strlen(expected) || memcmp(bytes, expected, got))
		wrong("descriptor %d gave %zd bytes \"%s\" instead of \"%s\"", fd, got, bytes, expected);
}

static void descriptors(void)
{
	int one[2], back[2], start[2], status;
	struct stat before, after;
	char text[64];
	mkfifo("fifo", 0600);
	int fifo = open("fifo", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	int fifo_reader = open("fifo", O_RDONLY | O_NONBLOCK);
	int file = open("data", O_RDWR | O_CREAT | O_CLOEXEC, 0640);
	int log = open("log", O_WRONLY | O_CREAT | O_APPEND, 0600);
	int directory = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int path = open("data", O_PATH);
	int zero = open("/dev/zero", O_RDONLY);
	int high = fcntl(file, F_DUPFD, 200);
	int again = dup(file), other = open("data", O_RDONLY);
	if (pipe(one) || pipe(start) || pipe2(back, O_NONBLOCK | O_CLOEXEC) || write(file, "0123456789", 10) != 10 || write(log, "first\n", 6) != 6)
		die("descriptors");
	if (fifo < 0 || fifo_reader < 0 || path < 0 || zero < 0 || high != 200 || again < 0 || other < 0 || directory < 0)
		die("open");
	fcntl(back[1], F_SETPIPE_SZ, 8192);
	lseek(file, 3, SEEK_SET);
	lseek(other, 5, SEEK_SET);
	if (write(one[1], "unread in a pipe", 16) != 16 || write(fifo, "unread in a fifo", 16) != 16 || write(back[1], "back", 4) != 4)
		die("write");
	fstat(file, &before);
	pid_t child = fork();
	if (!child) {
		/* Waits for the parent to say that it looked, then moves the position that both have. */
		char byte;
		close(one[1]);
		if (read(start[0], &byte, 1) != 1)
			_exit(2);
		if (lseek(file, 0, SEEK_CUR) != 7 || lseek(file, 1, SEEK_SET) != 1)
			_exit(3);
		_exit(0);
	}
	pause_here();
	same(lseek(file, 0, SEEK_CUR), 3);
	same(lseek(other, 0, SEEK_CUR), 5);
	same(lseek(again, 0, SEEK_CUR), 3);
	same(lseek(high, 7, SEEK_SET), 7);
	same(lseek(file, 0, SEEK_CUR), 7);
	same(fcntl(file, F_GETFD), FD_CLOEXEC);
	same(fcntl(again, F_GETFD), 0);
	same(fcntl(high, F_GETFD), 0);
	same(fcntl(log, F_GETFD), 0);
	same(fcntl(log, F_GETFL), O_WRONLY | O_APPEND | O_LARGEFILE | 0100000);
	same(fcntl(back[0], F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	same(fcntl(one[0], F_GETFL) & O_NONBLOCK, 0);
	same(fcntl(path, F_GETFL) & O_PATH, O_PATH);
	same(fcntl(back[1], F_GETPIPE_SZ), 8192);
	same(write(log, "second\n", 7), 7);
	same(lseek(log, 0, SEEK_CUR), 13);
	expect(fstat(file, &after) == 0 && after.st_ino == before.st_ino && after.st_mode == before.st_mode);
	expect_bytes(one[0], "unread in a pipe");
	expect_bytes(fifo_reader, "unread in a fifo");
	expect_bytes(back[0], "back");
	expect(openat(directory, "data", O_RDONLY) >= 0);
	same(read(zero, text, 8), 8);
	same(write(start[1], "X", 1), 1);
	same(waitpid(child, &status, 0), child);
	same(status, 0);
	same(lseek(again, 0, SEEK_CUR), 1);
	close(one[1]);
	same(read(one[0], text, 1), 0);
}

static void family(void)
{
	int status, ready[2], hold[2];
	char byte;
	if (pipe(ready) || pipe(hold))
		die("pipe");
	pid_t ended = fork();
	if (!ended)
		_exit(7);
	pid_t killed = fork();
	if (!killed) {
		raise(SIGKILL);
		_exit(0);
	}
	/* A session of its own, without terminal, with a child in a group of that session's. */
	pid_t apart = fork();
	if (!apart) {
		setsid();
		if (!fork()) {
			setpgid(0, 0);
			if (write(ready[1], "x", 1) != 1)
				_exit(9);
			same(read(hold[0], &byte, 1), 1);
			same(getpgrp(), getpid());
			same(getsid(0), getppid());
			_exit(0);
		}
		if (waitpid(-1, &status, 0) < 0 || status || getsid(0) != getpid())
			_exit(1);
		_exit(4);
	}
	/* A group whose leader is dead: the leader is reaped, a member lives on. */
	int group_pipe[2];
	if (pipe(group_pipe))
		die("pipe");
	pid_t leader = fork();
	if (!leader) {
		setpgid(0, 0);
		same(read(group_pipe[0], &byte, 1), 1);
		_exit(0);
	}
	setpgid(leader, leader);
	pid_t member = fork();
	if (!member) {
		setpgid(0, leader);
		if (write(ready[1], "x", 1) != 1)
			_exit(9);
		same(read(hold[0], &byte, 1), 1);
		_exit(getpgrp() == leader ? 5 : 1);
	}
	setpgid(member, leader);
	pid_t stopped = fork();
	if (!stopped) {
		raise(SIGSTOP);
		_exit(6);
	}
	same(waitpid(stopped, &status, WUNTRACED), stopped);
	for (int n = 0; n < 2; n++)
		if (read(ready[0], &byte, 1) != 1)
			die("ready");
	if (write(group_pipe[1], "x", 1) != 1 || waitpid(leader, &status, 0) != leader)
		die("leader");
	siginfo_t info;
	waitid(P_PID, ended, &info, WEXITED | WNOWAIT);
	waitid(P_PID, killed, &info, WEXITED | WNOWAIT);
	pause_here();
	/* A restored zombie has ended anew, with the same status. */
	same(waitpid(ended, &status, 0), ended);
	expect(WIFEXITED(status) && WEXITSTATUS(status) == 7);
	same(waitpid(killed, &status, 0), killed);
	expect(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	/* The stop was reported before: it is not reported a second time. */
	same(waitpid(stopped, &status, WUNTRACED | WNOHANG), 0);
	same(getpgid(member), leader);
	same(getsid(member), getpid());
	same(getsid(apart), apart);
	same(kill(stopped, SIGCONT), 0);
	same(waitpid(stopped, &status, 0), stopped);
	expect(WIFEXITED(status) && WEXITSTATUS(status) == 6);
	same(write(hold[1], "xx", 2), 2);
	same(waitpid(member, &status, 0), member);
	expect(WIFEXITED(status) && WEXITSTATUS(status) == 5);
	same(waitpid(apart, &status, 0), apart);
	expect(WIFEXITED(status) && WEXITSTATUS(status) == 4);
	same(waitpid(-1, &status, 0), -1);
	same(errno, ECHILD);
}

int main(int argc, char **argv)
{
	static const struct check checks[] = {
		{ "private_memory", private_memory },
		{ "shared_memory", shared_memory },
		{ "file_memory", file_memory },
		{ "signals", signals },
		{ "attributes", attributes },
		{ "other_user", other_user },
		{ "other_user_without_privilege", other_user_without_privilege },
		{ "descriptors", descriptors },
		{ "family", family },
	};
	return run_check(argc, argv, checks, sizeof checks / sizeof *checks);
}
