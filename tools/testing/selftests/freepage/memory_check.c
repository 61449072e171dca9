// SPDX-License-Identifier: GPL-2.0
/*
 * memory_check MIB SECONDS: allocates, frees and allocates again all the time,
 * and looks whether each page still holds what was written to it. A page that
 * is reported while it is in use loses its content.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "kselftest.h"

/* One step frees or fills so much, so blocks of each order come and go. */
static const size_t steps[] = { 1, 3, 16, 64, 512, 2048 };

static size_t page_size, nr_pages;
static char *memory;
/* What each page holds: 0 if it is not there. */
static uint64_t *seeds;

static void fill(size_t page, uint64_t seed)
{
	uint64_t *word = (uint64_t *)(memory + page * page_size);
	size_t i;

	for (i = 0; i < page_size / sizeof(*word); i += 8)
		word[i] = seed + i;
	seeds[page] = seed;
}

static int verify(size_t page)
{
	uint64_t *word = (uint64_t *)(memory + page * page_size);
	size_t i;

	/* A page given back reads as zeroes, and stays away until written. */
	if (!seeds[page])
		return 0;
	for (i = 0; i < page_size / sizeof(*word); i += 8) {
		if (word[i] == seeds[page] + i)
			continue;
		printf("check: page %zu word %zu is %#llx, written was %#llx\n",
		       page, i, (unsigned long long)word[i],
		       (unsigned long long)(seeds[page] + i));
		return -1;
	}
	return 0;
}

static int drop(size_t page, size_t count)
{
	size_t i;

	for (i = page; i < page + count; i++) {
		if (verify(i))
			return -1;
		seeds[i] = 0;
	}
	if (madvise(memory + page * page_size, count * page_size,
		    MADV_DONTNEED)) {
		printf("check: cannot free %zu pages: %s\n", count,
		       strerror(errno));
		return -1;
	}
	return 0;
}

int main(int argc, char **argv)
{
	unsigned long long rounds = 0;
	uint64_t seed = 1;
	size_t page;
	time_t end;

	if (argc != 3 || atol(argv[1]) <= 0 || atol(argv[2]) < 0) {
		fprintf(stderr, "usage: memory_check MIB SECONDS\n");
		return KSFT_FAIL;
	}
	page_size = sysconf(_SC_PAGESIZE);
	nr_pages = ((size_t)atol(argv[1]) << 20) / page_size;
	end = time(NULL) + atol(argv[2]);

	memory = mmap(NULL, nr_pages * page_size, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	seeds = calloc(nr_pages, sizeof(*seeds));
	if (memory == MAP_FAILED || !seeds) {
		printf("check: cannot map %s MiB: %s\n", argv[1],
		       strerror(errno));
		return KSFT_FAIL;
	}

	srandom(1);
	do {
		size_t count = steps[random() % ARRAY_SIZE(steps)], i;

		if (count > nr_pages)
			continue;
		page = random() % (nr_pages - count + 1);
		if (seeds[page]) {
			if (drop(page, count))
				return KSFT_FAIL;
		} else {
			for (i = page; i < page + count; i++) {
				if (verify(i))
					return KSFT_FAIL;
				fill(i, seed++ << 16);
			}
		}
		rounds++;
	} while (time(NULL) <= end);

	for (page = 0; page < nr_pages; page++)
		if (verify(page))
			return KSFT_FAIL;

	printf("check: %llu rounds, %llu pages written, all intact\n", rounds,
	       (unsigned long long)seed - 1);
	return KSFT_PASS;
}
