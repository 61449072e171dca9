// SPDX-License-Identifier: GPL-2.0
/*
 * Every page that user space gets has to be zero: looks at all of it, and leaves
 * a pattern behind for the next one.
 *
 * zero_check KIND MIB SECONDS [WORKERS]
 *	WORKERS processes share MIB, and use it over and over:
 *	small	anonymous memory in 4K pages
 *	huge	with transparent huge pages, also of other sizes if enabled
 *	pages	single pages that come right back from lists of a CPU
 *	fork	a child that writes to what its parent never touched
 *	shared	memfd
 *	hugetlb	huge pages of a pool
 *	mixed	all of these but hugetlb
 * zero_check time small|huge|shared|hugetlb MIB
 *	the time to lock so much, and to unmap it; nothing is looked at
 * zero_check pages COUNT
 *	touches so many single pages, looks at them, and gives them back
 * zero_check halves MIB
 *	gives every other page back, says so, and the others when it may read a line
 * zero_check zeroed COUNT
 *	page frame numbers of so many free pages that are known to be zero
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB		(1UL << 20)
#define PAGE		4096UL
#define HUGE		(2 * MIB)
#define PATTERN		0x5a6c6561636b6564UL

enum kind { SMALL, HUGE_PAGES, PAGES, FORK, SHARED, HUGETLB, MIXED };

static const char * const kinds[] = {
	"small", "huge", "pages", "fork", "shared", "hugetlb", "mixed",
};

static uint64_t checked;

static void die(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	exit(2);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000UL + now.tv_nsec;
}

/* All of it is zero, or the program ends. Then it is full of a pattern. */
static void check_and_soil(void *memory, size_t size)
{
	uint64_t *word = memory, *end = memory + size;
	uint64_t nothing = 0;

	/* The compiler would make a load of adding what it knows to be 0. */
	asm volatile("" : "+r" (nothing));
	for (; word < end; word++) {
		/* To read first would only show the one page of zeroes. */
		if (!((uintptr_t)word % PAGE))
			__atomic_fetch_add(word, nothing, __ATOMIC_RELAXED);
		if (*word) {
			printf("not zero: page %zu of %zu, offset %zu: %#lx%s\n",
			       ((char *)word - (char *)memory) / PAGE, size / PAGE,
			       ((char *)word - (char *)memory) % PAGE, *word,
			       *word == PATTERN ? ", which someone left there" : "");
			exit(1);
		}
		*word = PATTERN;
	}
	checked += size / PAGE;
}

static void *map(size_t size, int flags)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

	return memory == MAP_FAILED ? NULL : memory;
}

static void *map_or_die(size_t size, int flags)
{
	void *memory = map(size, flags);

	if (!memory)
		die("mmap");
	return memory;
}

static void round_of_anonymous(size_t size, bool huge)
{
	size_t room = huge ? size + HUGE : size;
	void *area = map_or_die(room, 0);
	void *memory = area;

	if (huge)
		memory = (void *)(((uintptr_t)area + HUGE - 1) & ~(HUGE - 1));
	madvise(area, room, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	check_and_soil(memory, size);
	/* A part goes, which splits huge pages, and comes back. */
	if (madvise(memory + size / 4, size / 2, MADV_DONTNEED))
		die("madvise");
	check_and_soil(memory + size / 4, size / 2);
	munmap(area, room);
}

static void round_of_pages(void)
{
	void *page = map_or_die(PAGE, 0);
	int i;

	for (i = 0; i < 1000; i++) {
		check_and_soil(page, PAGE);
		if (madvise(page, PAGE, MADV_DONTNEED))
			die("madvise");
	}
	munmap(page, PAGE);
}

static void round_of_fork(size_t size)
{
	void *memory = map_or_die(size, 0);
	int status;
	pid_t child;

	check_and_soil(memory, size / 2);
	child = fork();
	if (child < 0)
		die("fork");
	if (!child) {
		check_and_soil(memory + size / 2, size / 2);
		/* Copies, so that pages of the parent are freed by it. */
		memset(memory, 0x77, size / 2);
		fflush(stdout);
		_exit(0);
	}
	if (waitpid(child, &status, 0) != child)
		die("waitpid");
	if (status)
		exit(WEXITSTATUS(status) ?: 2);
	check_and_soil(memory + size / 2, size / 2);
	munmap(memory, size);
}

static void round_of_shared(size_t size)
{
	int fd = memfd_create("zero_check", 0);
	void *memory;

	if (fd < 0 || ftruncate(fd, size))
		die("memfd");
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED)
		die("mmap of a memfd");
	madvise(memory, size, MADV_HUGEPAGE);
	check_and_soil(memory, size / 2);
	/* What was allocated, but not written, by fallocate(2) */
	if (fallocate(fd, 0, size / 2, size / 2))
		die("fallocate");
	check_and_soil(memory + size / 2, size / 2);
	munmap(memory, size);
	close(fd);
}

static void round_of_hugetlb(size_t size)
{
	char *memory = map(size, MAP_HUGETLB);

	/* Others have them. */
	if (!memory)
		return;
	check_and_soil(memory, size);
	munmap(memory, size);
}

static void work(enum kind kind, size_t size, uint64_t until)
{
	unsigned int round = 0;

	/* One at least, however slow the machine is. */
	do {
		enum kind now = kind == MIXED ? round % HUGETLB : kind;

		switch (now) {
		case SMALL:
			round_of_anonymous(size, false);
			break;
		case HUGE_PAGES:
			round_of_anonymous(size, true);
			break;
		case PAGES:
			round_of_pages();
			break;
		case FORK:
			round_of_fork(size);
			break;
		case SHARED:
			round_of_shared(size);
			break;
		default:
			round_of_hugetlb(size);
		}
		round++;
	} while (now_ns() < until);
}

