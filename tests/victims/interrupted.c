/* A call on a terminal that has moved a part of what it was asked to, and a signal handler that has interrupted it.
 *
 *   interrupted DIR CHECK
 *
 * As check.h. A child is in the call; DIR/child holds its PID. Its handler for SIGUSR1 leaves DIR/handling and returns once it has got a byte
 * through the FIFO DIR/back. */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <termios.h>

#include "check.h"

enum { LARGE = 48000, SMALL = 10 };

/* What the child has to say. */
static volatile struct { ssize_t count; int error, ended; char read[SMALL]; } *told;
static int master, slave, back;

static char letter(size_t at)
{
	return 'a' + at % 23;
}

static void handler(int signal)
{
	char byte;
	(void)signal;
	leave("handling", "");
	while (read(back, &byte, 1) != 1)
		;
}

static void do_write(void)
{
	static char text[LARGE];
	for (size_t n = 0; n < sizeof text; n++)
		text[n] = letter(n);
	told->count = write(slave, text, sizeof text);
}

static void do_read(void)
{
	told->count = read(slave, (char *)told->read, SMALL);
}

static void begin(void (*call)(void), int flags)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = flags };
	struct termios raw;
	char text[16];
	told = map(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	mkfifo("back", 0600);
	back = open("back", O_RDWR | O_CLOEXEC);
	master = posix_openpt(O_RDWR | O_NOCTTY);
	if (back < 0 || master < 0 || unlockpt(master))
		die("openpt");
	slave = open(ptsname(master), O_RDWR | O_NOCTTY);
	if (slave < 0 || tcgetattr(slave, &raw))
		die("slave");
	cfmakeraw(&raw);
	raw.c_cc[VMIN] = SMALL;
	if (tcsetattr(slave, TCSANOW, &raw) || write(master, "abcd", 4) != 4)
		die("raw");
	pid_t child = fork();
	if (!child) {
		sigaction(SIGUSR1, &action, NULL);
		errno = 0;
		call();
		told->error = errno;
		told->ended = 1;
		for (;;)
			pause();
	}
	snprintf(text, sizeof text, "%d", child);
	leave("child", text);
	pause_here();
}

/* Takes what was written; it is as much as the call has said, in order. */
static void check_write(void)
{
	static char some[4096];
	struct pollfd ready = { .fd = master, .events = POLLIN };
	ssize_t total = 0;
	/* Behind the end of the call what it has written is there, or on its way. */
	while (poll(&ready, 1, told->ended ? 200 : 1) > 0 || !told->ended) {
		ssize_t count = ready.revents ? read(master, some, sizeof some) : 0;
		for (ssize_t n = 0; n < count; n++)
			if (some[n] != letter(total + n)) {
				wrong("byte %zd differs", total + n);
				return;
			}
		total += count;
		ready.revents = 0;
	}
	same(told->error, 0);
	same(told->count, total);
}

static void write_restarts(void)
{
	begin(do_write, SA_RESTART);
	check_write();
}

static void write_ends(void)
{
	begin(do_write, 0);
	check_write();
}

static void check_read(ssize_t count)
{
	while (!told->ended)
		usleep(1000);
	same(told->count, count);
	expect(!memcmp((const char *)told->read, "abcdefghij", count));
}

static void read_restarts(void)
{
	begin(do_read, SA_RESTART);
	expect(write(master, "efghijkl", 8) == 8);
	check_read(SMALL);
}

static void read_ends(void)
{
	begin(do_read, 0);
	check_read(4);
}

static const struct check checks[] = {
	{ "write_restarts", write_restarts },
	{ "write_ends", write_ends },
	{ "read_restarts", read_restarts },
	{ "read_ends", read_ends },
};

int main(int argc, char **argv)
{
	return run_check(argc, argv, checks, sizeof checks / sizeof *checks);
}
