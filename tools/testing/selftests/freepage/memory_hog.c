// SPDX-License-Identifier: GPL-2.0
/*
 * memory_hog MIB [SECONDS [thp|lock]]: touches so much anonymous memory, holds
 * it and gives it back, so that somebody outside can watch. With huge pages, or
 * by a single mlock() without them.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kselftest.h"

static unsigned long parse(const char *what, const char *text)
{
	char *end;
	unsigned long n;

	errno = 0;
	n = strtoul(text, &end, 10);
	if (errno || end == text || *end || *text == '-') {
		fprintf(stderr, "hog: %s is '%s', want a whole number\n",
			what, text);
		exit(KSFT_FAIL);
	}
	return n;
}

int main(int argc, char **argv)
{
	size_t page = sysconf(_SC_PAGESIZE), size, at;
	unsigned long seconds = 0;
	bool thp, lock;
	char *memory;

	thp = argc == 4 && !strcmp(argv[3], "thp");
	lock = argc == 4 && !strcmp(argv[3], "lock");
	if (argc < 2 || argc > 4 || (argc == 4 && !thp && !lock)) {
		fprintf(stderr, "usage: memory_hog MIB [SECONDS [thp|lock]]\n");
		return KSFT_FAIL;
	}
	size = parse("MIB", argv[1]) << 20;
	if (argc > 2)
		seconds = parse("SECONDS", argv[2]);

	memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) {
		fprintf(stderr, "hog: cannot map %s MiB: %s\n", argv[1],
			strerror(errno));
		return KSFT_FAIL;
	}
	/* A kernel without huge pages refuses, and has none to avoid. */
	if (madvise(memory, size, thp ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) &&
	    errno != EINVAL) {
		fprintf(stderr, "hog: madvise: %s\n", strerror(errno));
		return KSFT_FAIL;
	}
	if (lock && mlock(memory, size)) {
		fprintf(stderr, "hog: cannot lock %s MiB: %s\n", argv[1],
			strerror(errno));
		return KSFT_FAIL;
	}
	for (at = 0; at < size; at += page)
		memory[at] = 1;

	/* Whoever measures reads this from a pipe. */
	setvbuf(stdout, NULL, _IONBF, 0);
	printf("hog: filled\n");
	sleep(seconds);
	munmap(memory, size);
	printf("hog: freed\n");
	return KSFT_PASS;
}
