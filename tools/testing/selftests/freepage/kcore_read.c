// SPDX-License-Identifier: GPL-2.0
/*
 * kcore_read ADDRESS: prints the 32-bit word that /proc/kcore has at a kernel address.
 */
#include <elf.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "kselftest.h"

static int read_word(int fd, uint64_t address, uint32_t *word)
{
	Elf64_Ehdr header;
	Elf64_Phdr segment;
	int i;

	if (pread(fd, &header, sizeof(header), 0) != sizeof(header))
		return -1;
	for (i = 0; i < header.e_phnum; i++) {
		if (pread(fd, &segment, sizeof(segment),
			  header.e_phoff + i * sizeof(segment)) != sizeof(segment))
			return -1;
		if (segment.p_type != PT_LOAD || address < segment.p_vaddr ||
		    address - segment.p_vaddr >= segment.p_memsz)
			continue;
		return pread(fd, word, sizeof(*word), segment.p_offset + address -
			     segment.p_vaddr) == sizeof(*word) ? 0 : -1;
	}
	return -1;
}

int main(int argc, char **argv)
{
	int fd = open("/proc/kcore", O_RDONLY);
	uint32_t word;

	if (argc != 2) {
		fprintf(stderr, "usage: kcore_read ADDRESS\n");
		return KSFT_FAIL;
	}
	if (fd < 0 || read_word(fd, strtoull(argv[1], NULL, 0), &word)) {
		perror("/proc/kcore");
		return KSFT_FAIL;
	}
	printf("%#x\n", word);
	return KSFT_PASS;
}