static int run(enum kind kind, size_t size, unsigned int seconds, int workers)
{
	uint64_t until = now_ns() + seconds * 1000000000UL;
	uint64_t *sums = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int i, status, worst = 0;
	uint64_t sum = 0;

	if (sums == MAP_FAILED)
		die("mmap");
	size = size / workers & ~(2 * HUGE - 1);
	if (!size)
		size = 2 * HUGE;
	for (i = 0; i < workers; i++) {
		pid_t child = fork();

		if (child < 0)
			die("fork");
		if (!child) {
			work(kind, size, until);
			sums[i] = checked;
			exit(0);
		}
	}
	while (wait(&status) > 0) {
		if (WIFSIGNALED(status)) {
			printf("a worker died of signal %d\n", WTERMSIG(status));
			worst = 2;
		} else if (WEXITSTATUS(status) > worst) {
			worst = WEXITSTATUS(status);
		}
	}
	for (i = 0; i < workers; i++)
		sum += sums[i];
	printf("%lu pages were zero\n", sum);
	return worst ?: !sum;
}

static int time_of(enum kind kind, size_t size)
{
	uint64_t begin, locked, unmapped;
	size_t room = size + HUGE;
	void *area, *memory;

	if (kind == HUGETLB) {
		memory = area = map_or_die(size, MAP_HUGETLB);
		room = size;
	} else if (kind == SHARED) {
		int fd = memfd_create("zero_check", 0);

		if (fd < 0 || ftruncate(fd, size))
			die("memfd");
		room = size;
		memory = area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (area == MAP_FAILED)
			die("mmap of a memfd");
		close(fd);
	} else {
		area = map_or_die(room, 0);
		memory = (void *)(((uintptr_t)area + HUGE - 1) & ~(HUGE - 1));
		madvise(area, room, kind == HUGE_PAGES ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	}
	begin = now_ns();
	if (mlock(memory, size))
		die("mlock");
	locked = now_ns();
	munmap(area, room);
	unmapped = now_ns();
	printf("%lu %lu\n", locked - begin, unmapped - locked);
	return 0;
}

static int pages(unsigned long count)
{
	void *memory = map_or_die(count * PAGE, 0);

	madvise(memory, count * PAGE, MADV_NOHUGEPAGE);
	check_and_soil(memory, count * PAGE);
	munmap(memory, count * PAGE);
	return 0;
}

static int halves(size_t size)
{
	char *memory = map_or_die(size, 0);
	size_t at;

	madvise(memory, size, MADV_NOHUGEPAGE);
	check_and_soil(memory, size);
	for (at = 0; at < size; at += 2 * PAGE)
		if (madvise(memory + at, PAGE, MADV_DONTNEED))
			die("madvise");
	printf("half of it is free\n");
	fflush(stdout);
	while (getchar() != '\n' && !feof(stdin))
		;
	munmap(memory, size);
	return 0;
}

/* A free page with the flag, see Documentation/admin-guide/mm/page_zero.rst */
#define KPF_ZEROED	(1UL << 10 | 1UL << 43)
/* What it must not be taken for */
#define KPF_WRONG	(1UL << 10 | 1UL << 36)

static int zeroed(unsigned long count)
{
	int fd = open("/proc/kpageflags", O_RDONLY);
	static uint64_t flags[1 << 13];
	unsigned long pfn = 0;
	ssize_t i, got;

	if (fd < 0)
		die("/proc/kpageflags");
	while (count && (got = read(fd, flags, sizeof(flags))) > 0) {
		got /= sizeof(*flags);
		for (i = 0; i < got; i++) {
			if ((flags[i] & KPF_WRONG) == KPF_WRONG) {
				printf("free page %lu has private_2\n", pfn + i);
				return 1;
			}
			if ((flags[i] & KPF_ZEROED) == KPF_ZEROED)
				break;
		}
		/* One of each run of flags: they are to be far from each other. */
		if (i < got) {
			printf("%lu\n", pfn + i);
			count--;
		}
		pfn += got;
	}
	return !pfn || count;
}

static enum kind kind_of(const char *name)
{
	unsigned int i;

	for (i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
		if (!strcmp(name, kinds[i]))
			return i;
	fprintf(stderr, "zero_check: no kind '%s'\n", name);
	exit(2);
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "time"))
		return time_of(kind_of(argv[2]), strtoul(argv[3], NULL, 0) * MIB);
	if (argc == 3 && !strcmp(argv[1], "pages"))
		return pages(strtoul(argv[2], NULL, 0));
	if (argc == 3 && !strcmp(argv[1], "halves"))
		return halves(strtoul(argv[2], NULL, 0) * MIB);
	if (argc == 3 && !strcmp(argv[1], "zeroed"))
		return zeroed(strtoul(argv[2], NULL, 0));
	if ((argc == 4 || argc == 5) && (argc == 4 || atoi(argv[4]) > 0))
		return run(kind_of(argv[1]), strtoul(argv[2], NULL, 0) * MIB,
			   strtoul(argv[3], NULL, 0),
			   argc == 5 ? atoi(argv[4]) : sysconf(_SC_NPROCESSORS_ONLN));
	fprintf(stderr, "usage: see the top of zero_check.c\n");
	return 2;
}
