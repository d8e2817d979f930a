/* Runs a program as on a kernel, or in a container, that lacks what the first word names:
 *
 *   without pidfd_getfd|pagemap_scan|rseq_query|guard_pages PROGRAM [ARG...]
 *
 * A seccomp filter gives the error that such a kernel gives. */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGEMAP_SCAN 0xc0606610u
#define MADV_GUARD_INSTALL 102
#define PTRACE_GET_RSEQ_CONFIGURATION 0x420f

/* A call, and the value of one of its arguments where it is only the call with that one. */
static const struct lack {
	const char *name;
	uint32_t call, argument, value, error;
} LACKS[] = {
	{ "pidfd_getfd", SYS_pidfd_getfd, 6, 0, ENOSYS },
	{ "pagemap_scan", SYS_ioctl, 1, PAGEMAP_SCAN, ENOTTY },
	{ "guard_pages", SYS_madvise, 2, MADV_GUARD_INSTALL, EINVAL },
	{ "rseq_query", SYS_ptrace, 0, PTRACE_GET_RSEQ_CONFIGURATION, EIO },
};

int main(int argc, char **argv)
{
	const struct lack *lack = LACKS, *end = LACKS + sizeof LACKS / sizeof *LACKS;
	while (lack < end && argc > 2 && strcmp(lack->name, argv[1]))
		lack++;
	if (argc < 3 || lack == end) {
		fprintf(stderr, "usage: without pidfd_getfd|pagemap_scan|rseq_query|guard_pages PROGRAM [ARG...]\n");
		return 2;
	}
	/* Without an argument the number of the call, at 0, is compared once more. */
	uint32_t at = lack->argument < 6 ? offsetof(struct seccomp_data, args) + 8 * lack->argument : 0;
	uint32_t value = lack->argument < 6 ? lack->value : lack->call;
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, lack->call, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, at),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | lack->error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof code / sizeof *code, code };
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
		perror("seccomp");
		return 1;
	}
	execvp(argv[2], argv + 2);
	perror(argv[2]);
	return 1;
}
