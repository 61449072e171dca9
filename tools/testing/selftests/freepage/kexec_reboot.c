// SPDX-License-Identifier: GPL-2.0
/*
 * kexec_reboot KERNEL INITRD COMMAND-LINE: loads another kernel and starts it, as
 * "kexec -s" would.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kexec.h>
#include <linux/reboot.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kselftest.h"

static void die(const char *what)
{
	perror(what);
	exit(KSFT_FAIL);
}

static int must_open(const char *path)
{
	int fd = open(path, O_RDONLY);

	if (fd < 0)
		die(path);
	return fd;
}

int main(int argc, char **argv)
{
	int kernel, initrd;

	if (argc != 4) {
		fprintf(stderr, "usage: %s KERNEL INITRD COMMAND-LINE\n", argv[0]);
		return KSFT_FAIL;
	}
	kernel = must_open(argv[1]);
	initrd = must_open(argv[2]);
	/* The length includes the final NUL. */
	if (syscall(SYS_kexec_file_load, kernel, initrd, strlen(argv[3]) + 1, argv[3], 0UL))
		die("kexec_file_load");
	sync();
	syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2,
		LINUX_REBOOT_CMD_KEXEC, NULL);
	die("reboot");
}
