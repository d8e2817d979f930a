// Uses the functions of its vDSO by the addresses that it found at its start, as a C library does. Usage: vdso DIR MODE
//
// calls    waits for a byte in DIR/go, then calls each of them and compares with the system call
// loop     calls the clock without a pause until DIR/go has a byte
// handler  a signal handler that has interrupted the clock waits for the byte
//
// DIR/ready gets the process id, and in mode "handler" DIR/within the interrupted offset; DIR/result gets what was wrong, then "done".
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

static const char *dir;
static FILE *result;
static uintptr_t base, clock_size;
static int go;
static volatile sig_atomic_t done;

static int (*clock_fn)(clockid_t, struct timespec *);
static int (*res_fn)(clockid_t, struct timespec *);
static int (*day_fn)(struct timeval *, void *);
static time_t (*time_fn)(time_t *);
static long (*cpu_fn)(unsigned *, unsigned *, void *);
static ssize_t (*random_fn)(void *, size_t, unsigned, void *, size_t);

static void *find(const char *name)
{
	const Elf64_Ehdr *elf = (void *)base;
	const Elf64_Phdr *segment = (void *)(base + elf->e_phoff);
	const Elf64_Sym *symbols = NULL;
	const char *names = NULL;

	for (int n = 0; n < elf->e_phnum; n++) {
		if (segment[n].p_type != PT_DYNAMIC)
			continue;
		for (const Elf64_Dyn *entry = (void *)(base + segment[n].p_vaddr); entry->d_tag != DT_NULL; entry++) {
			if (entry->d_tag == DT_SYMTAB)
				symbols = (void *)(base + entry->d_un.d_ptr);
			if (entry->d_tag == DT_STRTAB)
				names = (void *)(base + entry->d_un.d_ptr);
		}
	}
	// The string table lies behind the symbols.
	for (const Elf64_Sym *symbol = symbols; (const char *)symbol < names; symbol++) {
		if (symbol->st_name && !strcmp(names + symbol->st_name, name)) {
			if (!strcmp(name, "__vdso_clock_gettime"))
				clock_size = symbol->st_size;
			return (void *)(base + symbol->st_value);
		}
	}
	return NULL;
}

static FILE *create(const char *name)
{
	char path[4096];

	snprintf(path, sizeof path, "%s/%s", dir, name);
	return fopen(path, "w");
}

static void ready(void)
{
	FILE *file = create("ready.part");
	char from[4096], to[4096];

	fprintf(file, "%d", getpid());
	fclose(file);
	snprintf(from, sizeof from, "%s/ready.part", dir);
	snprintf(to, sizeof to, "%s/ready", dir);
	rename(from, to);
}

static void wait_for_go(void)
{
	char byte;

	while (read(go, &byte, 1) != 1)
		;
}

static void wrong(const char *what)
{
	fprintf(result, "%s is wrong\n", what);
}

static int near(time_t one, time_t other)
{
	return one - other <= 5 && other - one <= 5;
}

static void check_clock(clockid_t clock, const char *name)
{
	struct timespec one = { 0 }, other;

	syscall(SYS_clock_gettime, clock, &other);
	if (clock_fn(clock, &one) || !near(one.tv_sec, other.tv_sec))
		wrong(name);
}

static void calls(void)
{
	struct timespec resolution = { 0 };
	struct timeval day = { 0 };
	unsigned cpu = ~0u;
	char bytes[32] = { 0 }, state[256] = { 0 };

	check_clock(CLOCK_REALTIME, "CLOCK_REALTIME");
	check_clock(CLOCK_MONOTONIC, "CLOCK_MONOTONIC");
	check_clock(CLOCK_BOOTTIME, "CLOCK_BOOTTIME");
	check_clock(CLOCK_REALTIME_COARSE, "CLOCK_REALTIME_COARSE");
	check_clock(CLOCK_MONOTONIC_COARSE, "CLOCK_MONOTONIC_COARSE");
	check_clock(CLOCK_THREAD_CPUTIME_ID, "CLOCK_THREAD_CPUTIME_ID");
	if (!near(time_fn(NULL), syscall(SYS_time, NULL)))
		wrong("time");
	if (day_fn(&day, NULL) || !near(day.tv_sec, syscall(SYS_time, NULL)))
		wrong("gettimeofday");
	if (res_fn(CLOCK_MONOTONIC, &resolution) || resolution.tv_sec || !resolution.tv_nsec)
		wrong("clock_getres");
	if (cpu_fn(&cpu, NULL, NULL) || cpu >= 4096)
		wrong("getcpu");
	if (random_fn) {
		ssize_t size = random_fn(NULL, 0, 0, state, ~0UL);

		if (size != 0 && size != -ENOSYS)
			wrong("the size of getrandom's state");
		if (random_fn(bytes, sizeof bytes, 0, NULL, 0) != sizeof bytes || !memcmp(bytes, (char[32]){ 0 }, 32))
			wrong("getrandom");
	}
}

static void handler(int signal, siginfo_t *info, void *context)
{
	uintptr_t at = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] - (uintptr_t)clock_fn;
	struct itimerval never = { 0 };
	FILE *file;

	(void)signal, (void)info;
	if (done || at < 8 || at >= clock_size)
		return;
	setitimer(ITIMER_REAL, &never, NULL);
	file = create("within");
	fprintf(file, "%lu", (unsigned long)at);
	fclose(file);
	ready();
	wait_for_go();
	done = 1;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART };
	struct itimerval often = { { 0, 700 }, { 0, 700 } };
	struct timespec now = { 0 }, last = { 0 }, truth;
	char path[4096], byte;

	if (argc != 3)
		return 2;
	close_range(3, ~0U, 0);
	dir = argv[1];
	base = getauxval(AT_SYSINFO_EHDR);
	clock_fn = find("__vdso_clock_gettime");
	res_fn = find("__vdso_clock_getres");
	day_fn = find("__vdso_gettimeofday");
	time_fn = find("__vdso_time");
	cpu_fn = find("__vdso_getcpu");
	random_fn = find("__vdso_getrandom");
	snprintf(path, sizeof path, "%s/go", dir);
	go = open(path, O_RDWR);
	result = create("result");
	setvbuf(result, NULL, _IOLBF, 0);
	if (!strcmp(argv[2], "calls")) {
		ready();
		wait_for_go();
	} else if (!strcmp(argv[2], "loop")) {
		fcntl(go, F_SETFL, O_NONBLOCK);
		ready();
		do {
			for (int n = 0; n < 200000; n++) {
				if (clock_fn(CLOCK_MONOTONIC, &now) || now.tv_nsec < 0 || now.tv_nsec >= 1000000000)
					wrong("the clock");
				if (now.tv_sec < last.tv_sec || (now.tv_sec == last.tv_sec && now.tv_nsec < last.tv_nsec))
					wrong("the order of time");
				last = now;
			}
		} while (read(go, &byte, 1) != 1);
	} else {
		sigaction(SIGALRM, &action, NULL);
		setitimer(ITIMER_REAL, &often, NULL);
		do {
			if (clock_fn(CLOCK_MONOTONIC, &now))
				wrong("the clock's answer");
		} while (!done);
		syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &truth);
		if (!near(now.tv_sec, truth.tv_sec))
			wrong("the interrupted clock");
	}
	calls();
	fprintf(result, "done\n");
	pause();
	return 0;
}
