/* Holds the master of a session's pty inside the tree.
 *
 *   holder DIR PROGRAM [ARG...]
 *
 * Detaches (a session leader without terminal, orphaned), runs PROGRAM as session leader on a new pty of 24 x 80, writes what comes through
 * the FIFO DIR/in to the master, and appends what the master gives to the regular file DIR/out. DIR/pids says "HOLDER LEADER" once
 * the program runs. When the program has ended and its output is written, DIR/status holds its wait status, and the holder ends. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static void die(const char *what)
{
	perror(what);
	_exit(1);
}

/* Leaves DIR/name with this text, whole or not at all. */
static void leave(const char *name, const char *text)
{
	char part[64];
	snprintf(part, sizeof part, "%s.part", name);
	FILE *file = fopen(part, "we");
	if (!file || fputs(text, file) < 0 || fclose(file) || rename(part, name))
		die(name);
}

static pid_t start(int master, char **argv)
{
	char name[64];
	struct winsize size = { .ws_row = 24, .ws_col = 80 };
	int running[2];
	if (pipe2(running, O_CLOEXEC) || grantpt(master) || unlockpt(master) || ptsname_r(master, name, sizeof name))
		die("pty");
	ioctl(master, TIOCSWINSZ, &size);
	pid_t leader = fork();
	if (leader) {
		/* What the other has open of it is closed by execve. */
		close(running[1]);
		if (read(running[0], name, 1))
			die("read");
		close(running[0]);
		return leader;
	}
	setsid();
	int slave = open(name, O_RDWR);
	if (slave < 0)
		die(name);
	for (int fd = 0; fd < 3; fd++)
		dup2(slave, fd);
	if (slave > 2)
		close(slave);
	execvp(argv[0], argv);
	die(argv[0]);
	return -1;
}

/* Writes all of it; a master that takes nothing makes us wait, which is what a slow terminal does. */
static void put(int fd, const char *data, ssize_t count)
{
	while (count > 0) {
		ssize_t done = write(fd, data, count);
		if (done < 0 && errno != EINTR && errno != EAGAIN)
			return;
		if (done > 0) {
			data += done;
			count -= done;
		}
	}
}

static void copy(int in, int out, int master)
{
	char data[4096];
	for (;;) {
		struct pollfd fds[2] = { { .fd = in, .events = POLLIN }, { .fd = master, .events = POLLIN } };
		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			die("poll");
		if (fds[0].revents & POLLIN)
			put(master, data, read(in, data, sizeof data));
		if (fds[1].revents) {
			ssize_t count = read(master, data, sizeof data);
			if (count < 0 && errno == EIO)
				return;
			put(out, data, count);
		}
	}
}

int main(int argc, char **argv)
{
	char text[64];
	int status;
	if (argc < 3 || chdir(argv[1]))
		die("usage: holder DIR PROGRAM [ARG...]");
	mkfifo("in", 0600);
	if (fork())
		_exit(0);
	setsid();
	/* What the test itself was given by whoever runs it does not belong to the session. */
	close_range(3, ~0U, 0);
	int in = open("in", O_RDWR | O_CLOEXEC);
	int out = open("out", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (in < 0 || out < 0 || master < 0)
		die("open");
	pid_t leader = start(master, argv + 2);
	snprintf(text, sizeof text, "%d %d", getpid(), leader);
	leave("pids", text);
	copy(in, out, master);
	if (waitpid(leader, &status, 0) != leader)
		die("waitpid");
	snprintf(text, sizeof text, "%d", status);
	leave("status", text);
	return 0;
}
