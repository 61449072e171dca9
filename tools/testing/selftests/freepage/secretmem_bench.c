// SPDX-License-Identifier: GPL-2.0
/*
 * secretmem_bench PAGES ROUNDS: in each round touches so many pages of a new
 * memfd_secret(2), with ordinary allocation in between, and gives them back.
 * Prints a line for each round:
 *
 *   ns of all faults, ns to give all back, work that is put off included,
 *   DirectMap2M of /proc/meminfo before that, in KiB
 *
 * secretmem_bench PAGES ROUNDS PROCESSES: the same by so many processes, each
 * on a CPU of its own, and one line at the end: ns of all that.
 *
 * Under QEMU's "-icount shift=0" one ns is one instruction, of whatever CPU.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kselftest.h"

/* Faults whose time is taken at once; then comes ordinary allocation. */
#define BATCH 64

/* Pages of ordinary memory that are taken at once, and how often before they go. */
#define ORDINARY_PAGES 32
#define ORDINARY_KEPT 16

/* What is put off begins within so many ns, and takes longer than an interrupt. */
#define QUIET 100000000
#define TURN 50000

static size_t page_size;

static void die(const char *what)
{
	perror(what);
	exit(KSFT_FAIL);
}

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

/* The first number in a file that stands where format says. */
static uint64_t number(const char *path, const char *format)
{
	FILE *file = fopen(path, "r");
	unsigned long long value;
	char line[256];

	if (!file)
		die(path);
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, format, &value) == 1) {
			fclose(file);
			return value;
		}
	}
	fprintf(stderr, "%s has no line '%s'\n", path, format);
	exit(KSFT_FAIL);
}

/* How long other tasks have kept the CPU, until they do not for QUIET. */
static uint64_t others_time(void)
{
	uint64_t last = now(), heard = last, time = 0, next;

	while (last - heard < QUIET) {
		next = now();
		if (next - last > TURN) {
			time += next - last;
			heard = next;
		}
		last = next;
	}
	return time;
}

static char *map(size_t size, int flags, int fd)
{
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);

	if (memory == MAP_FAILED)
		die("mmap");
	return memory;
}

static void touch(char *memory, size_t pages)
{
	size_t i;

	for (i = 0; i < pages; i++)
		memory[i * page_size] = 1;
}

static void ordinary_allocation(void)
{
	static char *kept[ORDINARY_KEPT];
	static unsigned int next;
	size_t size = ORDINARY_PAGES * page_size;
	char **memory = &kept[next++ % ORDINARY_KEPT];

	if (*memory)
		munmap(*memory, size);
	*memory = map(size, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	touch(*memory, ORDINARY_PAGES);
}

static char *map_secret(size_t pages)
{
	int fd = syscall(__NR_memfd_secret, 0);
	char *memory;

	if (fd < 0)
		die("memfd_secret");
	if (ftruncate(fd, pages * page_size))
		die("ftruncate");
	memory = map(pages * page_size, MAP_SHARED, fd);
	close(fd);
	return memory;
}

/* Returns the ns of all faults. */
static uint64_t fill(char *memory, size_t pages)
{
	uint64_t time = 0, begin;
	size_t at, batch;

	for (at = 0; at < pages; at += batch) {
		batch = pages - at < BATCH ? pages - at : BATCH;
		begin = now();
		touch(memory + at * page_size, batch);
		time += now() - begin;
		ordinary_allocation();
	}
	return time;
}

static void alone(size_t pages, int rounds)
{
	uint64_t faults, busy, direct_map;
	char *memory;

	while (rounds--) {
		memory = map_secret(pages);
		faults = fill(memory, pages);
		direct_map = number("/proc/meminfo", "DirectMap2M: %llu");
		busy = now();
		munmap(memory, pages * page_size);
		busy = now() - busy + others_time();
		printf("%llu %llu %llu\n", (unsigned long long)faults,
		       (unsigned long long)busy, (unsigned long long)direct_map);
	}
}

static void run_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity");
}

static void together(size_t pages, int rounds, int processes)
{
	uint64_t begin = now();
	int i, status;

	for (i = 0; i < processes; i++) {
		if (fork())
			continue;
		run_on(i);
		while (rounds--) {
			char *memory = map_secret(pages);

			touch(memory, pages);
			munmap(memory, pages * page_size);
		}
		exit(KSFT_PASS);
	}
	while (wait(&status) > 0)
		if (status)
			exit(KSFT_FAIL);
	printf("%llu\n", (unsigned long long)(now() - begin));
}

int main(int argc, char **argv)
{
	const struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };

	page_size = sysconf(_SC_PAGESIZE);
	if (setrlimit(RLIMIT_MEMLOCK, &unlimited))
		die("setrlimit");
	if (argc == 3)
		alone(strtoul(argv[1], NULL, 0), atoi(argv[2]));
	else if (argc == 4)
		together(strtoul(argv[1], NULL, 0), atoi(argv[2]), atoi(argv[3]));
	else
		fprintf(stderr, "usage: secretmem_bench PAGES ROUNDS [PROCESSES]\n");
	return argc == 3 || argc == 4 ? KSFT_PASS : KSFT_FAIL;
}
