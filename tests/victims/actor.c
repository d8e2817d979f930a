/* A process that does what its script says, one system call at a time.
 *
 *   actor DIR
 *
 * Detaches as "root" (a session leader without terminal, orphaned). An actor NAME reads lines from the FIFO DIR/NAME.in and answers
 * each with a line in the FIFO DIR/NAME.out:
 *
 *   sys NR ARG...   a system call; an ARG is a number, #HEX (bytes passed in), ~HEX (the same, answered) or @N (room for N bytes).
 *                   Answer: the result, negative for an error, and as hex what is in each ~HEX and @N then.
 *   rights SOCKET FD...   sends one byte with descriptors. Answer: as of sys.
 *   receive SOCKET        takes one message. Answer: as of sys, then the numbers of the descriptors that came with it.
 *   drain FD N      reads as long as there is something, but not more than N times, not behind an error, and not the end of a terminal
 *                   that was hung up twice. Answer: "COUNT:HEX" of each read, COUNT negative for an error.
 *   fork NAME       makes the actor NAME. Answer: its pid.
 *   signals         "NUMBER:COUNT" of every signal that was caught.
 *   default N       the default action for signal N.
 *   exit N
 *
 * Every signal that can be caught is counted; calls are restarted behind it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { IN = 200, OUT = 201, LINE = 1 << 17, ROOM = 1 << 17, ARGS = 6 };

static char line[LINE], rooms[ARGS][ROOM], answer[2 * LINE];
static volatile sig_atomic_t counts[65];

static void die(const char *what)
{
	perror(what);
	_exit(1);
}

static void count(int number)
{
	counts[number]++;
}

static void say(const char *text)
{
	size_t done = 0, len = strlen(text);
	while (done < len) {
		ssize_t some = write(OUT, text + done, len - done);
		if (some > 0)
			done += some;
		else if (errno != EINTR)
			_exit(2);
	}
}

static void sayf(const char *format, ...)
{
	char text[256];
	va_list list;
	va_start(list, format);
	vsnprintf(text, sizeof text, format, list);
	va_end(list);
	say(text);
}

/* What was read of the script beyond its last line. */
static char ahead[LINE];
static size_t ahead_len;

/* Reads one line of the script. */
static void hear(void)
{
	char *end;
	while (!(end = memchr(ahead, '\n', ahead_len))) {
		ssize_t some = read(IN, ahead + ahead_len, LINE - ahead_len);
		if (some < 0 && errno == EINTR)
			continue;
		if (some <= 0)
			_exit(3);
		ahead_len += some;
	}
	size_t len = end - ahead;
	memcpy(line, ahead, len);
	line[len] = 0;
	ahead_len -= len + 1;
	memmove(ahead, end + 1, ahead_len);
}

static int open_end(const char *name, const char *kind, int at)
{
	char path[64];
	snprintf(path, sizeof path, "%s.%s", name, kind);
	if (mkfifo(path, 0600) && errno != EEXIST)
		die(path);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		die(path);
	if (fd != at) {
		dup3(fd, at, O_CLOEXEC);
		close(fd);
	}
	return at;
}

static void take_part(const char *name)
{
	close(IN);
	close(OUT);
	open_end(name, "in", IN);
	open_end(name, "out", OUT);
	memset((void *)counts, 0, sizeof counts);
	ahead_len = 0;
	sayf("%d\n", getpid());
}

static unsigned digit(char c)
{
	return c <= '9' ? c - '0' : c - 'a' + 10;
}

static size_t from_hex(const char *text, char *bytes)
{
	size_t len = 0;
	for (; len < ROOM && text[2 * len]; len++)
		bytes[len] = (char)(digit(text[2 * len]) << 4 | digit(text[2 * len + 1]));
	return len;
}

static char *to_hex(char *at, const char *bytes, size_t len)
{
	static const char digits[] = "0123456789abcdef";
	for (size_t i = 0; i < len; i++) {
		*at++ = digits[(unsigned char)bytes[i] >> 4];
		*at++ = digits[bytes[i] & 15];
	}
	return at;
}

static void drain(int fd, int most)
{
	enum { SIZE = 4096 };
	char *at = answer;
	for (; most > 0 && at + 3 * SIZE < answer + sizeof answer; most--) {
		struct pollfd one = { .fd = fd, .events = POLLIN };
		if (poll(&one, 1, 0) < 1 || !(one.revents & POLLIN))
			break;
		ssize_t count = read(fd, rooms[0], SIZE);
		at += sprintf(at, "%s%ld:", at == answer ? "" : " ", count < 0 ? -(long)errno : count);
		at = to_hex(at, rooms[0], count < 0 ? 0 : count);
		if (!count && one.revents & POLLHUP)
			at += sprintf(at, " -hup:");
		if (count < 0 || (!count && one.revents & POLLHUP))
			break;
	}
	strcpy(at, "\n");
	say(answer);
}

