// SPDX-License-Identifier: GPL-2.0
/*
 * module_load COUNT FILE.ko...: loads so many modules, from each of the files in
 * turn. A file named text_*.ko can be loaded any number of times: "text_" in it is
 * replaced by "t000_", "t001_", ... so that each has a name of its own.
 *
 * module_load -COUNT FILE.ko...: unloads them.
 *
 * Prints the shortest, the mean and the longest time of a load or unload, in ns.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <libgen.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "kselftest.h"

#define PREFIX "text_"

struct image {
	char *bytes;
	size_t size;
};

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

static struct image read_file(const char *path)
{
	struct image image;
	struct stat stat;
	FILE *file = fopen(path, "r");

	if (!file || fstat(fileno(file), &stat))
		die(path);
	image.size = stat.st_size;
	image.bytes = malloc(image.size);
	if (!image.bytes || fread(image.bytes, image.size, 1, file) != 1)
		die(path);
	fclose(file);
	return image;
}

/* Replaces PREFIX in the name of the file, wherever the name is in it. */
static void rename_module(struct image image, const char *name, const char *prefix)
{
	size_t length = strlen(name);
	char *end = image.bytes + image.size, *at = image.bytes;

	while ((at = memmem(at, end - at, name, length))) {
		memcpy(at, prefix, strlen(PREFIX));
		at += length;
	}
}

/* Returns the ns that it took. */
static uint64_t load(const char *path, const char *name, const char *prefix)
{
	struct image image = read_file(path);
	uint64_t begin;

	rename_module(image, name, prefix);
	begin = now();
	if (syscall(__NR_init_module, image.bytes, image.size, ""))
		die(path);
	begin = now() - begin;
	free(image.bytes);
	return begin;
}

static uint64_t unload(char *name, const char *prefix)
{
	uint64_t begin;

	memcpy(name, prefix, strlen(PREFIX));
	begin = now();
	if (syscall(__NR_delete_module, name, O_NONBLOCK))
		die(name);
	return now() - begin;
}

int main(int argc, char **argv)
{
	int count = argc > 2 ? atoi(argv[1]) : 0, i;
	uint64_t time, best = UINT64_MAX, worst = 0, sum = 0;
	char prefix[sizeof(PREFIX)], path[256], *name;

	if (!count || abs(count) > 999) {
		fprintf(stderr, "usage: module_load [-]COUNT FILE.ko...\n");
		return KSFT_FAIL;
	}
	for (i = 0; i < abs(count); i++) {
		const char *file = argv[2 + i % (argc - 2)];

		snprintf(path, sizeof(path), "%s", file);
		name = basename(path);
		name[strcspn(name, ".")] = 0;
		if (strncmp(name, PREFIX, strlen(PREFIX))) {
			fprintf(stderr, "module_load: %s is not named " PREFIX "*.ko\n", file);
			return KSFT_FAIL;
		}
		snprintf(prefix, sizeof(prefix), "t%03d_", i);
		time = count > 0 ? load(file, name, prefix) : unload(name, prefix);
		best = time < best ? time : best;
		worst = time > worst ? time : worst;
		sum += time;
	}
	printf("%llu %llu %llu\n", (unsigned long long)best,
	       (unsigned long long)(sum / abs(count)), (unsigned long long)worst);
	return KSFT_PASS;
}
