// SPDX-License-Identifier: GPL-2.0
/*
 * A module that is there for its size: TEXT_KIB KiB of text, and nothing else.
 */
#include <linux/module.h>
#include <linux/stringify.h>

static void __used text(void)
{
	asm volatile(".nops " __stringify(TEXT_KIB * 1024));
}

MODULE_DESCRIPTION("Text of a given size for tests");
MODULE_LICENSE("GPL");
