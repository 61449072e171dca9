// SPDX-License-Identifier: GPL-2.0
/*
 * secretmem_check MIB ROUNDS [PROCESSES]: in each round every process maps so
 * much of a new memfd_secret(2) each, looks whether all of it is zero, fills it,
 * looks whether it still is what it wrote, and gives it back.
 *
 * secretmem_check accounting: looks whether pages that are touched here and there
 * are all that is allocated, and whether as many of them can be touched in order as
 * RLIMIT_MEMLOCK allows.
 *
 * secretmem_check partly PAGES: touches the first 17 of 64 pages of one file after the
 * other, up to so many pages, and says how many were touched before one was refused
 * or the process was killed.
 *
 * secretmem_check unreachable: looks whether the kernel refuses to take references
 * to any of its pages for others, also where it would do so without taking locks.
 *
 * secretmem_check truncated: the same of pages whose file is gone between two looks
 * of GUP-fast, which unmapped_test.ko sees to.
 *
 * secretmem_check beyond: looks whether nothing can be had beyond the end of the file,
 * also where that is too far away for a signed number of bytes.
 *
 * secretmem_check bound MIB NODE: touches as much with a memory policy that allows
 * memory of that node only, and looks whether it is where the memory is from.
 *
 * secretmem_check faults MIB: touches each page of so much, and says how many ns
 * a fault takes. Under QEMU's "-icount shift=0" one ns is one instruction.
 *
 * secretmem_check hold MIB: fills as much, says "held" and the page frame numbers
 * of its first page and of one in the midst of 64 KiB (0 for those who may not
 * know), and waits for the end of its standard input.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kselftest.h"

static size_t page_size;

static uint64_t *map_secret(size_t size)
{
	int fd = syscall(__NR_memfd_secret, 0);
	void *memory;

	if (fd < 0) {
		fprintf(stderr, "memfd_secret: %s\n", strerror(errno));
		exit(KSFT_SKIP);
	}
	if (ftruncate(fd, size)) {
		perror("ftruncate");
		exit(KSFT_FAIL);
	}
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED) {
		perror("mmap");
		exit(KSFT_FAIL);
	}
	close(fd);
	return memory;
}

static void expect(const uint64_t *memory, size_t size, uint64_t seed, const char *what)
{
	size_t i;

	for (i = 0; i < size / sizeof(*memory); i++) {
		uint64_t want = seed ? seed + i : 0;

		if (memory[i] == want)
			continue;
		printf("secretmem: %s: word %zu of page %zu is %#llx, not %#llx\n", what,
		       i % (page_size / sizeof(*memory)), i * sizeof(*memory) / page_size,
		       (unsigned long long)memory[i], (unsigned long long)want);
		exit(KSFT_FAIL);
	}
}

static void round_of(size_t size, uint64_t seed)
{
	uint64_t *memory = map_secret(size);
	size_t i;

	expect(memory, size, 0, "fresh memory");
	for (i = 0; i < size / sizeof(*memory); i++)
		memory[i] = seed + i;
	expect(memory, size, seed, "own memory");
	munmap(memory, size);
}

static unsigned long pfn_of(const void *memory)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	uint64_t entry = 0;

	if (fd < 0)
		return 0;
	if (pread(fd, &entry, sizeof(entry),
		  (uintptr_t)memory / page_size * sizeof(entry)) != sizeof(entry))
		entry = 0;
	close(fd);
	return entry & ((1ULL << 55) - 1);
}

static int hold(size_t size)
{
	char *memory = (char *)map_secret(size), byte;

	memset(memory, 0x5a, size);
	printf("held %lu %lu\n", pfn_of(memory), pfn_of(memory + 21 * page_size));
	fflush(stdout);
	while (read(STDIN_FILENO, &byte, 1) > 0)
		;
	return KSFT_PASS;
}

/* Touches every so manieth page. Returns how many are allocated after that. */
static size_t touch(size_t pages, size_t step)
{
	char *memory = (char *)map_secret(pages * page_size);
	unsigned char resident[pages];
	size_t i, sum = 0;

	for (i = 0; i < pages; i += step)
		memory[i * page_size] = 1;
	if (mincore(memory, pages * page_size, resident)) {
		perror("mincore");
		exit(KSFT_FAIL);
	}
	for (i = 0; i < pages; i++)
		sum += resident[i] & 1;
	munmap(memory, pages * page_size);
	return sum;
}

