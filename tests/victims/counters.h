/* What victims have in common that make one system call again and again and count whatever they notice.
 *
 *   VICTIM DIR MODE
 *
 * DIR/counters is a file of at least one page, whose slots (uint64_t) are named below; DIR/in is a FIFO. A process whose call returned anything but
 * what it should counts that and goes on. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { READY, ROUNDS, EINTRS, EARLY, WRONG, DETAIL, FIRST_OWN };

static volatile uint64_t *slot;
static int in;

static void die(const char *what)
{
	perror(what);
	_exit(1);
}

static void wrong(uint64_t detail)
{
	slot[DETAIL] = detail;
	slot[WRONG]++;
}

/* Judges one call: `good` says whether it returned what it should. */
static void judge(int good)
{
	if (good)
		slot[ROUNDS]++;
	else if (errno == EINTR)
		slot[EINTRS]++;
	else
		wrong(errno ? errno : 1000);
}

/* A child that does something for every byte of the FIFO. */
static void helped_by(void (*act)(void))
{
	if (fork())
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		char byte;
		if (read(in, &byte, 1) == 1)
			act();
	}
}

struct mode {
	const char *name;
	void (*prepare)(void);
	void (*turn)(void);
};

static int run_mode(int argc, char **argv, const struct mode *modes, size_t count)
{
	if (argc != 3 || chdir(argv[1]))
		die("usage: VICTIM DIR MODE");
	/* What the test itself was given by whoever runs it does not belong to the victim. */
	close_range(3, ~0U, 0);
	int counters = open("counters", O_RDWR | O_CLOEXEC);
	in = open("in", O_RDWR | O_CLOEXEC);
	slot = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, counters, 0);
	if (in < 0 || slot == MAP_FAILED)
		die(argv[1]);
	close(counters);
	for (size_t i = 0; i < count; i++) {
		if (strcmp(modes[i].name, argv[2]))
			continue;
		if (modes[i].prepare)
			modes[i].prepare();
		slot[READY] = 1;
		for (;;)
			modes[i].turn();
	}
	die(argv[2]);
	return 1;
}