static void call(char *text)
{
	long args[ARGS + 1] = { 0 };
	size_t sizes[ARGS + 1] = { 0 };
	int n = 0;
	for (char *word = strtok(text, " "); word && n <= ARGS; word = strtok(NULL, " "), n++) {
		char *room = n ? rooms[n - 1] : NULL;
		if (n && (*word == '#' || *word == '~')) {
			size_t len = from_hex(word + 1, room);
			sizes[n] = *word == '~' ? len : 0;
			args[n] = (long)room;
		} else if (n && *word == '@') {
			sizes[n] = strtoul(word + 1, NULL, 10);
			memset(room, 0, sizes[n]);
			args[n] = (long)room;
		} else {
			args[n] = strtol(word, NULL, 0);
		}
	}
	/* A poll that goes on where it was is known by the number in the code. */
	long result = args[0] == SYS_poll
			      ? poll((struct pollfd *)args[1], args[2], args[3])
			      : syscall(args[0], args[1], args[2], args[3], args[4], args[5], args[6]);
	char *at = answer + sprintf(answer, "%ld", result < 0 ? -(long)errno : result);
	for (n = 1; n <= ARGS; n++) {
		if (!sizes[n])
			continue;
		*at++ = ' ';
		at = to_hex(at, rooms[n - 1], sizes[n]);
	}
	strcpy(at, "\n");
	say(answer);
}

/* A message of one byte with room for descriptors. */
static struct msghdr *message(void)
{
	static char byte, control[CMSG_SPACE(64 * sizeof(int))];
	static struct iovec vector = { .iov_base = &byte, .iov_len = 1 };
	static struct msghdr header;
	byte = 'x';
	header = (struct msghdr){ .msg_iov = &vector, .msg_iovlen = 1 };
	header.msg_control = control;
	header.msg_controllen = sizeof control;
	return &header;
}

static void rights(char *text)
{
	struct msghdr *header = message();
	struct cmsghdr *control = CMSG_FIRSTHDR(header);
	int *fds = (int *)CMSG_DATA(control), n = 0;
	int socket = atoi(strtok(text, " "));
	for (char *word; (word = strtok(NULL, " ")); n++)
		fds[n] = atoi(word);
	control->cmsg_level = SOL_SOCKET;
	control->cmsg_type = SCM_RIGHTS;
	control->cmsg_len = CMSG_LEN(n * sizeof(int));
	header->msg_controllen = CMSG_SPACE(n * sizeof(int));
	ssize_t sent = sendmsg(socket, header, MSG_DONTWAIT);
	sayf("%zd\n", sent < 0 ? -(ssize_t)errno : sent);
}

static void receive(char *text)
{
	struct msghdr *header = message();
	ssize_t got = recvmsg(atoi(text), header, MSG_DONTWAIT);
	char *at = answer + sprintf(answer, "%zd", got < 0 ? -(ssize_t)errno : got);
	struct cmsghdr *control = got < 0 ? NULL : CMSG_FIRSTHDR(header);
	for (; control; control = CMSG_NXTHDR(header, control)) {
		if (control->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < (control->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++)
			at += sprintf(at, " %d", ((int *)CMSG_DATA(control))[i]);
	}
	strcpy(at, "\n");
	say(answer);
}

static void signals(void)
{
	answer[0] = 0;
	for (int number = 1; number < 65; number++)
		if (counts[number])
			sprintf(answer + strlen(answer), "%d:%d ", number, (int)counts[number]);
	strcat(answer, "\n");
	say(answer);
}

int main(int argc, char **argv)
{
	if (argc != 2 || chdir(argv[1]))
		die("usage: actor DIR");
	if (fork())
		_exit(0);
	setsid();
	close_range(3, ~0U, 0);
	struct sigaction action = { .sa_handler = count, .sa_flags = SA_RESTART };
	for (int number = 1; number < 65; number++)
		if (number != SIGSEGV && number != SIGBUS && number != SIGILL && number != SIGFPE)
			sigaction(number, &action, NULL);
	take_part("root");
	for (;;) {
		hear();
		if (!strncmp(line, "sys ", 4)) {
			call(line + 4);
		} else if (!strncmp(line, "rights ", 7)) {
			rights(line + 7);
		} else if (!strncmp(line, "receive ", 8)) {
			receive(line + 8);
		} else if (!strncmp(line, "drain ", 6)) {
			char *most;
			int fd = strtol(line + 6, &most, 10);
			drain(fd, atoi(most));
		} else if (!strncmp(line, "fork ", 5)) {
			pid_t pid = fork();
			if (!pid)
				take_part(line + 5);
			else
				sayf("%d\n", pid);
		} else if (!strcmp(line, "signals")) {
			signals();
		} else if (!strncmp(line, "default ", 8)) {
			signal(atoi(line + 8), SIG_DFL);
			sayf("0\n");
		} else if (!strncmp(line, "exit ", 5)) {
			_exit(atoi(line + 5));
		} else {
			sayf("-1\n");
		}
	}
}