static sigjmp_buf refused;
static size_t touched;

static void on_sigbus(int signal)
{
	siglongjmp(refused, 1);
}

/* Touches one page in each step. Returns how many were touched before one was refused. */
static size_t touch_all_allowed(size_t pages, size_t step)
{
	char *memory = (char *)map_secret(pages * page_size);

	touched = 0;
	if (!sigsetjmp(refused, 1))
		while (touched * step < pages) {
			__atomic_store_n(memory + touched * step * page_size, 1,
					 __ATOMIC_SEQ_CST);
			__atomic_add_fetch(&touched, 1, __ATOMIC_SEQ_CST);
		}
	munmap(memory, pages * page_size);
	return touched;
}

/* How a page is touched. */
enum touch { TOUCH_READ, TOUCH_ZERO, TOUCH_WRITE };

static void touch_page(char *page, enum touch how)
{
	if (how == TOUCH_READ)
		__atomic_load_n(page, __ATOMIC_SEQ_CST);
	else
		__atomic_store_n(page, how == TOUCH_WRITE, __ATOMIC_SEQ_CST);
}

/* Of each file a few pages in order, so that others are allocated with them. */
#define PART_PAGES 17
#define PART_FILE_PAGES 64

/* Touches so many pages of as many files as it takes. Counts those it could. */
static void touch_partly(size_t pages, enum touch how, size_t *count)
{
	const size_t size = PART_FILE_PAGES * page_size;
	const size_t files = (pages + PART_PAGES - 1) / PART_PAGES;
	char *memory[files];
	size_t i;

	*count = 0;
	for (i = 0; i < files; i++)
		memory[i] = (char *)map_secret(size);
	if (!sigsetjmp(refused, 1))
		while (*count < pages) {
			touch_page(memory[*count / PART_PAGES] +
				   *count % PART_PAGES * page_size, how);
			__atomic_add_fetch(count, 1, __ATOMIC_SEQ_CST);
		}
	if (how == TOUCH_WRITE)
		for (i = 0; i < *count; i++)
			if (memory[i / PART_PAGES][i % PART_PAGES * page_size] != 1)
				printf("secretmem: page %zu of %zu has lost its content\n", i,
				       *count);
	for (i = 0; i < files; i++)
		munmap(memory[i], size);
}

