// SPDX-License-Identifier: GPL-2.0
/*
 * bpf_load COUNT[xKIB] COMMAND...: loads so many BPF programs, of various lengths or
 * of so many KiB of text, runs the command, and unloads them.
 *
 * Prints the shortest, the mean and the longest time of a load, in ns, before
 * what the command prints.
 */
#include <linux/bpf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kselftest.h"

/* Of 5 bytes on x86: programs of various lengths have up to 2.5 KiB of text. */
#define INSNS_PER_KIB 205
#define MAX_VARIOUS 500
#define MAX_KIB 1024

static struct bpf_insn insns[MAX_KIB * INSNS_PER_KIB];

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

/* So many times r0 = 1, and exit. A kind of program that needs no network. */
static int load(unsigned int length)
{
	union bpf_attr attr;
	unsigned int i;

	for (i = 0; i < length; i++)
		insns[i] = (struct bpf_insn){ .code = BPF_ALU | BPF_MOV | BPF_K, .imm = 1 };
	insns[i - 1] = (struct bpf_insn){ .code = BPF_JMP | BPF_EXIT };
	memset(&attr, 0, sizeof(attr));
	attr.prog_type = BPF_PROG_TYPE_TRACEPOINT;
	attr.insns = (uintptr_t)insns;
	attr.insn_cnt = length;
	attr.license = (uintptr_t)"GPL";
	return syscall(__NR_bpf, BPF_PROG_LOAD, &attr, sizeof(attr));
}

int main(int argc, char **argv)
{
	int count = argc > 2 ? atoi(argv[1]) : 0, i, status;
	uint64_t begin, time, best = UINT64_MAX, worst = 0, sum = 0;
	const char *times = argc > 2 ? strchr(argv[1], 'x') : NULL;
	const int kib = times ? atoi(times + 1) : 0;
	const struct rlimit files = { count + 64, count + 64 };

	if (count <= 0 || kib < 0 || kib > MAX_KIB) {
		fprintf(stderr, "usage: bpf_load COUNT[xKIB] COMMAND...; up to %d KiB\n", MAX_KIB);
		return KSFT_FAIL;
	}
	if (setrlimit(RLIMIT_NOFILE, &files))
		perror("setrlimit");
	srandom(1);
	for (i = 0; i < count; i++) {
		unsigned int length = kib ? kib * INSNS_PER_KIB :
				      2 + random() % (MAX_VARIOUS - 1);

		begin = now();
		if (load(length) < 0) {
			perror("BPF_PROG_LOAD");
			return KSFT_FAIL;
		}
		time = now() - begin;
		best = time < best ? time : best;
		worst = time > worst ? time : worst;
		sum += time;
	}
	printf("%llu %llu %llu\n", (unsigned long long)best, (unsigned long long)(sum / count),
	       (unsigned long long)worst);
	fflush(stdout);
	if (!fork()) {
		for (i = 3; i < count + 64; i++)
			close(i);
		execvp(argv[2], argv + 2);
		_exit(127);
	}
	wait(&status);
	return status ? KSFT_FAIL : KSFT_PASS;
}
