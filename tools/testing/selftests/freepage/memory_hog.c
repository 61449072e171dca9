// SPDX-License-Identifier: GPL-2.0
/*
 * memory_hog MIB [SECONDS [thp|lock|time]]: touches so much anonymous memory,
 * holds it and gives it back, so that somebody outside can watch. With huge
 * pages, or by a single mlock() without them, or page by page with the time that
 * the slowest page took.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
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

static unsigned long now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000UL + now.tv_nsec / 1000;
}

int main(int argc, char **argv)
{
	size_t page = sysconf(_SC_PAGESIZE), size, at;
	unsigned long seconds = 0, before, after, longest = 0;
	bool thp, lock, timed;
	char *memory;

	thp = argc == 4 && !strcmp(argv[3], "thp");
	lock = argc == 4 && !strcmp(argv[3], "lock");
	timed = argc == 4 && !strcmp(argv[3], "time");
	if (argc < 2 || argc > 4 || (argc == 4 && !thp && !lock && !timed)) {
		fprintf(stderr,
			"usage: memory_hog MIB [SECONDS [thp|lock|time]]\n");
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
	before = timed ? now_us() : 0;
	for (at = 0; at < size; at += page) {
		memory[at] = 1;
		if (timed) {
			after = now_us();
			if (after - before > longest)
				longest = after - before;
			before = after;
		}
	}

	/* Whoever measures reads this from a pipe. */
	setvbuf(stdout, NULL, _IONBF, 0);
	if (timed)
		printf("hog: filled, a page in %lu us at most\n", longest);
	else
		printf("hog: filled\n");
	sleep(seconds);
	munmap(memory, size);
	printf("hog: freed\n");
	return KSFT_PASS;
}