static int partly(size_t pages)
{
	size_t *count = mmap(NULL, page_size, PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	FILE *score;

	if (count == MAP_FAILED)
		return KSFT_FAIL;
	signal(SIGBUS, on_sigbus);
	if (!fork()) {
		score = fopen("/proc/self/oom_score_adj", "w");
		if (score) {
			fputs("1000", score);
			fclose(score);
		}
		touch_partly(pages, TOUCH_WRITE, count);
		exit(KSFT_PASS);
	}
	wait(NULL);
	printf("%zu\n", *count);
	return KSFT_PASS;
}

static bool can_be_touched(char *page)
{
	if (sigsetjmp(refused, 1))
		return false;
	__atomic_store_n(page, 1, __ATOMIC_SEQ_CST);
	return true;
}

static int beyond(void)
{
	/* The last two pages that mmap() takes; mremap() adds those after them. */
	const off_t offset = INT64_MAX - 2 * page_size + 1;
	int fd = syscall(__NR_memfd_secret, 0);
	size_t page, found = 0;
	char *memory;

	if (fd < 0) {
		perror("memfd_secret");
		return KSFT_SKIP;
	}
	memory = mmap(NULL, page_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
	if (memory != MAP_FAILED)
		memory = mremap(memory, page_size, 8 * page_size, MREMAP_MAYMOVE);
	if (memory == MAP_FAILED) {
		perror("mmap or mremap");
		return KSFT_FAIL;
	}
	signal(SIGBUS, on_sigbus);
	for (page = 0; page < 8; page++)
		found += can_be_touched(memory + page * page_size);
	if (found)
		printf("secretmem: %zu pages of an empty file\n", found);
	return found ? KSFT_FAIL : KSFT_PASS;
}

/* Whether as many pages of several files can be touched as the limit says. */
static bool in_parts(size_t allowed, size_t limit)
{
	const struct rlimit lower = { limit * page_size, allowed * page_size };
	const char *const names[] = { "read", "zeroed", "written" };
	bool failed = false;
	enum touch how;
	size_t count;

	if (setrlimit(RLIMIT_MEMLOCK, &lower)) {
		perror("setrlimit");
		return true;
	}
	for (how = TOUCH_READ; how <= TOUCH_WRITE; how++) {
		touch_partly(2 * limit, how, &count);
		printf("%zu pages were allowed: %zu of several files could be %s\n", limit,
		       count, names[how]);
		failed |= count != limit;
	}
	return failed;
}

static int accounting(void)
{
	const size_t pages = 200, allowed = 77;
	const struct rlimit limit = { allowed * page_size, allowed * page_size };
	size_t resident = touch(pages, 2), alone, in_order;

	if (resident != pages / 2) {
		printf("secretmem: %zu pages are allocated when %zu were touched\n",
		       resident, pages / 2);
		return KSFT_FAIL;
	}
	if (setrlimit(RLIMIT_MEMLOCK, &limit)) {
		perror("setrlimit");
		return KSFT_FAIL;
	}
	signal(SIGBUS, on_sigbus);
	alone = touch_all_allowed(2 * pages, 2);
	in_order = touch_all_allowed(2 * pages, 1);
	printf("%zu pages were allowed: %zu could be touched, in order %zu\n", allowed,
	       alone, in_order);
	if (alone > allowed || in_order != alone)
		return KSFT_FAIL;
	return in_parts(allowed, 34) | in_parts(allowed, 75) ? KSFT_FAIL : KSFT_PASS;
}

/* How many pages of a mapping are from a node. */
static size_t pages_from(const void *mapping, int node)
{
	FILE *maps = fopen("/proc/self/numa_maps", "r");
	char line[1024], name[32], *found;
	size_t pages = 0;

	if (!maps) {
		perror("/proc/self/numa_maps");
		exit(KSFT_SKIP);
	}
	snprintf(name, sizeof(name), " N%d=", node);
	while (fgets(line, sizeof(line), maps)) {
		if (strtoul(line, NULL, 16) != (uintptr_t)mapping)
			continue;
		found = strstr(line, name);
		if (found)
			pages = strtoul(found + strlen(name), NULL, 10);
	}
	fclose(maps);
	return pages;
}

static int bound(size_t size, int node)
{
	const unsigned long nodes = 1UL << node;
	const size_t pages = size / page_size;
	char *memory;
	size_t found;

	if (syscall(__NR_set_mempolicy, MPOL_BIND, &nodes, 8 * sizeof(nodes))) {
		perror("set_mempolicy");
		return KSFT_SKIP;
	}
	memory = (char *)map_secret(size);
	memset(memory, 0x5a, size);
	found = pages_from(memory, node);
	if (found != pages)
		printf("secretmem: %zu of %zu pages are from node %d\n", found, pages, node);
	return found == pages ? KSFT_PASS : KSFT_FAIL;
}

/* Whether a pipe accepts the page instead of a copy of it. */
static bool can_be_spliced(int pipe_end, char *page)
{
	struct iovec vector = { page, page_size };

	return vmsplice(pipe_end, &vector, 1, SPLICE_F_NONBLOCK) > 0;
}

static int unreachable(void)
{
	const size_t pages = 64;
	char *memory = (char *)map_secret(pages * page_size);
	char *other = mmap(NULL, page_size, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	size_t i, spliced = 0;
	int ends[2];

	if (other == MAP_FAILED || pipe(ends)) {
		perror("mmap or pipe");
		return KSFT_FAIL;
	}
	/* In order: what is touched later is in large folios. */
	memset(memory, 0x5a, pages * page_size);
	for (i = 0; i < pages; i++)
		spliced += can_be_spliced(ends[1], memory + i * page_size);
	if (spliced)
		printf("secretmem: %zu of %zu pages can be spliced\n", spliced, pages);
	*other = 1;
	if (!can_be_spliced(ends[1], other)) {
		perror("vmsplice of ordinary memory");
		return KSFT_FAIL;
	}
	return spliced ? KSFT_FAIL : KSFT_PASS;
}

static const char truncate_file[] = "/sys/kernel/debug/unmapped_test/truncate";

static void set_truncate(int pid)
{
	FILE *file = fopen(truncate_file, "w");

	if (!file) {
		perror(truncate_file);
		exit(KSFT_SKIP);
	}
	fprintf(file, "%d\n", pid);
	fclose(file);
}

static bool was_truncated(void)
{
	FILE *file = fopen(truncate_file, "r");
	int happened = 0;

	if (!file || fscanf(file, "%d", &happened) != 1)
		perror(truncate_file);
	if (file)
		fclose(file);
	return happened;
}

static int truncated(void)
{
	const size_t pages = 64;
	char *memory = (char *)map_secret(pages * page_size);
	size_t i, spliced = 0, hit = 0;
	int ends[2];

	if (pipe(ends)) {
		perror("pipe");
		return KSFT_FAIL;
	}
	/* In order, so that some are in large folios. */
	memset(memory, 0x5a, pages * page_size);
	for (i = 0; i < pages; i++) {
		set_truncate(getpid());
		spliced += can_be_spliced(ends[1], memory + i * page_size);
		hit += was_truncated();
		set_truncate(0);
	}
	printf("secretmem: of %zu pages of files that were gone %zu could be spliced\n", hit,
	       spliced);
	return hit == pages && !spliced ? KSFT_PASS : KSFT_FAIL;
}

static int faults(size_t size)
{
	char *memory = (char *)map_secret(size);
	struct timespec begin, end;
	size_t at;

	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (at = 0; at < size; at += page_size)
		memory[at] = 1;
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%lld\n", ((end.tv_sec - begin.tv_sec) * 1000000000LL +
			  end.tv_nsec - begin.tv_nsec) / (long long)(size / page_size));
	return KSFT_PASS;
}

static int check(size_t size, int rounds, int processes)
{
	int i, j, status, result = KSFT_PASS;

	for (i = 0; i < processes; i++) {
		if (fork())
			continue;
		for (j = 0; j < rounds; j++)
			round_of(size, ((uint64_t)getpid() << 32) + ((uint64_t)(j + 1) << 24));
		exit(KSFT_PASS);
	}
	while (wait(&status) > 0)
		if (!WIFEXITED(status) || WEXITSTATUS(status))
			result = WIFEXITED(status) ? WEXITSTATUS(status) : KSFT_FAIL;
	return result;
}

int main(int argc, char **argv)
{
	const struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };

	page_size = sysconf(_SC_PAGESIZE);
	if (setrlimit(RLIMIT_MEMLOCK, &unlimited))
		perror("setrlimit");
	if (argc == 3 && !strcmp(argv[1], "partly"))
		return partly(strtoul(argv[2], NULL, 0));
	if (argc == 3 && !strcmp(argv[1], "hold"))
		return hold(strtoul(argv[2], NULL, 0) << 20);
	if (argc == 3 && !strcmp(argv[1], "faults"))
		return faults(strtoul(argv[2], NULL, 0) << 20);
	if (argc == 4 && !strcmp(argv[1], "bound"))
		return bound(strtoul(argv[2], NULL, 0) << 20, atoi(argv[3]));
	if (argc == 2 && !strcmp(argv[1], "accounting"))
		return accounting();
	if (argc == 2 && !strcmp(argv[1], "beyond"))
		return beyond();
	if (argc == 2 && !strcmp(argv[1], "unreachable"))
		return unreachable();
	if (argc == 2 && !strcmp(argv[1], "truncated"))
		return truncated();
	if (argc < 3) {
		fprintf(stderr, "usage: secretmem_check MIB ROUNDS [PROCESSES]\n"
				"   or: secretmem_check accounting|beyond|unreachable|truncated\n"
				"   or: secretmem_check hold|faults MIB\n"
				"   or: secretmem_check partly PAGES\n"
				"   or: secretmem_check bound MIB NODE\n");
		return KSFT_FAIL;
	}
	return check(strtoul(argv[1], NULL, 0) << 20, atoi(argv[2]),
		     argc > 3 ? atoi(argv[3]) : 1);
}
