/* Traces a process without ever stopping it, as a debugger does that is attached and lets it run.
 *
 *   tracer PID READY
 *
 * The file READY appears once it is attached. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	if (argc != 3 || ptrace(PTRACE_SEIZE, atoi(argv[1]), 0, 0)) {
		perror("ptrace");
		return 1;
	}
	close(open(argv[2], O_WRONLY | O_CREAT, 0600));
	for (;;)
		pause();
}
