/* A call on a terminal that has moved a part of what it was asked to, and a signal handler that has interrupted it.
 *
 *   interrupted DIR CHECK
 *
 * As check.h. "two" and "five" have as many threads in a call, and no handler. Else a child is in the call; DIR/child holds its PID. Its handler for SIGUSR1 leaves DIR/handling and returns once it has got a byte
 * through the FIFO DIR/back. */
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
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

/* A terminal without lines of which a read waits for all that it asks for; a part of that is typed. */
static void open_pty(int *master, int *slave)
{
	struct termios raw;
	*master = posix_openpt(O_RDWR | O_NOCTTY);
	if (*master < 0 || unlockpt(*master))
		die("openpt");
	*slave = open(ptsname(*master), O_RDWR | O_NOCTTY);
	if (*slave < 0 || tcgetattr(*slave, &raw))
		die("slave");
	cfmakeraw(&raw);
	raw.c_cc[VMIN] = SMALL;
	if (tcsetattr(*slave, TCSANOW, &raw) || write(*master, "abcd", 4) != 4)
		die("raw");
}

static void begin(void (*call)(void), int flags)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = flags };
	char text[16];
	told = map(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	mkfifo("back", 0600);
	back = open("back", O_RDWR | O_CLOEXEC);
	if (back < 0)
		die("back");
	open_pty(&master, &slave);
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

static struct reader { pthread_t thread; int master, slave; ssize_t count; char read[SMALL]; } readers[5];

static void *read_all(void *argument)
{
	struct reader *reader = argument;
	reader->count = read(reader->slave, reader->read, SMALL);
	return NULL;
}

static void threads(int number)
{
	for (struct reader *one = readers; one < readers + number; one++) {
		open_pty(&one->master, &one->slave);
		if (pthread_create(&one->thread, NULL, read_all, one))
			die("pthread_create");
		/* It has read what there was. */
		int unread;
		while (!ioctl(one->slave, FIONREAD, &unread) && unread)
			;
	}
	pause_here();
	for (struct reader *one = readers; one < readers + number; one++) {
		expect(write(one->master, "efghij", 6) == 6);
		pthread_join(one->thread, NULL);
		same(one->count, SMALL);
		expect(!memcmp(one->read, "abcdefghij", SMALL));
	}
}

static void two(void)
{
	threads(2);
}

static void five(void)
{
	threads(5);
}

static const struct check checks[] = {
	{ "write_restarts", write_restarts },
	{ "write_ends", write_ends },
	{ "read_restarts", read_restarts },
	{ "read_ends", read_ends },
	{ "two", two },
	{ "five", five },
};

int main(int argc, char **argv)
{
	return run_check(argc, argv, checks, sizeof checks / sizeof *checks);
}
